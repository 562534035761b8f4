"""llama.cpp's side of bench.py: reads a test a line (JSON), answers with the tokens a second of each run.

A test is {"prompt": 512, "generate": 0, "depth": 0, "batch": 1, "runs": 1}. The model is loaded once, with
the threads and flags of the command line: llama.py MODEL THREADS CONTEXT SEQUENCES FLASH(0|1) REPACK(0|1) KV(f16|q8)."""

import ctypes
import json
import resource
import sys
import time

import llama_cpp as L

path, threads, context, sequences, flash, repack = sys.argv[1], *map(int, sys.argv[2:7])
L.llama_backend_init()
quiet = L.llama_log_callback(lambda *_: None)
L.llama_log_set(quiet, ctypes.c_void_p(0))
start = time.perf_counter()
mp = L.llama_model_default_params()
mp.use_extra_bufts = bool(repack)
model = L.llama_model_load_from_file(path.encode(), mp)
cp = L.llama_context_default_params()
cp.n_ctx, cp.n_batch, cp.n_ubatch, cp.n_seq_max = context * sequences, 2048, 512, sequences
cp.n_threads = cp.n_threads_batch = threads
cp.flash_attn_type = 1 if flash else 0
cp.kv_unified = True
if sys.argv[7] == "q8":
    cp.type_k = cp.type_v = L.GGML_TYPE_Q8_0
ctx = L.llama_init_from_model(model, cp)
vocab = L.llama_model_get_vocab(model)
n_vocab = L.llama_vocab_n_tokens(vocab)
memory = L.llama_get_memory(ctx)
batch = L.llama_batch_init(2048, 0, 1)
loaded = time.perf_counter() - start


def feed(tokens):
    """(token, position, sequence, wants logits)"""
    batch.n_tokens = len(tokens)
    for i, (token, position, sequence, wanted) in enumerate(tokens):
        batch.token[i], batch.pos[i] = token, position
        batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, sequence, wanted
    if L.llama_decode(ctx, batch):
        sys.exit("llama_decode failed")


def read(tokens, position, sequence):
    for start in range(0, len(tokens), 512):
        part = tokens[start : start + 512]
        last = start + len(part) == len(tokens)
        feed([(t, position + start + i, sequence, last and i + 1 == len(part)) for i, t in enumerate(part)])


def token(i):
    return (i * 7919 + 13) % n_vocab


print(json.dumps({"load_seconds": loaded}), flush=True)
for line in sys.stdin:
    test = json.loads(line)
    depth, prompt, generate, batched = test["depth"], test["prompt"], test["generate"], test["batch"]
    speeds = []
    for _ in range(test["runs"]):
        L.llama_memory_clear(memory, False)
        for s in range(batched):
            if depth:
                read([token(i) for i in range(depth)], 0, s)
        L.llama_synchronize(ctx)
        start = time.perf_counter()
        if prompt:
            read([token(i) for i in range(prompt)], depth, 0)
        for i in range(generate):
            feed([(token(i), depth + i, s, True) for s in range(batched)])
        L.llama_synchronize(ctx)
        speeds.append((prompt or generate * batched) / (time.perf_counter() - start))
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"speeds": speeds, "peak_rss_bytes": rss}), flush=True)
