"""Prompts and answers while another process keeps one core busy, ours and llama.cpp's; medians of turns.

    cargo build --release
    python bench/infer/neighbours.py MODEL.gguf --llama FOLDER_OF_LLAMA_CPP'S_PROGRAMS [--rounds 5] [--prompt 512] [--generate 128]

On n cores a busy process is due half a core where n threads want the others: a fair share is (n - 1/2)/n
of the speed alone, and the table says what part of that is left.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import llama

HERE = Path(__file__).parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("model")
parser.add_argument("--llama", type=Path, required=True)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--prompt", type=int, default=512)
parser.add_argument("--generate", type=int, default=128)
parser.add_argument("--binary", default=str(HERE / "../../target/release/homegrown"))
args = parser.parse_args()
cores = len(os.sched_getaffinity(0))


def ours():
    command = [args.binary, "bench", "infer", args.model, "--json", "--rounds", "1", "--threads", str(cores)]
    command += ["--prompt", str(args.prompt), "--generate", str(args.generate)]
    tests = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["tests"]
    return [t["tokens_per_s"] for t in tests]


def theirs():
    prompt = llama.turn(args.llama, args.model, prompt=args.prompt, threads=cores)
    generate = llama.turn(args.llama, args.model, generate=args.generate, threads=cores)
    return [prompt[0], generate[0]]


speeds = {}
for _ in range(args.rounds):
    for busy in [False, True]:
        if busy:
            spin = f"import os\nos.sched_setaffinity(0, {{{cores - 1}}})\nwhile True: pass"
            neighbour = subprocess.Popen([sys.executable, "-c", spin])
        for name, run in [("homegrown", ours), ("llama.cpp", theirs)]:
            speeds.setdefault((name, busy), []).append(run())
        if busy:
            neighbour.kill()
            neighbour.wait()
fair = (cores - 0.5) / cores
print("| | test | alone, tokens/s | with a neighbour | of the fair share |\n|---|---|--:|--:|--:|")
for name in ["homegrown", "llama.cpp"]:
    for i, test in enumerate([f"pp{args.prompt}", f"tg{args.generate}"]):
        alone, shared = (statistics.median(turn[i] for turn in speeds[name, busy]) for busy in [False, True])
        print(f"| {name} | {test} | {alone:.1f} | {shared:.1f} | {shared / alone / fair:.2f} |")
