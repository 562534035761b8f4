"""Exports of one model in every type, read by llama.cpp and by us, beside llama-quantize's files.

    cargo build --release
    python bench/export/beside_llama.py F16.gguf TEXT --llama FOLDER_OF_LLAMA_CPP'S_PROGRAMS [--calibrate TEXT] [--out FOLDER]

For each type: size, llama.cpp's perplexity and ours of the same file, and the KL divergence of llama.cpp's
answers from those of the F16 file, of our file and of the one that llama-quantize makes of the same source.
Windows of 512, the second half scored; the text for calibration should be another one.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

TYPES = ["F16", "BF16", "Q8_0", "Q6_K", "Q4_K_M", "Q4_0"]
CONTEXT = 512

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("model", type=Path)
p.add_argument("text", type=Path)
p.add_argument("--llama", type=Path, required=True)
p.add_argument("--calibrate")
p.add_argument("--out", type=Path, default=Path("/tmp/exports"))
p.add_argument("--characters", type=int, default=12_000, help="of the text")
p.add_argument("--types", nargs="*", default=TYPES)
p.add_argument("--homegrown", default="target/release/homegrown")
a = p.parse_args()
a.out.mkdir(parents=True, exist_ok=True)
text, source = a.out / "text.txt", a.out / "source.kld"
text.write_text(a.text.read_text(encoding="utf8")[: a.characters], encoding="utf8")


def run(*args):
    out = subprocess.run([str(arg) for arg in args], capture_output=True, text=True)
    if out.returncode:
        sys.exit(f"{' '.join(map(str, args))}\n{out.stderr}")
    return out.stdout + out.stderr


def number(pattern, text):
    found = re.search(pattern, text)
    return float(found[1]) if found else sys.exit(f"no {pattern} in {text}")


def theirs(path):
    """llama.cpp's perplexity of a file, and the divergence from the source."""
    said = run(a.llama / "llama-perplexity", "-m", path, "-c", CONTEXT, "-t", 2, "--kl-divergence-base", source, "--kl-divergence")
    return number(r"Mean PPL\(Q\)\s*:\s*([\d.]+)", said), number(r"Mean\s+KLD:\s*(-?[\d.]+)", said)


said = run(a.llama / "llama-perplexity", "-m", a.model, "-f", text, "-c", CONTEXT, "-t", 2, "--kl-divergence-base", source)
print(f"source: llama.cpp's perplexity {number(r'Final estimate: PPL = ([0-9.]+)', said):.4f}")
print("| type | MB | bits a weight | llama.cpp's perplexity | ours | ours, --exact | KL | llama-quantize: MB | KL |")
print("|---|--:|--:|--:|--:|--:|--:|--:|--:|", flush=True)
jobs = [(kind, False) for kind in a.types]
if a.calibrate:
    jobs += [(kind, True) for kind in a.types if kind in ("Q6_K", "Q4_K_M", "Q4_0")]
for kind, calibrated in jobs:
    path = a.out / f"{kind}{'-calibrated' if calibrated else ''}.gguf"
    path.unlink(missing_ok=True)
    more = ["--calibrate", a.calibrate] if calibrated else []
    made = json.loads(subprocess.check_output(
        [a.homegrown, "export", a.model, "--to", "gguf", "--quant", kind, "--out", path, "--json", *more], stderr=subprocess.DEVNULL))
    perplexity, kl = theirs(path)
    command = [a.homegrown, "score", path, text, "--windows", "llama.cpp", "--context", str(CONTEXT), "--json"]
    ours, exact = (
        json.loads(subprocess.check_output([*command, *more], stderr=subprocess.DEVNULL))["perplexity"] for more in ([], ["--exact"]))
    size, other = "", ""
    if not calibrated:
        file = a.out / f"{kind}-theirs.gguf"
        run(a.llama / "llama-quantize", a.model, file, kind, 2)
        other, size = f"{theirs(file)[1]:.2e}", f"{file.stat().st_size / 1e6:.1f}"
        file.unlink()
    name = kind + (", calibrated" if calibrated else "")
    print(f"| {name} | {path.stat().st_size / 1e6:.1f} | {made['bits_per_weight']:.2f} | {perplexity:.4f} | {ours:.4f} "
          f"| {exact:.4f} | {kl:.2e} | {size} | {other} |", flush=True)
