"""Training adapters (LoRA) beside PEFT: the same model, rows, start and settings, in turns.

    cargo build --release --example lora_steps -p homegrown-train
    homegrown export MODEL.gguf --to safetensors --quant F32 --out BASE
    python3 bench/tune/bench.py MODEL.gguf BASE TEXT [--rounds 5] [--losses 50]

PEFT trains over BASE in f32, the program over MODEL.gguf as it is stored: its weights are those of BASE. PEFT's side is the
loop inside TRL's and transformers' trainers without what is around it (peft_step.py). TEXT is cut into sequences of
512 tokens. Needs torch, transformers and peft in the Python that runs it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", type=Path)
parser.add_argument("base", type=Path)
parser.add_argument("text", type=Path)
parser.add_argument("--program", type=Path, default=HERE / "../../target/release/examples/lora_steps")
parser.add_argument("--rounds", type=int, default=5, help="0: no speeds")
parser.add_argument("--steps", type=int, default=4, help="timed in a round, and one before them")
parser.add_argument("--losses", type=int, default=50, help="steps whose losses are compared; 0: none")
parser.add_argument("--context", type=int, default=512)
parser.add_argument("--sequences", type=int, default=4, help="of a step")
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()

from transformers import AutoTokenizer  # noqa: E402

ids = AutoTokenizer.from_pretrained(args.base)(args.text.read_text()).input_ids
rows = [ids[i : i + args.context] for i in range(0, len(ids) - args.context, args.context)]
rows = [rows[i : i + args.sequences] for i in range(0, len(rows) - args.sequences + 1, args.sequences)]
folder = Path(tempfile.mkdtemp())
job = dict(
    base=str(args.base), model=str(args.model), threads=args.threads, rank=16, alpha=32.0, lr=2e-4, betas=[0.9, 0.999],
    eps=1e-8, rows=rows, steps=0, micro_tokens=args.context * args.sequences, recompute=False, exact=False,
    modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
)


def run(command, **changes):
    path = folder / "job.json"
    path.write_text(json.dumps(job | changes))
    out = subprocess.run([*command, path], capture_output=True, text=True)
    if out.returncode:
        sys.exit(out.stderr)
    return json.loads(out.stdout.splitlines()[-1])


peft = [sys.executable, HERE / "peft_step.py"]
# Both start from the adapter that PEFT makes.
run(peft, steps=1, lr=0.0, save=str(folder / "start"))
job["start"] = str(folder / "start/adapter_model.safetensors")
micro = args.context * args.sequences
ways = {
    "PEFT": (peft, {}),
    "homegrown": ([args.program], {}),
    "homegrown, products in f32": ([args.program], dict(exact=True)),
    "homegrown, sequence by sequence": ([args.program], dict(micro_tokens=args.context)),
    "homegrown, layers computed twice": ([args.program], dict(recompute=True)),
}
rates, memory = {name: [] for name in ways}, {}
for _ in range(args.rounds):
    for name, (command, changes) in ways.items():
        got = run(command, steps=args.steps + 1, **changes)
        rates[name].append(got["tokens_per_s"])
        memory[name] = got["peak_rss_bytes"]
if args.rounds:
    print(f"{args.sequences} sequences of {args.context} tokens a step, rank 16, f32, {args.threads} threads, AdamW; medians of {args.rounds}\n")
    print("| | tokens/s | times PEFT | peak memory, MB |\n|---|--:|--:|--:|")
    of = statistics.median(rates["PEFT"])
    for name, each in rates.items():
        rate = statistics.median(each)
        print(f"| {name} | {rate:.0f} | {rate / of:.2f} | {memory[name] / 1e6:.0f} |")
if args.losses:
    theirs = run(peft, steps=args.losses)["losses"]
    for name in ["homegrown", "homegrown, products in f32"]:
        command, changes = ways[name]
        ours = run(command, steps=args.losses, **changes)["losses"]
        apart = max(abs(a - b) for a, b in zip(theirs, ours))
        print(f"\n{name}: losses of {args.losses} steps: first {theirs[0]:.5f} and {ours[0]:.5f}, last {theirs[-1]:.5f} and "
              f"{ours[-1]:.5f}; never more than {apart:.5f} apart.")
