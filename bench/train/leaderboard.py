"""Time to a given held-out loss on one small text: a table of what helps, three seeds each.

    cargo build --release
    python bench/train/leaderboard.py tinyshakespeare.txt [--target 2.36] [--seeds 1,2,3] [--only NAME;...]

A line is `homegrown grow --docs TEXT --until pretrain --set …` with 600,000 tokens; time is that of training
alone, on all cores, without measuring. The median of the seeds counts.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

BINARY = Path(__file__).parent / "../../target/release/homegrown"
BASE = ["pretrain.tokens=600000", "pretrain.validate_tokens=50000", "pretrain.sample_tokens=1000000"]
STEPS_2000 = ["model.layers=4", "model.context=256", "pretrain.tokens=512000", "pretrain.batch_tokens=256", "pretrain.micro_tokens=256"]
VARIANTS = {
    "default": [],
    "AdamW alone": ["pretrain.optimizer.muon=false"],
    "no induction head at the start": ["model.init.induction=false"],
    "output matrices start at random": ["model.init.output_gain=1.0"],
    "batch of 1,024 tokens": ["pretrain.batch_tokens=1024", "pretrain.micro_tokens=1024"],
    "batch of 4,096 tokens": ["pretrain.batch_tokens=4096"],
    "vocabulary of 1,024": ["tokenizer.vocab_size=1024"],
    "4 layers": ["model.layers=4"],
    "8 layers of 112": ["model.layers=8", "model.dim=112"],
    "cosine": ['pretrain.schedule={kind="cosine",warmup=0.01,end=0.0}'],
    "2,000 steps of 256, f32": STEPS_2000 + ['pretrain.dtype="f32"'],
    "2,000 steps of 256, bf16": STEPS_2000 + ['pretrain.dtype="bf16"'],
}
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("text")
parser.add_argument("--target", type=float, default=2.36)
parser.add_argument("--seeds", default="1,2,3")
parser.add_argument("--only", default=";".join(VARIANTS), help="some of the names, with ; between them")
parser.add_argument("--binary", default=str(BINARY))
args = parser.parse_args()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(settings, seed):
    with tempfile.TemporaryDirectory() as folder:
        command = [args.binary, "grow", "--docs", args.text, "--until", "pretrain", "--out", folder + "/run"]
        command += ["--seed", str(seed), "--json"]
        for setting in BASE + settings:
            command += ["--set", setting]
        subprocess.run(command, capture_output=True, check=True)
        heldout, seconds, clock = [], {}, 0.0
        for line in lines(Path(folder) / "run/pretrain/timing.jsonl"):
            clock += line.get("seconds", 0.0)
            seconds[line["step"]] = clock
        for line in lines(Path(folder) / "run/pretrain/metrics.jsonl"):
            if "heldout_bits_per_byte" in line:
                heldout.append((line["step"], line["tokens"], line["heldout_bits_per_byte"]))
    reached = next(((seconds[s], t) for s, t, bits in heldout if bits <= args.target), None)
    return reached, min(bits for _, _, bits in heldout), heldout[-1][2], clock


print(f"| settings | s to {args.target} | tokens to it | best bits a byte | last, by seed | s in all |")
print("|---|--:|--:|--:|---|--:|")
for name in args.only.split(";"):
    results = [run(VARIANTS[name], seed) for seed in args.seeds.split(",")]
    reached = [r for r, *_ in results if r]
    middle = lambda values: f"{statistics.median(values):,.0f}" if len(values) == len(results) else "not reached"
    last = ", ".join(f"{last:.3f}" for _, _, last, _ in results)
    best = statistics.median(best for _, best, _, _ in results)
    whole = statistics.median(clock for *_, clock in results)
    print(
        f"| {name} | {middle([s for s, _ in reached])} | {middle([t for _, t in reached])} | {best:.3f} "
        f"| {last} | {whole:.0f} |",
        flush=True,
    )
