"""A model of random weights in the shape of Llama 3.2 1B, for speed alone: F16, then what llama.cpp makes of it.

    pip install gguf numpy
    python bench/infer/random_model.py SMOLLM2.gguf FOLDER --llama FOLDER_OF_LLAMA_CPP'S_PROGRAMS [--types Q4_K_M,Q8_0,Q4_0]

The tokenizer is that of the GGUF file given, with unused tokens up to Llama's 128,256.
"""

import argparse
from pathlib import Path

import gguf
import llama
import numpy as np

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("source")
parser.add_argument("folder", type=Path)
parser.add_argument("--llama", type=Path, required=True)
parser.add_argument("--types", default="Q4_K_M,Q8_0,Q4_0")
args = parser.parse_args()
folder = args.folder
LAYERS, DIM, HEADS, KV_HEADS, HEAD, FFN, VOCAB = 16, 2048, 32, 8, 64, 8192, 128256

folder.mkdir(parents=True, exist_ok=True)
reader = gguf.GGUFReader(args.source)
path = folder / "random-1b-F16.gguf"
writer = gguf.GGUFWriter(path, "llama")
writer.add_context_length(131072)
writer.add_embedding_length(DIM)
writer.add_block_count(LAYERS)
writer.add_feed_forward_length(FFN)
writer.add_head_count(HEADS)
writer.add_head_count_kv(KV_HEADS)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_freq_base(500000.0)
writer.add_rope_dimension_count(HEAD)
writer.add_vocab_size(VOCAB)
writer.add_file_type(1)
field = lambda key: reader.fields[key].contents()
tokens = field("tokenizer.ggml.tokens")
unused = [f"<unused{i}>" for i in range(VOCAB - len(tokens))]
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre(field("tokenizer.ggml.pre"))
writer.add_token_list(tokens + unused)
writer.add_token_types(field("tokenizer.ggml.token_type") + [5] * len(unused))
writer.add_token_merges(field("tokenizer.ggml.merges"))
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)
random = np.random.default_rng(0)


def matrix(name, rows, cols):
    weights = random.standard_normal((rows, cols), dtype=np.float32) * cols**-0.5
    writer.add_tensor(name, weights.astype(np.float16))


matrix("token_embd.weight", VOCAB, DIM)
writer.add_tensor("output_norm.weight", np.ones(DIM, np.float32))
for i in range(LAYERS):
    for norm in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.{i}.{norm}.weight", np.ones(DIM, np.float32))
    matrix(f"blk.{i}.attn_q.weight", HEADS * HEAD, DIM)
    matrix(f"blk.{i}.attn_k.weight", KV_HEADS * HEAD, DIM)
    matrix(f"blk.{i}.attn_v.weight", KV_HEADS * HEAD, DIM)
    matrix(f"blk.{i}.attn_output.weight", DIM, HEADS * HEAD)
    matrix(f"blk.{i}.ffn_gate.weight", FFN, DIM)
    matrix(f"blk.{i}.ffn_up.weight", FFN, DIM)
    matrix(f"blk.{i}.ffn_down.weight", DIM, FFN)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
print(path, path.stat().st_size >> 20, "MiB")
for name in args.types.split(","):
    out = folder / f"random-1b-{name}.gguf"
    llama.run(args.llama / "llama-quantize", path, out, name, 2)
    print(out, out.stat().st_size >> 20, "MiB")
