"""PDFs and office files with known text: how much of it `homegrown data prepare` reads, beside pdftotext.

    apt install libreoffice-writer libreoffice-calc libreoffice-impress poppler-utils python3.11-doc
    cargo build --release && python3 bench/documents/office.py DIR [--files 12]

LibreOffice lays out Debian's Python documentation in several ways (one to three columns, fonts, sizes,
tables between paragraphs, headers and footers, slides, sheets) and saves each as PDF, DOCX, ODT, PPTX,
ODP, XLSX, ODS. Counted: words of the source that stand in the read text, as pairs of neighbours.
"""

import argparse
import html
import json
import re
import subprocess
import time
from collections import Counter
from pathlib import Path

SOURCES = Path("/usr/share/doc/python3.11-doc/html/_sources")
BINARY = Path(__file__).parent / "../../target/release/homegrown"
SPACES = " ".join(
    f'xmlns:{n}="urn:oasis:names:tc:opendocument:xmlns:{u}:1.0"'
    for n, u in [
        ("office", "office"), ("text", "text"), ("table", "table"), ("style", "style"),
        ("draw", "drawing"), ("fo", "xsl-fo-compatible"), ("svg", "svg-compatible"),
        ("presentation", "presentation"),
    ]
)
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("folder", type=Path)
parser.add_argument("--files", type=int, default=12)
args = parser.parse_args()


def paragraphs(path):
    text = path.read_text()
    blocks = [" ".join(b.split()) for b in re.split(r"\n\s*\n", text)]
    return [b for b in blocks if 40 < len(b) < 600 and not b.startswith(".. ")][:60]


def cells(words, columns=4, rows=6):
    words = [w for w in words if w.isalnum()][: columns * rows]
    return [words[i : i + columns] for i in range(0, len(words), columns)]


def table(rows):
    cell = lambda w: f'<table:table-cell office:value-type="string"><text:p>{html.escape(w)}</text:p></table:table-cell>'
    row = lambda r: "<table:table-row>" + "".join(map(cell, r)) + "</table:table-row>"
    return f'<table:table table:name="T"><table:table-column table:number-columns-repeated="4"/>{"".join(map(row, rows))}</table:table>'


def document(kind, body, styles="", masters=""):
    mime = {"text": "text", "spreadsheet": "spreadsheet", "presentation": "presentation"}[kind]
    return (
        f'<?xml version="1.0"?><office:document {SPACES} office:version="1.2" '
        f'office:mimetype="application/vnd.oasis.opendocument.{mime}">'
        f"<office:automatic-styles>{styles}</office:automatic-styles>"
        f"<office:master-styles>{masters}</office:master-styles>"
        f"<office:body><office:{kind}>{body}</office:{kind}></office:body></office:document>"
    )


def writer(i, blocks):
    columns, font = 1 + i % 3, ["Liberation Serif", "Liberation Sans", "DejaVu Sans Mono"][i // 3 % 3]
    page = '<style:page-layout style:name="L"><style:page-layout-properties fo:page-width="21cm" fo:page-height="29.7cm" fo:margin="2cm"/><style:header-style/><style:footer-style/></style:page-layout>'
    styles = page + (
        f'<style:style style:name="P" style:family="paragraph"><style:text-properties style:font-name="{font}" fo:font-family="{font}" fo:font-size="{8 + i % 4}pt"/></style:style>'
        f'<style:style style:name="S" style:family="section"><style:section-properties><style:columns fo:column-count="{columns}" fo:column-gap="0.6cm"/></style:section-properties></style:style>'
    )
    masters = f'<style:master-page style:name="Standard" style:page-layout-name="L"><style:header><text:p>Header of file {i}</text:p></style:header><style:footer><text:p>Page <text:page-number>1</text:page-number></text:p></style:footer></style:master-page>'
    body, words = [], []
    for n, block in enumerate(blocks):
        body.append(f'<text:p text:style-name="P">{html.escape(block)}</text:p>')
        words.append(block)
        if n % 9 == 4:
            rows = cells(block.split())
            body.append(table(rows))
            words += [" ".join(r) for r in rows]
    section = f'<text:section text:style-name="S" text:name="S">{"".join(body)}</text:section>'
    return document("text", section, styles, masters), words


def sheet(blocks):
    rows = [r for b in blocks for r in cells(b.split(), 6, 3)]
    return document("spreadsheet", table(rows)), [" ".join(r) for r in rows]


def slides(blocks):
    def page(i, block):
        frame = f'<draw:frame svg:width="22cm" svg:height="14cm" svg:x="2cm" svg:y="3cm"><draw:text-box><text:p>{html.escape(block)}</text:p></draw:text-box></draw:frame>'
        return f'<draw:page draw:name="p{i}" draw:master-page-name="M">{frame}</draw:page>'
    masters = '<style:master-page style:name="M" style:page-layout-name="L"/>'
    styles = '<style:page-layout style:name="L"><style:page-layout-properties fo:page-width="28cm" fo:page-height="21cm"/></style:page-layout>'
    body = "".join(page(i, b) for i, b in enumerate(blocks[:20]))
    return document("presentation", body, styles, masters), blocks[:20]


def pairs(text):
    words = re.findall(r"\w+", text.replace("\u00ad", ""))
    return Counter(zip(words, words[1:]))


def found(wanted, text):
    """Share of the neighbours inside of each text that the read text has."""
    have, want = pairs(text), Counter()
    for part in wanted:
        want += pairs(part)
    return sum(min(n, have[p]) for p, n in want.items()) / max(1, sum(want.values()))


folder = args.folder
folder.mkdir(parents=True, exist_ok=True)
wanted = {}
sources = [p for p in sorted(SOURCES.glob("library/*.txt")) if len(paragraphs(p)) >= 30]
for i, path in enumerate(sources[:: max(1, len(sources) // args.files)][: args.files]):
    blocks = paragraphs(path)
    for kind, (text, words), formats in [
        ("fodt", writer(i, blocks), ["pdf", "docx", "odt"]),
        ("fods", sheet(blocks), ["xlsx", "ods"]),
        ("fodp", slides(blocks), ["pptx", "odp", "pdf"]),
    ]:
        name = f"{path.name.split('.')[0]}-{kind}"
        flat = folder / "flat" / f"{name}.{kind}"
        flat.parent.mkdir(exist_ok=True)
        flat.write_text(text)
        for form in formats:
            wanted[folder / form / f"{name}.{form}"] = words
for form in sorted({p.suffix[1:] for p in wanted}):
    flats = [str(folder / "flat" / f"{p.stem}.{p.stem[-4:]}") for p in wanted if p.suffix == f".{form}"]
    subprocess.run(["soffice", "--headless", "--convert-to", form, "--outdir", str(folder / form), *flats],
                   check=True, capture_output=True)

start = time.time()
out = folder / "read"
subprocess.run([BINARY, "data", "prepare", *sorted({str(p.parent) for p in wanted}), "--out", out,
                "--clean", "plain", "--set", "exact=false", "--set", "heldout=0.0"], check=True, capture_output=True)
seconds = time.time() - start
texts = Counter()
texts = {}
for line in (out / "documents.jsonl").open():
    d = json.loads(line)
    key = re.split(r"[!#]", d["source"])[0]
    texts[key] = texts.get(key, "") + "\n" + d["text"]
print("| format | files | words found | least of a file | pdftotext |\n|---|--:|--:|--:|--:|")
for form in sorted({p.suffix for p in wanted}):
    files = [p for p in wanted if p.suffix == form]
    shares = [found(wanted[p], texts.get(str(p), "")) for p in files]
    peer = ""
    if form == ".pdf":
        read = lambda p: subprocess.run(["pdftotext", p, "-"], capture_output=True, text=True).stdout
        other = [found(wanted[p], read(p)) for p in files]
        peer = f"{sum(other) / len(other):.1%} (least {min(other):.1%})"
    print(f"| {form[1:]} | {len(files)} | {sum(shares) / len(shares):.1%} | {min(shares):.1%} | {peer} |")
print(f"\n{len(wanted)} files, {sum(p.stat().st_size for p in wanted) / 1e6:.1f} MB, read and written in {seconds:.1f} s")
