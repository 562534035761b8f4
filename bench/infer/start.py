"""From the start of a process to its end after one token, beside llama.cpp: same files, taking turns; medians.

    cargo build --release
    python bench/infer/start.py MODEL.gguf... --llama FOLDER_OF_LLAMA_CPP'S_PROGRAMS [--threads 2] [--rounds 7]
                                [--characters 5,1600]

The prompt is so many characters of the repository's ARCHITECTURE.md.
"""

import argparse
import statistics
import time
from pathlib import Path

import llama

HERE = Path(__file__).parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("models", nargs="+")
parser.add_argument("--llama", type=Path, required=True)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--characters", default="5,1600")
parser.add_argument("--binary", default=str(HERE / "../../target/release/homegrown"))
args = parser.parse_args()
text = (HERE / "../../ARCHITECTURE.md").read_text()


def turn(command):
    start = time.monotonic()
    _, memory = llama.run(*command)
    return time.monotonic() - start, memory


print("| model | characters | homegrown, s | MB | llama.cpp, s | MB |")
print("|---|--:|--:|--:|--:|--:|")
for model in args.models:
    for characters in map(int, args.characters.split(",")):
        prompt = text[:characters]
        ours = [args.binary, "generate", model, "--raw", "--prompt", prompt, "--max-tokens", "1", "--threads", args.threads]
        # As ours: no turns, nothing computed before the prompt, a context as needed.
        theirs = [args.llama / "llama-completion", "-m", model, "-p", prompt, "-n", "1", "-t", args.threads]
        theirs += ["-no-cnv", "--no-warmup", "-fa", "on", "-c", "4096"]
        turns = [(turn(ours), turn(theirs)) for _ in range(args.rounds)]
        mine, peer = zip(*turns)
        cells = [f"{statistics.median(s for s, _ in side):.2f} | {max(m for _, m in side) / 1e6:.0f}" for side in (mine, peer)]
        print(f"| {Path(model).stem} | {characters} | {cells[0]} | {cells[1]} |", flush=True)
