"""SmolLM2 learns to solve word problems with a calculator: part of gsm8k-train.jsonl becomes conversations with calls,
the rest is asked before and after.

    python3 bench/tune/gsm8k.py data gsm8k-train.jsonl CHATS.jsonl --train 900
    homegrown grow --base MODEL.gguf --chats CHATS.jsonl --set data.template=chatml --out RUN
    python3 bench/tune/gsm8k.py ask gsm8k-train.jsonl MODEL --questions 150

The first lines are learned, the last ones asked. `ask` lets a model answer greedily, with the calculator, and takes the
number after the last ####, or else the last number it says.
"""

import argparse
import json
import re
import statistics
import subprocess
import time
from pathlib import Path

HOMEGROWN = Path(__file__).parent / "../../target/release/homegrown"
MARK = re.compile(r"<<([^=<>]*)=([^<>]*)>>")
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")


def conversation(row):
    """`… = <<48/2=24>>24 clips` is a call of the calculator in the middle of an answer, and its result."""
    messages, at = [{"role": "user", "content": row["question"]}], 0
    for mark in MARK.finditer(row["answer"]):
        said = row["answer"][at : mark.start()].strip()
        call = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": mark[1]}}}
        messages.append({"role": "assistant", "content": said, "tool_calls": [call]})
        messages.append({"role": "tool", "content": mark[2]})
        at = mark.end()
    messages.append({"role": "assistant", "content": row["answer"][at:].strip()})
    return {"messages": messages}


def number(text):
    found = NUMBER.findall(text.split("####")[-1]) or NUMBER.findall(text)
    return float(found[0 if "####" in text else -1].replace(",", "").rstrip(".")) if found else None


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
commands = parser.add_subparsers(dest="command", required=True)
data = commands.add_parser("data")
data.add_argument("rows", type=Path)
data.add_argument("chats", type=Path)
data.add_argument("--train", type=int, default=900)
ask = commands.add_parser("ask")
ask.add_argument("rows", type=Path)
ask.add_argument("model")
ask.add_argument("--questions", type=int, default=150)
ask.add_argument("--max-tokens", type=int, default=300)
args = parser.parse_args()
rows = [json.loads(line) for line in args.rows.read_text().splitlines()]
if args.command == "data":
    args.chats.write_text("".join(json.dumps(conversation(row)) + "\n" for row in rows[: args.train]))
else:
    right, calls, seconds = 0, 0, []
    for row in rows[-args.questions :]:
        began = time.perf_counter()
        command = [HOMEGROWN, "chat", args.model, "--message", row["question"], "--temperature", "0", "--json"]
        out = subprocess.run([*command, "--max-tokens", str(args.max_tokens)], capture_output=True, text=True)
        seconds.append(time.perf_counter() - began)
        # A conversation that fills the context has no answer.
        messages = json.loads(out.stdout)["messages"] if out.returncode == 0 else []
        calls += sum(len(m.get("tool_calls", [])) for m in messages)
        said = " ".join(m["content"] for m in messages if m["role"] == "assistant")
        right += number(said) == number(row["answer"])
    n = args.questions
    print(json.dumps({"model": args.model, "right": right, "of": n, "share": right / n, "calls_a_question": calls / n,
                      "seconds_a_question": statistics.median(seconds)}))
