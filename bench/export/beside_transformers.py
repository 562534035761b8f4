"""A directory that was exported, read by transformers: its logits beside ours.

    pip install torch transformers numpy
    cargo build --release -p homegrown-model --example logits
    python bench/export/beside_transformers.py DIR TEXT [--tokens 128]

Prints the largest difference of logits and the mean KL divergence, both in f32, whether the tokenizers agree,
and what a greedy answer of transformers to a question is, through the chat template if there is one.
"""

import argparse
import json
import subprocess
import tempfile

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def log_softmax(x):
    x = x.astype(np.float64)
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("text")
    p.add_argument("--tokens", type=int, default=128)
    p.add_argument("--homegrown", default="target/release/homegrown")
    p.add_argument("--logits", default="target/release/examples/logits")
    a = p.parse_args()
    torch.set_grad_enabled(False)
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32)
    text = open(a.text, encoding="utf8").read()[:20000]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    out = subprocess.run([a.homegrown, "tokenizer", "encode", a.model, text, "--json"], capture_output=True, check=True)
    same = json.loads(out.stdout)["ids"] == ids
    ids = ids[: a.tokens]
    theirs = model(torch.tensor([ids])).logits[0].numpy()
    with tempfile.TemporaryDirectory() as d:
        json.dump(ids, open(f"{d}/ids", "w"))
        subprocess.run([a.logits, a.model, f"{d}/ids", f"{d}/out"], check=True)
        ours = np.fromfile(f"{d}/out", "<f4").reshape(theirs.shape)
    p, q = log_softmax(theirs), log_softmax(ours)
    kl = (np.exp(p) * (p - q)).sum(1).mean()
    print(f"{type(model).__name__}: tokens the same: {same}; logits within {np.abs(theirs - ours).max():.1e}, KL {kl:.1e}")
    question = [{"role": "user", "content": "How much is 12 times 34?"}]
    if tokenizer.chat_template:
        prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    else:
        prompt = text[:200]
    given = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    answer = model.generate(given, max_new_tokens=24, do_sample=False)[0, given.shape[1] :]
    print(repr(tokenizer.decode(answer)))


main()
