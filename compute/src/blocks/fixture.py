"""Blocks of random bytes and what the package `gguf` widens them to, for `tests.rs`.

    pip install gguf numpy && python compute/src/blocks/fixture.py

Of each type 3 blocks: their bytes and, as little-endian f32, their elements.
"""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

NAMES = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS".split()
# Where the f16 scales of a block are.
SCALES = dict(Q4_0=[0], Q4_1=[0, 2], Q5_0=[0], Q5_1=[0, 2], Q8_0=[0], Q2_K=[80, 82], Q3_K=[108],
              Q4_K=[0, 2], Q5_K=[0, 2], Q6_K=[208], IQ4_NL=[0], IQ4_XS=[0])
rng = np.random.default_rng(0)
out = bytearray()
for name in NAMES:
    elements, size = GGML_QUANT_SIZES[T[name]]
    blocks = rng.integers(0, 256, (3, size), dtype=np.uint8)
    for at in SCALES[name]:
        scale = rng.normal(size=(3, 1)).astype(np.float16)
        blocks[:, at : at + 2] = scale.view(np.uint8)
    values = dequantize(blocks, T[name]).astype("<f4")
    assert values.shape == (3, elements), (name, values.shape)
    out += blocks.tobytes() + values.tobytes()
(Path(__file__).parent / "fixture.bin").write_bytes(out)
