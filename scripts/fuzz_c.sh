#!/usr/bin/env bash
# Fuzz the C library with libFuzzer under AddressSanitizer and UndefinedBehaviorSanitizer.
#   scripts/fuzz_c.sh [INPUTS]      1,000,000 by default, from a fixed seed; `make fuzz` takes 10,000,000
# What is found stands in build/fuzz/ and ends it with an error. Needs clang and its runtime.
set -euo pipefail
cd "$(dirname "$0")/.."
inputs=${1:-1000000}
out=${TB_FUZZ_OUT:-build/fuzz}
command -v clang >/dev/null || { echo "needs clang: apt-get install clang libclang-rt-dev"; exit 1; }
mkdir -p "$out/corpus"
.venv/bin/python scripts/fuzz_seeds.py "$out/seeds"
clang -std=c99 -g -O2 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -ffp-contract=off \
  -Ifirmware_bridge/c/src firmware_bridge/c/fuzz/tb_fuzz.c firmware_bridge/c/src/*.c -lm -o "$out/tb_fuzz"
rm -rf "$out/corpus"/* "$out"/crash-* "$out"/leak-* "$out"/timeout-* "$out"/oom-*
"$out/tb_fuzz" -runs="$inputs" -seed=1 -max_len=900 -timeout=10 -print_final_stats=1 -verbosity=0 \
  -artifact_prefix="$out/" "$out/corpus" "$out/seeds" 2>&1 | tee "$out/log" | tail -12
echo "fuzzing: $(grep -o 'number_of_executed_units: *[0-9]*' "$out/log" | grep -o '[0-9]*$') inputs," \
  "$(ls "$out/corpus" | wc -l) kept for new paths, 0 findings"
