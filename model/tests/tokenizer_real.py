#!/usr/bin/env python3
"""Fills a folder for the test `real_vocabularies`: GGUF files of real models, and the ids that
`tokenizers` gives with their vocabularies for a megabyte of text.

    pip install tokenizers transformers gguf torch
    python3 model/tests/tokenizer_real.py FOLDER TEXT MODEL.gguf...
    HOMEGROWN_TOKENIZERS=FOLDER cargo test --release -p homegrown-model --test tokenizer_kinds

TEXT is any UTF-8 text with code, of which the first 700 kB are taken; others, of many scripts, emoji,
long white space and random parts, come from this script. The reference is what transformers makes of the
file, but for pre-tokenizers that it does not know: SmolLM's is each digit apart, then GPT-2's expression.
"""
import json
import os
import pathlib
import random
import sys

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from tokenizer import CASES

POOL = (" \n\t\r  ▁<>|/abcdeéñ中日の한글абвг😀👩\u200d\u0301١٢३0123456789.,;:!?'\"-_=+*#@{}[]()"
        "\u00a0\u3000\u200b")


def texts(path):
    text = open(path, encoding="utf-8", errors="replace", newline="").read(700_000)
    here = pathlib.Path(__file__)
    sources = sorted(here.parents[2].glob("*/src/**/*.rs"))[:40] + [here]
    code = "".join(source.read_text(encoding="utf-8") for source in sources)[:250_000]
    rng = random.Random(1)
    out = [text[at:at + 5000] for at in range(0, len(text), 5000)] + CASES
    out += [code[at:at + 4000] for at in range(0, len(code), 4000)]
    out += ["".join(rng.choice(POOL) for _ in range(rng.randint(1, 120))) for _ in range(600)]
    for space in " ", "\n", "\t":
        out += [f"{'a' * (n % 2)}{space * n}x" for n in range(80)]
    out += ["<table><tr><td>a</td></tr></table>\n\n\n<h1>T</h1> <start_of_turn>user\nhi<end_of_turn>\n<bos>",
            "<eos><unk><pad> <unused5>", "  <|im_start|>user\n", "<b> bold</b>", "▁▁a▁b ▁ c", " ▁", "▁"]
    return out


def main():
    folder, text, *models = sys.argv[1:]
    folder = pathlib.Path(folder)
    folder.mkdir(exist_ok=True)
    wanted = texts(text)
    for path in map(pathlib.Path, models):
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer
        if "smol" in path.name.lower():
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
                pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
        cases = []
        for case in wanted:
            ids = tokenizer.encode(case, add_special_tokens=False).ids
            cases.append({"text": case, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False)})
        link = folder / path.name
        if not link.exists():
            os.symlink(path.resolve(), link)
        (folder / f"{path.stem}.cases.json").write_text(json.dumps(cases))
        print(path.name, len(cases), "texts,", sum(len(case["ids"]) for case in cases), "tokens")


if __name__ == "__main__":
    main()
