"""Training steps beside PyTorch: same shapes, same machine, taking turns; medians.

    pip install torch numpy && cargo build --release
    python bench/train/bench.py [--sizes 1M,10M,50M] [--contexts 256] [--threads 2] [--rounds 5]

Each mode of PyTorch (f32, bf16 autocast, both compiled) lives in a process of its own and does a few
steps a round, between those of `homegrown bench train` in f32 and bf16, with AdamW and with Muon. A
line is the median over all rounds; ratios are ours over the best of PyTorch's.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SIZES = {
    "1M": dict(layers=4, dim=128, heads=4, ffn=384, vocab=2048, batch_tokens=8192),
    "10M": dict(layers=5, dim=384, heads=6, ffn=1024, vocab=4096, batch_tokens=8192),
    "50M": dict(layers=9, dim=640, heads=10, ffn=1728, vocab=8192, batch_tokens=4096),
}
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--sizes", default="1M,10M,50M")
parser.add_argument("--contexts", default="256")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--steps", type=int, default=2, help="of a round")
parser.add_argument("--ours", default="f32,bf16,f32 Muon", help="of homegrown")
parser.add_argument("--modes", default="f32,f32 compile,bf16,bf16 compile", help="of PyTorch")
parser.add_argument("--binary", default=str(HERE / "../../target/release/homegrown"))
args = parser.parse_args()


class Peer:
    def __init__(self, shape, mode):
        command = [sys.executable, str(HERE / "torch_step.py"), json.dumps({**shape, "mode": mode})]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if self.process.stdout.readline().strip() != "ready":
            sys.exit(f"PyTorch, {mode}: {self.process.stderr.read()[-2000:]}")
        self.speeds, self.memory = [], 0

    def turn(self):
        self.process.stdin.write(f"{args.steps}\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.speeds += answer["speeds"]
        self.memory = answer["peak_rss_bytes"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Ours:
    def __init__(self, shape, dtype, muon):
        self.command = [args.binary, "bench", "train", "--json", "--dtype", dtype]
        self.command += ["--steps", str(args.steps + 1)] + ([] if muon else ["--adamw"])
        for key, value in shape.items():
            self.command += ["--" + key.replace("_", "-"), str(value)]
        self.speeds, self.memory, self.peaks = [], 0, []

    def turn(self):
        answer = json.loads(subprocess.run(self.command, capture_output=True, check=True).stdout)
        self.speeds.append(answer["tokens_per_s"])
        self.memory = answer["peak_rss_bytes"]
        self.peaks.append(answer["peak_flops_per_s"])
        self.share = answer["flops_per_s"] / answer["tokens_per_s"]

    def close(self):
        pass


def table(size, context):
    shape = {**SIZES[size], "context": context, "threads": args.threads}
    runs = {f"homegrown {o}": Ours(shape, o.split()[0], "Muon" in o) for o in args.ours.split(",")}
    runs |= {f"PyTorch {m}": Peer(shape, m) for m in args.modes.split(",")}
    for _ in range(args.rounds):
        for run in runs.values():
            run.turn()
    median = {name: statistics.median(run.speeds) for name, run in runs.items()}
    best = max(v for k, v in median.items() if k.startswith("PyTorch"))
    print(f"\n### {size}, context {context}, {args.threads} threads\n")
    print("| | tokens/s | over the best PyTorch | share of the peak | memory |\n|---|--:|--:|--:|--:|")
    for name, run in runs.items():
        run.close()
        ours = isinstance(run, Ours)
        share = f"{median[name] * run.share / max(run.peaks) * 100:.0f} %" if ours else ""
        print(f"| {name} | {median[name]:.0f} | {median[name] / best:.2f} | {share} | {run.memory / 1e6:.0f} MB |")
    peaks = {k.split()[1]: max(r.peaks) / 1e9 for k, r in runs.items() if isinstance(r, Ours)}
    print("\nPeaks: " + ", ".join(f"{k} {v:.0f} GFLOP/s" for k, v in peaks.items()), flush=True)


for size in args.sizes.split(","):
    for context in args.contexts.split(","):
        table(size, int(context))
