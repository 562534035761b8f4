#!/usr/bin/env python3
"""Our tokenizer beside `tokenizers`, `tiktoken` and `rustbpe`, in the same run.

    pip install tokenizers tiktoken rustbpe
    cargo build --release -p homegrown-model --example tokenizer_bench
    python3 bench/tokenizer/bench.py TEXT [--binary PATH] [--vocab 32768] [--threads 1 2] [--rounds 5]

TEXT is UTF-8, and is cut into texts of about 64 KB at line ends. Training: each in its own process,
memory as the peak of that process less what it held before (the text). Encoding: the rounds of all
are taken in turn, so that a busy machine is busy for all alike. All use Qwen2's expression.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def memory(field):
    """VmRSS (now) or VmHWM (at most so far) of this process in MB."""
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) // 1024


def cut(text, size=1 << 16):
    texts, start = [], 0
    while start < len(text):
        end = text.find("\n", start + size)
        end = len(text) if end < 0 else end
        texts.append(text[start:end])
        start = end
    return texts


def hugging_face():
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_peer(name, path, vocab, out):
    """In a process of its own: prints seconds and MB."""
    texts = open(path, encoding="utf-8", newline="").read().split("\0")[:-1]
    if name == "tokenizers":
        from tokenizers import pre_tokenizers, trainers
        tokenizer = hugging_face()
        trainer = trainers.BpeTrainer(vocab_size=vocab, min_frequency=2, show_progress=False,
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        before, start = memory("VmRSS"), time.perf_counter()
        tokenizer.train_from_iterator(texts, trainer)
        seconds = time.perf_counter() - start
        tokenizer.save(out)
    else:
        import rustbpe
        tokenizer = rustbpe.Tokenizer()
        before, start = memory("VmRSS"), time.perf_counter()
        tokenizer.train_from_iterator(iter(texts), vocab, pattern=QWEN2)
        seconds = time.perf_counter() - start
    print(seconds, memory("VmHWM") - before)


def train(arguments, name, path, megabytes, threads, folder):
    out = str(folder / f"{name}.json")
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
    results = []
    for _ in range(arguments.train_rounds):
        if name == "homegrown":
            command = [arguments.binary, "train", path, str(arguments.vocab), str(threads), out]
        else:
            command = [sys.executable, __file__, "--worker", name, "--vocab", str(arguments.vocab),
                       path, out]
        printed = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment).stdout
        results.append(tuple(map(float, printed.split())))
    seconds = statistics.median(r[0] for r in results)
    print(f"| {name} | {threads} | {megabytes / seconds:.1f} | {seconds:.1f} "
          f"| {max(r[1] for r in results):.0f} |", flush=True)
    return out


class Ours:
    """A process that encodes once for each line it is sent."""

    def __init__(self, binary, path, tokenizer, threads, out):
        self.process = subprocess.Popen([binary, "encode", path, tokenizer, str(threads), out],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        assert self.process.wait() == 0


def encoders(arguments, texts, path, tokenizer, threads, folder):
    """Name to a function that encodes all texts and returns the seconds."""
    import rustbpe
    import tiktoken
    from tokenizers import Tokenizer

    def timed(work):
        def run():
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        return run

    hugging = Tokenizer.from_file(tokenizer)
    content = json.load(open(tokenizer))["model"]["vocab"]
    from tokenizers.pre_tokenizers import ByteLevel
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = printable + [b for b in range(256) if b not in printable]
    of = dict(zip(sorted(ByteLevel.alphabet()), order))
    ranks = {bytes(of[c] for c in token): rank for token, rank in content.items()}
    tik = tiktoken.Encoding(name="bench", pat_str=QWEN2, mergeable_ranks=ranks, special_tokens={})
    out = {
        "homegrown": Ours(arguments.binary, path, tokenizer, threads, str(folder / "ids.json")),
        "tiktoken": timed(lambda: [tik.encode_ordinary(text) for text in texts] if threads == 1
                          else tik.encode_ordinary_batch(texts, num_threads=threads)),
        "tokenizers": timed(lambda: hugging.encode_batch_fast(texts)),
    }
    # It has no way to load a vocabulary, so it learns one: of part of the text.
    rust = rustbpe.Tokenizer()
    rust.train_from_iterator(iter(texts), arguments.vocab, pattern=QWEN2)
    out["rustbpe"] = timed(lambda: [rust.encode(text) for text in texts] if threads == 1
                           else rust.batch_encode(texts))
    return out, hugging, tik


def encode(arguments, texts, path, tokenizer, threads, folder):
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    runs, hugging, tik = encoders(arguments, texts, path, tokenizer, threads, folder)
    times = {name: [] for name in runs}
    for round in range(arguments.rounds + 1):
        for name, run in runs.items():
            seconds = run()
            if round:  # the first is to warm up
                times[name].append(seconds)
    for name, each in times.items():
        print(f"| {name} | {threads} | {megabytes / statistics.median(each):.1f} "
              f"| {megabytes / max(each):.1f} to {megabytes / min(each):.1f} |", flush=True)
    runs["homegrown"].close()
    ours = json.load(open(folder / "ids.json"))
    theirs = [encoding.ids for encoding in hugging.encode_batch_fast(texts)]
    differ = sum(a != b for a, b in zip(ours, theirs, strict=True))
    print(f"\n{sum(map(len, ours))} tokens; texts with other ids than tokenizers gives: {differ} of "
          f"{len(texts)}; than tiktoken gives (it does not normalise): "
          f"{sum(a != tik.encode_ordinary(t) for a, t in zip(ours, texts))}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text")
    parser.add_argument("out", nargs="?")
    parser.add_argument("--binary", default="target/release/examples/tokenizer_bench")
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train-rounds", type=int, default=1)
    parser.add_argument("--megabytes", type=float, default=1e9, help="of the text, from all over it")
    parser.add_argument("--encode-megabytes", type=float, default=10)
    parser.add_argument("--worker")
    arguments = parser.parse_args()
    if arguments.worker:
        return train_peer(arguments.worker, arguments.text, arguments.vocab, arguments.out)

    texts = cut(open(arguments.text, encoding="utf-8", newline="").read().replace("\0", ""))
    whole = sum(len(text.encode()) for text in texts) / 1e6
    texts = texts[::max(1, round(whole / arguments.megabytes))]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    some = texts[::max(1, round(megabytes / arguments.encode_megabytes))]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name, part in [("all", texts), ("some", some)]:
            (folder / name).write_text("".join(text + "\0" for text in part), "utf-8", newline="")
        print(f"Training, {megabytes:.1f} MB, {arguments.vocab} tokens\n\n"
              "| | threads | MB/s | s | MB of memory |\n|---|---|---|---|---|")
        for threads in arguments.threads:
            learnt = {name: train(arguments, name, str(folder / "all"), megabytes, threads, folder)
                      for name in ["homegrown", "rustbpe", "tokenizers"]}
        ours, theirs = (json.load(open(learnt[n]))["model"] for n in ["homegrown", "tokenizers"])
        pairs = list(zip(ours["merges"], theirs["merges"]))
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        print(f"\nOf {len(ours['vocab'])} tokens {len(ours['vocab'].keys() & theirs['vocab'].keys())} "
              f"are also those of tokenizers; the first {same} of {len(ours['merges'])} merges are "
              "the same.\n")
        sample = sum(len(text.encode()) for text in some) / 1e6
        print(f"Encoding, {sample:.1f} MB\n\n| | threads | MB/s (median) | slowest to fastest |\n"
              "|---|---|---|---|")
        for threads in arguments.threads:
            environ = str(threads)
            # Rayon takes its threads when it first works, so each number needs a new process.
            if os.fork() == 0:
                os.environ.update(RAYON_NUM_THREADS=environ, TOKENIZERS_PARALLELISM="true")
                encode(arguments, some, str(folder / "some"), learnt["homegrown"], threads, folder)
                os._exit(0)
            assert os.wait()[1] == 0


if __name__ == "__main__":
    main()
