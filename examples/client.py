"""Ask a tokrun server with OpenAI's own client, and see what it cost.

    pip install openai
    python client.py http://127.0.0.1:8080 MODEL [KEY]
"""

import sys

import openai

base, model = sys.argv[1], sys.argv[2]
key = sys.argv[3] if len(sys.argv) > 3 else "not needed on one's own machine"
client = openai.OpenAI(base_url=base + "/v1", api_key=key)

try:
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Why is the sky blue?"}],
        max_tokens=60,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        if chunk.usage:
            # Every token that came was paid before it came.
            paid = chunk.model_extra["tokrun"]
            print(f"\n[{chunk.usage.total_tokens} tokens, paid {paid['debited']}, {paid['balance']} left]")
except openai.RateLimitError as error:
    # The allowance is used up, or a limit is reached: the message says which, and when it begins anew.
    sys.exit(f"error: {error.message}")
