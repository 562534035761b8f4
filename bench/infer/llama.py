"""llama.cpp's side: its own programs, llama-bench and llama-batched-bench, one turn of a test at a time."""

import json
import os
import subprocess
from pathlib import Path


def run(*command):
    """What a program printed, and the most memory it had."""
    command = [str(part) for part in command]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed ({process.returncode})")
    return said, usage.ru_maxrss * 1024


def turn(programs: Path, model, prompt=0, generate=0, depth=0, batch=1, threads=2, flags="flash+repack", kv="f16"):
    """Tokens a second and peak memory of `prompt` tokens at once, or of `generate` one after the other in each of
    `batch` sequences, after `depth` others. Flags: flash, repack, both with +, or neither."""
    flash, repack = "flash" in flags, "repack" in flags
    kinds = ["-ctk", "q8_0", "-ctv", "q8_0"] if kv == "q8" else []
    if batch == 1:
        shape = ["-p", prompt, "-n", generate, "-d", depth, "-r", 1, "-o", "json"]
        how = ["-fa", "on" if flash else "off", "--repack", int(repack), *kinds]
        said, memory = run(programs / "llama-bench", "-m", model, "-t", threads, *shape, *how)
        return json.loads(said)[0]["avg_ts"], memory
    before = max(depth, 1)
    shape = ["-npp", before, "-ntg", generate, "-npl", batch, "-c", (before + generate) * batch, "--output-format", "jsonl"]
    how = ["-fa", "on" if flash else "off", *([] if repack else ["--no-repack"]), *kinds]
    said, memory = run(programs / "llama-batched-bench", "-m", model, "-t", threads, *shape, *how)
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return lines[0]["speed_tg"], memory
