"""Time and memory a token against context, drawn: a model of 1M parameters, contexts to 32k.

    pip install matplotlib && cargo build --release
    python bench/train/contexts.py [--rounds 5] [--out docs/images/contexts.svg] [flags of `homegrown bench train`]

A step is max(8,192, context) tokens and goes through the model at once, so memory should be a line through
the step's tokens, whatever the context; the time of attention grows with the context, the rest doesn't.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

BINARY = Path(__file__).parent / "../../target/release/homegrown"
CONTEXTS = [2**n for n in range(8, 16)]
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--binary", default=str(BINARY))
parser.add_argument("--out", default="contexts.svg")
args, flags = parser.parse_known_args()
flags = flags or "--layers 4 --dim 128 --heads 4 --ffn 384 --vocab 2048".split()


def measure(context):
    tokens = str(max(8192, context))
    command = [args.binary, "bench", "train", "--json", "--profile", "--steps", "2", "--adamw", *flags]
    command += ["--context", str(context), "--batch-tokens", tokens, "--micro-tokens", tokens]
    answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    attention = sum(r["seconds"] for r in answer["profile"] if r["operation"].startswith("attention"))
    return 1e6 / answer["tokens_per_s"], attention / int(tokens) * 1e6, answer["peak_rss_bytes"] / int(tokens)


turns = {c: [] for c in CONTEXTS}
for _ in range(args.rounds):
    for context in CONTEXTS:
        turns[context].append(measure(context))
rows = [(c, *(statistics.median(x) for x in zip(*turns[c]))) for c in CONTEXTS]
print("| context | us a token | of them attention | kB a token |\n|--:|--:|--:|--:|")
for context, whole, attention, memory in rows:
    print(f"| {context} | {whole:.1f} | {attention:.1f} | {memory / 1e3:.1f} |")

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for column, name in [(1, "step"), (2, "attention")]:
    axes.plot([r[0] for r in rows], [r[column] for r in rows], marker="o", label=name)
axes.set(xscale="log", yscale="log", xlabel="context, tokens", ylabel="µs a token")
axes.set_xticks(CONTEXTS, CONTEXTS)
axes.minorticks_off()
axes.grid(alpha=0.3)
axes.legend()
figure.savefig(args.out, metadata={"Date": None})
