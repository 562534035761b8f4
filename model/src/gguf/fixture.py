"""A small GGUF file by the package `gguf`, for `tests.rs`.

    pip install gguf numpy && python model/src/gguf/fixture.py
"""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

writer = GGUFWriter(Path(__file__).parent / "fixture.gguf", "llama")
writer.add_uint32("llama.block_count", 2)
writer.add_float32("llama.rope.freq_base", 10000.5)
writer.add_bool("tokenizer.ggml.add_bos_token", True)
writer.add_string("general.name", "naïve")
writer.add_int32("some.negative", -3)
writer.add_array("tokenizer.ggml.tokens", ["a", "", "ü\n"])
writer.add_array("tokenizer.ggml.scores", [0.5, -1.0, 2.0])
writer.add_array("tokenizer.ggml.token_type", [1, 3, 6])
writer.add_tensor("plain", np.arange(6, dtype=np.float32).reshape(2, 3))
writer.add_tensor("half", np.arange(4, dtype=np.float16))
blocks = np.arange(2 * 2 * 34, dtype=np.uint8).reshape(2, 68)
writer.add_tensor("blocks", blocks, raw_dtype=GGMLQuantizationType.Q8_0)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
