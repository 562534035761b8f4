"""Rows of f32 and what the package `gguf` narrows them to, for `tests.rs`.

    pip install gguf numpy && python compute/src/blocks/narrow/fixture.py

First the elements, little-endian; then, type by type, their bytes.
"""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import quantize

rng = np.random.default_rng(0)
blocks = rng.normal(size=(8, 32)).astype(np.float32)
blocks[1] *= 1e-3
blocks[2] *= 300
blocks[3] = 0
blocks[4, 5:] = 0  # most of it zeros
blocks[5] = np.abs(blocks[5])
blocks[6] = -np.abs(blocks[6])
blocks[7] = np.arange(-16, 16) / 8  # exact, with halves between codes
out = bytearray(blocks.astype("<f4").tobytes())
for name in "F16 BF16 Q4_0 Q5_1 Q8_0".split():
    out += quantize(blocks, T[name]).tobytes()
(Path(__file__).parent / "fixture.bin").write_bytes(out)
