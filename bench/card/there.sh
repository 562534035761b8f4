#!/usr/bin/env bash
# Builds, carries, checks and times in one call, on a machine with a card that ssh reaches:
#
#     bench/card/there.sh HOST [what run.py takes, such as --minutes 9 --python PYTHON_WITH_TORCH]
#
# HOST needs tar, Python 3.9 and the driver, not this repository and no compiler. What run.py writes comes back to
# card-results/, also when a check failed; the exit code is run.py's.
set -euo pipefail
host=${1:?"usage: $0 HOST [what run.py takes]"}
shift
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
carried=$(mktemp -d)
trap 'rm -rf "$carried"' EXIT

cargo build --release --manifest-path "$root/Cargo.toml"
strip -o "$carried/homegrown" "$root/target/release/homegrown"
cp run.py torch_step.py "$carried"
tar -C "$carried" -cz . | ssh "$host" 'rm -rf homegrown-card && mkdir homegrown-card && tar -C homegrown-card -xz'
code=0
ssh "$host" "cd homegrown-card && python3 run.py ./homegrown --out results $(printf '%q ' "$@")" || code=$?
mkdir -p "$root/card-results"
ssh "$host" 'tar -C homegrown-card/results -c .' | tar -C "$root/card-results" -x
echo "results: $root/card-results"
exit "$code"
