"""Exports of one model in every type, read by llama.cpp and by us, beside llama-quantize's files.

    pip install llama-cpp-python numpy
    cargo build --release
    python bench/export/beside_llama.py F16.gguf TEXT [--calibrate TEXT] [--out FOLDER]

For each type: size, llama.cpp's perplexity and ours of the same file, and the KL divergence of llama.cpp's
answers from those of the F16 file, of our file and of the one that llama-quantize makes of the same source.
Windows of 512, the second half scored; the text for calibration should be another one.
"""

import argparse
import json
import os
import subprocess
import sys

import llama_cpp
import numpy as np

# Each with llama.cpp's number of it.
TYPES = dict(F16=1, BF16=32, Q8_0=7, Q6_K=18, Q4_K_M=15, Q4_0=2)
CONTEXT = 512


def log_softmax(x):
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def answers(path, text, windows):
    """Log-probabilities of scored positions, as float32, and perplexity."""
    m = llama_cpp.Llama(path, n_ctx=CONTEXT, n_batch=CONTEXT, n_ubatch=CONTEXT, logits_all=True, verbose=False,
                        n_threads=2, n_threads_batch=2)
    tokens = m.tokenize(text.encode(), add_bos=True, special=False)
    bos = bool(llama_cpp.llama_vocab_get_add_bos(llama_cpp.llama_model_get_vocab(m.model)))
    rows, nats = [], []
    for c in range(min(len(tokens) // CONTEXT, windows)):
        w = tokens[c * CONTEXT : (c + 1) * CONTEXT]
        w = [m.token_bos()] + w[1:] if bos else w
        m.reset()
        m.eval(w)
        lp = log_softmax(np.array(m.scores[CONTEXT // 2 : CONTEXT - 1], dtype=np.float64))
        nats.append(-lp[np.arange(len(lp)), w[CONTEXT // 2 + 1 :]])
        rows.append(lp.astype(np.float32))
    return rows, float(np.exp(np.concatenate(nats).mean()))


def kl(p, q):
    each = [(np.exp(a.astype("f8")) * (a.astype("f8") - b)).sum(1) for a, b in zip(p, q)]
    return float(np.concatenate(each).mean())


def quantised(source, path, kind):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = TYPES[kind], 2
    if llama_cpp.llama_model_quantize(source.encode(), path.encode(), params):
        sys.exit(f"llama.cpp can't make {path}")


def run(*args):
    out = subprocess.run(args, capture_output=True, text=True)
    if out.returncode:
        sys.exit(f"{' '.join(args)}\n{out.stderr}")
    return json.loads(out.stdout)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("text")
    p.add_argument("--calibrate")
    p.add_argument("--out", default="/tmp/exports")
    p.add_argument("--windows", type=int, default=6)
    p.add_argument("--types", default=",".join(TYPES))
    p.add_argument("--homegrown", default="target/release/homegrown")
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    text = open(a.text, encoding="utf8").read()
    base, ppl = answers(a.model, text, a.windows)
    short = os.path.join(a.out, "text.txt")
    print(f"source: llama.cpp's perplexity {ppl:.4f}")
    print("| type | MB | bits a weight | llama.cpp's perplexity | ours | ours, --exact | KL | llama-quantize: MB | KL |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    jobs = [(t, False) for t in a.types.split(",")]
    if a.calibrate:
        jobs += [(t, True) for t in a.types.split(",") if t in ("Q6_K", "Q4_K_M", "Q4_0")]
    # Ours of the windows that llama.cpp scores.
    m = llama_cpp.Llama(a.model, vocab_only=True, verbose=False)
    tokens = m.tokenize(text.encode(), add_bos=True, special=False)[: CONTEXT * a.windows + 8]
    with open(short, "w", encoding="utf8") as f:
        f.write(m.detokenize(tokens).decode("utf8", "ignore"))
    for kind, calibrated in jobs:
        path = os.path.join(a.out, f"{kind}{'-calibrated' if calibrated else ''}.gguf")
        if os.path.exists(path):
            os.remove(path)
        more = ["--calibrate", a.calibrate] if calibrated else []
        made = run(a.homegrown, "export", a.model, "--to", "gguf", "--quant", kind, "--out", path, "--json", *more)
        rows, theirs = answers(path, text, a.windows)
        command = [a.homegrown, "score", path, short, "--windows", "llama.cpp", "--context", str(CONTEXT), "--json"]
        ours, exact = (run(*command, *more)["perplexity"] for more in ([], ["--exact"]))
        other, size = "", ""
        if not calibrated:
            file = os.path.join(a.out, f"{kind}-theirs.gguf")
            quantised(a.model, file, kind)
            other = f"{kl(base, answers(file, text, a.windows)[0]):.2e}"
            size = f"{os.path.getsize(file) / 1e6:.1f}"
            os.remove(file)
        name = kind + (", calibrated" if calibrated else "")
        print(f"| {name} | {os.path.getsize(path) / 1e6:.1f} | {made['bits_per_weight']:.2f} | {theirs:.4f} | {ours:.4f} "
              f"| {exact:.4f} | {kl(base, rows):.2e} | {size} | {other} |", flush=True)


main()
