#!/bin/sh
# Ask a tokrun server with curl: ./curl.sh http://127.0.0.1:8080 MODEL [KEY]
set -eu
base=$1 model=$2 key=${3:-}

ask() {
    curl --silent --show-error --fail-with-body --no-buffer "$base$1" \
        -H "Authorization: Bearer $key" -H 'Content-Type: application/json' ${2:+--data "$2"}
}

# What there is, what is left, and an answer as it comes; its last event says what was paid.
ask /v1/models
ask /v1/usage/me
ask /v1/chat/completions "{\"model\": \"$model\", \"max_tokens\": 40, \"stream\": true,
    \"messages\": [{\"role\": \"user\", \"content\": \"Why is the sky blue?\"}]}"
