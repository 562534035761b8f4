#!/usr/bin/env python3
"""Makes model/tests/fixtures/kinds: a small tokenizer of each kind, and the ids that `tokenizers` gives.

    pip install tokenizers==0.23.3 transformers gguf && python3 model/tests/tokenizer_kinds.py

NAME.json has the tokenizer.json and the cases. Three kinds are there as GGUF, too (NAME.gguf), from
which the same ids have to come.
"""
import json
import pathlib

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import generate_merges

from tokenizer import CASES, TEXTS

FOLDER = pathlib.Path(__file__).parent / "fixtures" / "kinds"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = [
    r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

TEXT = [text[:150] for text in TEXTS] + [case[:120] for case in CASES[len(TEXTS):]] + [
    "▁ ▁▁a▁b", " ▁x", "x ▁", "  <s> a </s>b<unk> c", "<s>", " <mask> , <mask>x", "hello one, onerous two_one one",
    "<0x0A> <0xE2>", "<b>bold</b>\n\n\n\n<table>", "   \n\n   x\n\n\n", "l" * 70, "the the  the   the    the",
    " " * 40 + "x", "12345 1 22 333 4444", "HTMLParser fooBar XÄÖüß", "don't DON'T 'S",
]


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def level(regex):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex}


def sequence(key, *parts):
    return {"type": "Sequence", key: list(parts)}


def added(content, id, **flags):
    return {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True, **flags}


def learn(trainer, pre_tokenizer):
    """Vocabulary and merges from TEXTS."""
    kind = models.Unigram() if isinstance(trainer, trainers.UnigramTrainer) else models.BPE()
    tokenizer = Tokenizer(kind)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(TEXTS, trainer)
    return json.loads(tokenizer.to_str())["model"]


def bpe(vocab, merges, **more):
    return {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "vocab": vocab, "merges": merges, **more}


def file(model, added_tokens, **parts):
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added_tokens,
            "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
            **parts, "model": model}


def byte_level(pre_tokenizer, size, drop="", **more):
    """With a special token as its first, one in the middle, and others at the end."""
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, min_frequency=1,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    whole = json.dumps({"type": "Sequence", "pretokenizers": pre_tokenizer})
    shell = json.loads(Tokenizer(models.BPE()).to_str())
    shell["pre_tokenizer"] = json.loads(whole)
    learnt = learn(trainer, Tokenizer.from_str(json.dumps(shell)).pre_tokenizer)
    texts = [text for text in learnt["vocab"] if text not in drop]
    texts = ["<|end|>"] + texts[:300] + ["<|middle|>"] + texts[300:]
    vocab = {text: id for id, text in enumerate(texts)}
    merges = [m for m in learnt["merges"] if not any(c in drop for c in m[0] + m[1])]
    tokens = [added("<|end|>", 0), added("<|middle|>", 301)]
    tokens += [added("  ", len(vocab), special=False, normalized=True), added("<mask>", len(vocab) + 1, lstrip=True),
               added("one", len(vocab) + 2, single_word=True), added("<|r|>", len(vocab) + 3, rstrip=True)]
    pre = pre_tokenizer[0] if len(pre_tokenizer) == 1 else {"type": "Sequence", "pretokenizers": pre_tokenizer}
    return file(bpe(vocab, merges, **more), tokens, pre_tokenizer=pre,
                decoder=level(True), post_processor=level(True))


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
DECODERS = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
PREPEND = {"type": "Prepend", "prepend": "▁"}


def metaspace(scheme, split):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def template(token, id, after=False):
    texts = [{"Sequence": {"id": "A", "type_id": 0}}]
    texts.insert(len(texts) if after else 0, {"SpecialToken": {"id": token, "type_id": 0}})
    return {"type": "TemplateProcessing", "single": texts, "pair": texts + [{"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}}}


def scored_vocabulary(size, user=()):
    """As SentencePiece has it: control, user-defined, bytes, then tokens by falling score."""
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, min_frequency=1, limit_alphabet=150)
    learnt = learn(trainer, pre_tokenizers.Metaspace(prepend_scheme="always", split=True))
    by_id = [text for text in sorted(learnt["vocab"], key=learnt["vocab"].get) if text not in user]
    single = [text for text in by_id if len(text) == 1]
    texts = ["<unk>", "<s>", "</s>", *user] + [f"<0x{byte:02X}>" for byte in range(256)]
    texts += [text for text in by_id if len(text) > 1] + ["▁▁▁"] * (not user) + single
    scores = {text: -float(id) for id, text in enumerate(texts)}
    vocab = {text: id for id, text in enumerate(texts)}
    assert len(vocab) == len(texts)
    return vocab, scores


def sentence_piece(vocab, merges, **parts):
    special = [added("<unk>", 0), added("<s>", 1), added("</s>", 2)]
    parts.setdefault("added_tokens", special)
    tokens = parts.pop("added_tokens")
    return file(bpe(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True), tokens, **parts)


def unigram(size, byte_fallback=False):
    trainer = trainers.UnigramTrainer(vocab_size=size, show_progress=False, unk_token="<unk>",
                                      special_tokens=["<pad>", "</s>", "<unk>"])
    model = learn(trainer, pre_tokenizers.Metaspace(prepend_scheme="always", split=True))
    if byte_fallback:
        model["vocab"] += [[f"<0x{byte:02X}>", 0.0] for byte in range(256)]
    return {**model, "byte_fallback": byte_fallback}


def kinds():
    yield "gpt2", byte_level([level(True)], 420), "gpt-2"
    yield "llama3", byte_level([split(LLAMA3), level(False)], 420, ignore_merges=True), "llama-bpe"
    # Without the byte of a control character, and those of no character.
    yield "smollm", byte_level([{"type": "Digits", "individual_digits": True}, level(True)], 420, drop="ĄÀÁõö"), "smollm"
    yield "deepseek", byte_level([*map(split, DEEPSEEK), level(False)], 420), "deepseek-v3"
    yield "tekken", byte_level([split(TEKKEN), level(False)], 420), "tekken"
    vocab, scores = scored_vocabulary(500)
    merges = generate_merges(vocab, scores)
    strip = sequence("decoders", *DECODERS, STRIP)
    yield "llama", sentence_piece(vocab, merges, pre_tokenizer=metaspace("first", False), decoder=strip,
                                  post_processor=template("<s>", 1)), "llama"
    yield "llama_prepend", sentence_piece(vocab, merges, normalizer=sequence("normalizers", PREPEND, REPLACE),
                                          decoder=strip, post_processor=template("<s>", 1)), None
    user = ["\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁▁", "<b>", "</b>"]
    vocab, scores = scored_vocabulary(500, user)
    first = {**scores, **{text: 1000.0 - id for id, text in enumerate(user)}}
    tokens = [added("<unk>", 0), added("<s>", 1), added("</s>", 2)]
    tokens += [added(text, vocab[text], special=False) for text in user if "▁" not in text]
    gemma = sequence("decoders", *DECODERS)
    merged_with = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    yield "gemma", sentence_piece(vocab, generate_merges(vocab, first), normalizer=REPLACE, decoder=gemma,
                                  pre_tokenizer=merged_with, added_tokens=tokens,
                                  post_processor=template("<s>", 1)), "gemma"
    tokens = [added("<pad>", 0), added("</s>", 1), added("<unk>", 2)]
    apart = sequence("pretokenizers", {"type": "WhitespaceSplit"}, metaspace("always", True))
    yield "t5", file(unigram(600), tokens, pre_tokenizer=apart, decoder=metaspace("always", True),
                     post_processor=template("</s>", 1, after=True)), "t5"
    squeeze = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    nfkc = sequence("normalizers", {"type": "NFKC"}, {"type": "Lowercase"}, squeeze)
    yield "unigram", file(unigram(500, True), tokens, pre_tokenizer=metaspace("always", True), normalizer=nfkc,
                          decoder=sequence("decoders", {"type": "ByteFallback"}, metaspace("always", True))), None


def write_gguf(name, content, pre):
    """The same as metadata."""
    model, special = content["model"], {token["id"]: token for token in content["added_tokens"]}
    scored = isinstance(model["vocab"], list)
    pairs = model["vocab"] if scored else [(t, 0) for t, _ in sorted(model["vocab"].items(), key=lambda e: e[1])]
    texts = [text for text, _ in pairs]
    byte_level = pre not in ("llama", "gemma", "t5")
    if byte_level:
        texts += [token["content"] for id, token in special.items() if id >= len(texts)]
    def kind(id, text):
        if id in special:
            return 2 if text == "<unk>" else 3 if special[id]["special"] else 4
        if not byte_level and text.startswith("<0x"):
            return 6
        return 4 if pre == "gemma" and text in ("▁▁", "▁▁▁▁") else 1
    types = [kind(id, text) for id, text in enumerate(texts)]
    writer = gguf.GGUFWriter(FOLDER / f"{name}.gguf", "llama")
    writer.add_tokenizer_model("gpt2" if byte_level else "t5" if pre == "t5" else "llama")
    writer.add_tokenizer_pre(pre if byte_level else "default")
    writer.add_token_list([t.replace("▁", " ") if k == 4 else t for t, k in zip(texts, types)])
    writer.add_token_types(types)
    if byte_level:
        writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
        writer.add_eos_token_id(0)
    else:
        worst = -1000.0
        scores = [score for _, score in pairs] if scored else [
            worst if k in (2, 3, 4) else 0.0 if k == 6 else -float(id) for id, k in enumerate(types)]
        writer.add_token_scores(scores)
        writer.add_unk_token_id(texts.index("<unk>"))
        writer.add_eos_token_id(texts.index("</s>"))
        if pre != "t5":
            writer.add_bos_token_id(texts.index("<s>"))
        writer.add_add_space_prefix(pre != "gemma")
        if pre == "t5":
            writer.add_remove_extra_whitespaces(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    FOLDER.mkdir(exist_ok=True)
    for name, content, pre in kinds():
        tokenizer = Tokenizer.from_str(json.dumps(content))
        cases = []
        for text in TEXT:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            cases.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False)})
        lines = ",\n".join(json.dumps(case, ensure_ascii=True) for case in cases)
        head = json.dumps(content, ensure_ascii=True)
        (FOLDER / f"{name}.json").write_text(f'{{"file": {head},\n"cases": [\n{lines}\n]}}\n')
        if name in ("smollm", "llama", "gemma", "t5"):
            write_gguf(name, content, pre)


if __name__ == "__main__":
    main()
