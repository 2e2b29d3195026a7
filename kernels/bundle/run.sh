#!/usr/bin/env bash
# Checks tokrun on this machine's CUDA card, then measures it: `./run.sh [DIRECTORY]` writes results.json, table.md and what each
# part said to DIRECTORY (results). Needs an NVIDIA driver and nothing else. Parts come in the order of their worth, have time limits
# of their own and cannot break each other; without changes the whole takes at most nine minutes.
#
# TOKRUN_GPU_TINY=1 shrinks all shapes, for an emulated card.
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-results}
mkdir -p "$out/parts" && out=$(cd "$out" && pwd)
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
for file in "$here"/bin/*.gz; do
    gzip -dc "$file" >"$work/$(basename "$file" .gz)" && chmod +x "$work/$(basename "$file" .gz)"
done
export PATH="$work:$PATH" TOKRUN_HOME="$work/home" TOKRUN_REQUIRE_CUDA=1 HF_HUB_OFFLINE=1
tiny=${TOKRUN_GPU_TINY:-}
begin=$SECONDS
total_s=${TOKRUN_GPU_SECONDS:-530}
failed=0

# part NAME SECONDS COMMAND...: runs it, keeps what it prints, and writes the results anew.
part() {
    local name=$1 limit=$2 status left=$((total_s - (SECONDS - begin)))
    shift 2
    if ((left < 5)); then
        printf '%s\t-\tnot begun: the time is up\n' "$name" >>"$out/parts/status"
        return
    fi
    local from=$SECONDS
    timeout -k 5 $((limit < left ? limit : left)) "$@" >"$out/parts/$name.out" 2>"$out/parts/$name.err" </dev/null
    status=$?
    local said="failed with $status"
    ((status == 0)) && said=passed
    ((status == 124 || status == 137)) && said="stopped after its time"
    printf '%s\t%s\t%s\n' "$name" $((SECONDS - from)) "$said" >>"$out/parts/status"
    printf '%-28s %3d s  %s\n' "$name" $((SECONDS - from)) "$said"
    report
    return $status
}

# check: a part whose failure is the run's.
check() { part "$@" || failed=1; }

# The figure of a field of a one-line JSON object.
field() { sed -n "s/.*\"$1\":\"\{0,1\}\([^,\"}]*\).*/\1/p"; }

objects() { cat "$@" 2>/dev/null | grep '^{' | paste -sd, -; }

report() {
    {
        printf '{"parts":['
        awk -F'\t' '{ printf "%s{\"name\":\"%s\",\"seconds\":\"%s\",\"status\":\"%s\"}", (NR > 1 ? "," : ""), $1, $2, $3 }' "$out/parts/status"
        printf '],\n"doctor":%s,\n' "$(grep '^\[' "$out/parts/doctor.out" 2>/dev/null || echo null)"
        printf '"agreement":[%s],\n' "$(objects "$out"/parts/agreement*.out)"
        printf '"kernels":[%s],\n' "$(objects "$out/parts/kernel-speed.out")"
        printf '"bench":[%s],\n' "$(objects "$out"/parts/bench-*.out)"
        printf '"start":[%s],\n' "$(objects "$out"/parts/start*.out)"
        printf '"torch":[%s]}\n' "$(objects "$out/parts/torch.out")"
    } >"$out/results.json"
    {
        printf '# tokrun on this card\n\n| part | seconds | |\n| --- | ---: | --- |\n'
        awk -F'\t' '{ printf "| %s | %s | %s |\n", $1, $2, $3 }' "$out/parts/status"
        printf '\n| model | test | ledger | tokens/s | of read bandwidth |\n| --- | --- | --- | ---: | ---: |\n'
        cat "$out"/parts/bench-*.out 2>/dev/null | grep '^{' | while IFS= read -r line; do
            printf '| %s | %s | %s | %s | %s |\n' "$(field model_type <<<"$line")" "$(field test <<<"$line")" \
                "$(field ledger <<<"$line")" "$(field avg_ts <<<"$line")" "$(field roofline_share <<<"$line")"
        done
        printf '\n| operation | type | batch | depth | µs | GB/s | of read bandwidth | TFLOP/s |\n| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n'
        grep '"us":' "$out/parts/kernel-speed.out" 2>/dev/null | while IFS= read -r line; do
            printf '| %s %s | %s | %s | %s | %s | %s | %s | %s |\n' "$(field op <<<"$line")" "$(field matrix <<<"$line")" \
                "$(field type <<<"$line")" "$(field batch <<<"$line")" "$(field depth <<<"$line")" "$(field us <<<"$line")" \
                "$(field gb_per_s <<<"$line")" "$(field share <<<"$line")" "$(field tflop_per_s <<<"$line")"
        done
        printf '\n```\n%s\n```\n' "$(cat "$out/parts/torch.out" 2>/dev/null)"
    } >"$out/table.md"
}

# bench NAME SECONDS ARGUMENTS...
bench() {
    local name=$1 limit=$2
    shift 2
    part "bench-$name" "$limit" tokrun bench --device cuda --output jsonl "$@"
}

# Greedy tokens through the whole program, metered, on both.
same_tokens() {
    local model=$1 device tokens=()
    tokrun wallet create card >/dev/null 2>&1 && tokrun wallet grant card 100000 >/dev/null
    for device in cuda cpu; do
        tokens+=("$(tokrun generate "Hello there" --raw --model "$model" --user card --device $device --temperature 0 \
            --max-tokens 24 --ignore-eos --output json | grep -o '"token_ids":\[[^]]*\]')")
    done
    tokrun ledger verify >/dev/null && [ -n "${tokens[0]}" ] && [ "${tokens[0]}" = "${tokens[1]}" ]
}
export -f same_tokens

# start FILE-OR-SHAPE: how long until the first token, the program's start included.
start_up() {
    local from to
    from=$(date +%s%N)
    tokrun bench --device cuda --synthetic "$1" -p 0 -n 1 -r 1 --ledger off --output jsonl >/dev/null || return
    to=$(date +%s%N)
    printf '{"model":"%s","start_to_end_ms":%d}\n' "$1" $(((to - from) / 1000000))
}
export -f start_up

: >"$out/parts/status"
nvidia-smi -q >"$out/nvidia-smi" 2>&1 || true
fixtures=$here/fixtures
part doctor 40 tokrun doctor --model "$fixtures/llama.gguf" --output json
check agreement-tiny 60 agreement "$fixtures"/*.gguf
check same-tokens 40 bash -c 'same_tokens "$1"' - "$fixtures/llama.gguf"
if [ -n "$tiny" ]; then
    check kernels 60 kernels --test-threads 2 heads::groups prompts::what_is
    part kernel-speed 60 cards --tiny
    bench tiny 60 --model "$fixtures/llama.gguf" -p 8 -n 4 -r 1 --ledger off
    part torch 30 python3 "$here/torch_decode.py" --tiny
else
    check kernels 90 kernels --test-threads 8
    check agreement-synthetic 60 agreement synthetic:smollm2-135m:q4_k synthetic:smollm2-135m:bf16 synthetic:qwen3-0.6b:fp8 \
        synthetic:llama-3.2-1b:q8_0
    for type in bf16 fp8 q8_0 q4_k; do
        bench "llama-8b-$type" 45 --synthetic "llama-3.1-8b:$type" -p 512 -n 128 -r 3 --ledger off
    done
    part kernel-speed 60 cards
    bench llama-1b-many 45 --synthetic llama-3.2-1b:bf16 -p 0 -n 128 --concurrency 1,4,16,32,64 -r 2 --ledger on
    bench llama-1b-bare 45 --synthetic llama-3.2-1b:bf16 -p 0 -n 128 --concurrency 1,4,16,32,64 -r 2 --ledger off
    bench llama-8b-deep 40 --synthetic llama-3.1-8b:q8_0 -p 0 -n 64 -d 4096 -r 2 --ledger off
    bench llama-8b-long 40 --synthetic llama-3.1-8b:bf16 -p 4096 -n 0 -r 2 --ledger off
    part torch 60 python3 "$here/torch_decode.py"
    part start-8b 30 bash -c 'start_up llama-3.1-8b:bf16'
    if command -v compute-sanitizer >/dev/null; then
        check sanitizer 60 compute-sanitizer --error-exitcode 9 "$work/kernels" --test-threads 1 heads prompts
    fi
    for type in bf16 fp8 q8_0 q4_k; do
        bench "qwen-4b-$type" 30 --synthetic "qwen3-4b:$type" -p 512 -n 128 -r 2 --ledger off
    done
    bench llama-1b-types 30 --synthetic llama-3.2-1b:q8_0 -p 512 -n 128 --concurrency 1,16 -r 2 --ledger off
    bench llama-1b-q4 30 --synthetic llama-3.2-1b:q4_k -p 512 -n 128 --concurrency 1,16 -r 2 --ledger off
    bench llama-8b-many 60 --synthetic llama-3.1-8b:q4_k -p 0 -n 64 --concurrency 4,16,64 -r 2 --ledger off
fi
report
echo "results: $out/results.json, $out/table.md"
exit $failed
