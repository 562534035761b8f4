"""Prompts and answers beside llama.cpp: same files, same machine, taking turns; medians.

    cargo build --release
    python bench/infer/bench.py MODEL.gguf... --llama FOLDER_OF_LLAMA_CPP'S_PROGRAMS [--threads 2] [--rounds 5]
                                [--prompt 512] [--generate 128] [--depth 0] [--batch 1,4,16] [--kv q8] [--draw OUT.svg]

llama.cpp runs with and without flash attention and repacking (llama.py); its best is what counts, and the
table says which that was. Ours is `homegrown bench infer`. Both load the model anew each turn; loading is in
neither's time. --draw draws answers a second against the batch, and the machine's limit.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import llama

HERE = Path(__file__).parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("models", nargs="+")
parser.add_argument("--llama", type=Path, required=True)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--prompt", type=int, default=512)
parser.add_argument("--generate", type=int, default=128)
parser.add_argument("--depth", type=int, default=0)
parser.add_argument("--batch", default="1")
parser.add_argument("--flags", default="flash+repack,repack,flash", help="of llama.cpp, to choose the best of")
parser.add_argument("--kv", choices=["f16", "q8"], help="what keys and values are stored as, on both sides [default: as each does, both 16 bits]")
parser.add_argument("--draw")
parser.add_argument("--binary", default=str(HERE / "../../target/release/homegrown"))
args = parser.parse_args()
batches = [int(b) for b in args.batch.split(",")]
tests = [dict(prompt=args.prompt, generate=0, batch=1)] if args.prompt else []
tests += [dict(prompt=0, generate=args.generate, batch=b) for b in batches if args.generate]


def name(test):
    size = f"pp{test['prompt']}" if test["prompt"] else f"tg{test['generate']}"
    at = f" @ d{args.depth}" if args.depth else ""
    return size + at + (f" x {test['batch']}" if test["batch"] > 1 else "")


class Peer:
    def __init__(self, model, flags):
        self.model, self.flags = model, flags
        self.memory, self.speeds = 0, {name(t): [] for t in tests}

    def turn(self):
        for test in tests:
            how = dict(depth=args.depth, threads=args.threads, flags=self.flags, kv=args.kv or "f16")
            speed, memory = llama.turn(args.llama, self.model, **test, **how)
            self.speeds[name(test)].append(speed)
            self.memory = max(self.memory, memory)


class Ours:
    def __init__(self, model):
        self.command = [args.binary, "bench", "infer", model, "--json", "--rounds", "1"]
        self.command += ["--kv", args.kv] if args.kv else []
        self.command += ["--threads", str(args.threads), "--prompt", str(args.prompt)]
        self.command += ["--generate", str(args.generate), "--depth", str(args.depth), "--batch", args.batch]
        self.speeds, self.shares = {name(t): [] for t in tests}, {name(t): [] for t in tests}
        self.limits = []

    def turn(self):
        done = subprocess.run(self.command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        answer = json.loads(done.stdout)
        for test in answer["tests"]:
            self.speeds[test["test"]].append(test["tokens_per_s"])
            self.shares[test["test"]].append(test["share_of_limit"])
        self.memory = answer["peak_rss_bytes"]
        self.limits += answer["limits"]


limits, points = [], []
print("| model | test | homegrown, tokens/s | of the limit | llama.cpp | its flags | times as fast |")
print("|---|---|--:|--:|--:|---|--:|")
lines = []
for model in args.models:
    peers = {flags: Peer(model, flags) for flags in args.flags.split(",")}
    ours = Ours(model)
    for _ in range(args.rounds):
        for run in [ours, *peers.values()]:
            run.turn()
    label = Path(model).stem
    for test in map(name, tests):
        mine = statistics.median(ours.speeds[test])
        best = max(peers, key=lambda f: statistics.median(peers[f].speeds[test]))
        theirs = statistics.median(peers[best].speeds[test])
        share = statistics.median(ours.shares[test])
        points.append((label, test, mine, mine / share, theirs))
        print(f"| {label} | {test} | {mine:.1f} | {share * 100:.0f} % | {theirs:.1f} | {best} | {mine / theirs:.2f} |", flush=True)
    least = min(peer.memory for peer in peers.values())
    lines.append(f"{label}: {ours.memory / 1e6:.0f} MB at most; llama.cpp {least / 1e6:.0f} MB.")
    limits += ours.limits
print("\n" + "\n".join(lines))
most = {key: max(limit[key] for limit in limits) / 1e9 for key in limits[0] if key != "threads"}
print(
    f"\n{args.threads} threads: {most['byte_ops_per_s']:.0f} GOP/s of bytes, {most['bf16_flops_per_s']:.0f} GFLOP/s "
    f"in bf16, {most['f32_flops_per_s']:.0f} in f32, {most['bytes_per_s']:.1f} GB/s."
)

if args.draw:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    labels = list(dict.fromkeys(label for label, *_ in points))
    figure, axes = plt.subplots(1, len(labels), figsize=(4.5 * len(labels), 4), layout="constrained", squeeze=False)
    for label, axis in zip(labels, axes[0]):
        lines = [p[2:] for p in points if p[0] == label and p[1].startswith("tg")]
        for line, what, style in zip(zip(*lines), ["homegrown", "the machine's limit", "llama.cpp"], ["o-", "k:", "s--"]):
            axis.plot(batches, line, style, label=what)
        axis.set(xscale="log", yscale="log", title=label, xlabel="sequences at once", ylabel="tokens/s")
        axis.set_xticks(batches, batches)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(args.draw, metadata={"Date": None})
