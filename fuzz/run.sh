#!/usr/bin/env bash
# A million runs of each fuzz target, from the sound files of the tests.
#     cargo install cargo-fuzz && fuzz/run.sh [RUNS]
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-1000000}
HOMEGROWN_CORPUS=$PWD/fuzz/corpus cargo test --release -p homegrown-fuzzing
cargo +nightly fuzz build --sanitizer none
for target in $(cargo +nightly fuzz list); do
  # A reader that takes more than 10 s or 2 GB for a file of some kB has failed, too.
  cargo +nightly fuzz run --sanitizer none "$target" "fuzz/corpus/$target" -- \
    -runs="$runs" -timeout=10 -rss_limit_mb=2048 -max_len=16384 -print_final_stats=1 2>&1 |
    grep -E "^stat::number|^Done|^SUMMARY|panicked|ERROR" | sed "s/^/$target: /"
done
