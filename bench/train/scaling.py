"""Where a training step would stop to scale, from its profile with one thread and with two.

    cargo build --release && python3 bench/train/scaling.py [--rounds 5] [flags of `homegrown bench train`]

Each operation takes s + p/n on n threads (Amdahl 1967); s and p follow from its time on one and two
threads, medians of --rounds turns. What two threads can't show is left out: memory that more cores share
(operations near the limit of bytes a second stop earlier), and barriers that grow with n.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

BINARY = Path(__file__).parent / "../../target/release/homegrown"
COUNTS = [1, 2, 4, 8, 16, 32, 64]
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=5)
args, flags = parser.parse_known_args()
times, tokens = {1: {}, 2: {}}, {1: [], 2: []}
for _ in range(args.rounds):
    for threads in times:
        command = [BINARY, "bench", "train", "--json", "--profile", "--threads", str(threads), *flags]
        answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        tokens[threads].append(answer["tokens_per_s"])
        for row in answer["profile"]:
            times[threads].setdefault(row["operation"], []).append(row["seconds"])
median = {n: {op: statistics.median(t) for op, t in ops.items()} for n, ops in times.items()}
rows = []
for op, one in median[1].items():
    two = median[2].get(op, one)
    parallel = min(max(2 * (one - two), 0.0), one)
    rows.append((op, one, two, one - parallel, parallel))
rows.sort(key=lambda r: -r[3])
print("| operation | 1 thread, ms | 2 threads, ms | times as fast | serial part, ms |\n|---|--:|--:|--:|--:|")
for op, one, two, serial, _ in rows:
    print(f"| {op} | {one * 1e3:.2f} | {two * 1e3:.2f} | {one / two:.2f} | {serial * 1e3:.2f} |")
all_serial, all_parallel = sum(r[3] for r in rows), sum(r[4] for r in rows)
step = lambda n: all_serial + all_parallel / n
speeds = {n: statistics.median(t) for n, t in tokens.items()}
print(f"\nMeasured: {speeds[1]:.0f} and {speeds[2]:.0f} tokens/s, {speeds[2] / speeds[1]:.2f} times.")
print("Model: " + ", ".join(f"{n} threads {step(1) / step(n):.1f}x" for n in COUNTS)
      + f"; never more than {step(1) / all_serial:.0f}x.")
