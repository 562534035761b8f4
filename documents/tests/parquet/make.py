"""The parquet files beside this one: python3 -m venv v && v/bin/pip install pyarrow && v/bin/python make.py"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

here = Path(__file__).parent
pages = pa.table({
    "id": pa.array(range(1, 301)),
    "text": [f"Page {i}: naïve words, and {i % 7} more." if i % 100 else None for i in range(1, 301)],
    "url": [f"https://example.org/{i}" for i in range(1, 301)],
    "metadata": [{"date": "2024-05-01", "license": "CC0"} for _ in range(300)],
})
for packing in ["snappy", "gzip", "zstd", "none", "brotli"]:
    pq.write_table(pages, here / f"{packing}.parquet", compression=packing, row_group_size=128)
pq.write_table(pages, here / "second.parquet", compression="zstd", data_page_version="2.0", use_dictionary=False)
pq.write_table(pages, here / "delta.parquet", use_dictionary=False,
               column_encoding={"id": "PLAIN", "text": "DELTA_BYTE_ARRAY", "url": "PLAIN",
                                "metadata.date": "PLAIN", "metadata.license": "PLAIN"})
table = pa.table({
    "name": ["Ann", "Bob"],
    "born": pa.array([0, 19000], pa.date32()),
    "height": [1.7, None],
    "pets": [["cat", "dog"], []],
    "raw": [b"bytes that are text", b"\xff\xfe"],
})
pq.write_table(table, here / "table.parquet")
# A million words in a few hundred bytes.
pq.write_table(pa.table({"text": ["word " * 200] * 100_000}), here / "repeated.parquet", compression="zstd")
# 400 MB of one letter.
pq.write_table(pa.table({"text": ["a" * (400 << 20)]}), here / "bomb.parquet", compression="zstd", use_dictionary=False)
