"""Text of this machine, cut into documents: JSONL files for the comparisons beside this one.

    python3 bench/documents/texts.py OUT.jsonl --megabytes 500 PATH...

Text files and sources as they are, pages without tags, a large file in pieces of 2 to 20 kB between
paragraphs. When the paths hold less than was asked for, they are gone through again with words changed:
few of some documents, so that there are near duplicates, half of others, so that there are new texts.
"""

import argparse
import html
import json
import random
import re
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("out", type=Path)
parser.add_argument("paths", type=Path, nargs="+")
parser.add_argument("--megabytes", type=float, default=500)
args = parser.parse_args()
TEXT = {".txt", ".rst", ".md", ".html", ".rs", ".c", ".h", ".py", ".toml"}
rng = random.Random(1)


def texts():
    for path in args.paths:
        for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in TEXT and p.is_file()):
            text = file.read_text(errors="replace")
            if file.suffix == ".html":
                text = re.sub(r"(?s)<(script|style|head|nav)\b.*?</\1>|<[^>]*>", " ", text)
                text = re.sub(r"[ \t]+", " ", html.unescape(text))
                text = re.sub(r"\n\s*\n+", "\n\n", text)
            if len(text) < 40_000:
                yield text.strip()
                continue
            part, size = [], rng.randint(2_000, 20_000)
            for paragraph in text.split("\n\n"):
                part.append(paragraph)
                if sum(map(len, part)) >= size:
                    yield "\n\n".join(part)
                    part, size = [], rng.randint(2_000, 20_000)
            yield "\n\n".join(part)


def changed(text):
    """Half of the words of some documents, few of others."""
    share = rng.choice([0.005, 0.02, 0.5])
    return re.sub(r"[A-Za-z]{4,}", lambda m: m[0][::-1] if rng.random() < share else m[0], text)


written, number, time_round = 0, 0, 0
with args.out.open("w") as out:
    while written < args.megabytes * 1e6:
        before = written
        for text in texts():
            if time_round:
                text = changed(text)
            if not text:
                continue
            written += out.write(json.dumps({"text": text, "id": str(number)}, ensure_ascii=False) + "\n")
            number += 1
            if written >= args.megabytes * 1e6:
                break
        time_round += 1
        if written == before:
            raise SystemExit("there is no text")
print(f"{number} documents, {args.out.stat().st_size / 1e6:.1f} MB, {time_round} times through")
