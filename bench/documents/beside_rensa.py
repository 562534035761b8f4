"""MinHash signatures and index (128 permutations, 16 bands, shingles of 5 words) of rensa, on one thread, in
seconds of the core.

    venv/bin/pip install rensa
    RAYON_NUM_THREADS=1 venv/bin/python bench/documents/beside_rensa.py TEXTS.jsonl
    cargo run --release -p homegrown-documents --example minhash -- TEXTS.jsonl
"""

import json
import re
import sys
import time

from rensa import RMinHash, RMinHashLSH

texts = [json.loads(line)["text"] for line in open(sys.argv[1])]
megabytes = sum(len(t.encode()) for t in texts) / 1e6
print(f"{len(texts)} documents, {megabytes:.1f} MB")
# Shingles are Python's, a part at a time: all of them at once would not fit into memory.
seconds, matrices, kept, PART = dict.fromkeys(["words and shingles", "signatures", "index"], 0.0), [], [], 2000


def timed(name, run):
    start = time.process_time()
    result = run()
    seconds[name] += time.process_time() - start
    return result


def shingles(text):
    words = re.findall(r"\w+", text.lower())
    return [" ".join(words[i : i + 5]) for i in range(len(words) - 4)]


lsh, duplicates = RMinHashLSH(threshold=0.7, num_perm=128, num_bands=16), 0
for at in range(0, len(texts), PART):
    sets = timed("words and shingles", lambda: [s for s in map(shingles, texts[at : at + PART]) if s])
    matrix = timed("signatures", lambda: RMinHash.digest_matrix_from_token_sets(sets, 128, 42))
    flags = timed("index", lambda: lsh.insert_matrix_and_query_duplicate_flags(matrix, at))
    duplicates += sum(flags)
for name, s in seconds.items():
    print(f"{name}: {s:.2f} s, {megabytes / s:.0f} MB/s")
both = seconds["signatures"] + seconds["index"]
print(f"signatures and index: {both:.2f} s, {megabytes / both:.0f} MB/s; all: {megabytes / sum(seconds.values()):.0f} MB/s")
print(f"{duplicates} near duplicates")
