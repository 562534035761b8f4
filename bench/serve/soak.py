"""A server among all kinds of clients for a while: it has to stay up, in its memory, and right.

    cargo build --release && python3 bench/serve/soak.py MODEL.gguf [--minutes 30]

Good questions are asked alone first. Then --clients of them at a time do what comes to mind: ask a good question (the
answer has to be the same, byte for byte), leave in the middle of a stream, send nonsense or too much, send slowly, read slowly,
reset the connection. Nonsense has to be refused by a 4xx with a JSON error. At the end nothing may run, no connection may be
left, memory may not have grown since the first tenth, and the server has to end when it is asked to.
"""

import argparse
import http.client
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("--program", default=Path(__file__).parent / "../../target/release/homegrown")
parser.add_argument("--minutes", type=float, default=30)
parser.add_argument("--clients", type=int, default=12)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--pause", type=float, default=0.2, help="seconds between what a client does")
parser.add_argument("--grown", type=float, default=32, help="MB that memory may grow by")
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
JSON = {"Content-Type": "application/json"}


def turns(i):
    words = random.Random(i).choices("name some colours and tell me about the sea in spring or why cats sleep".split(), k=4 + 5 * i)
    return [{"role": "user", "content": " ".join(words)}]


def good(i):
    """A path and a request whose answer is decided by it."""
    drawn = dict(seed=i, temperature=0 if i % 5 == 0 else 0.8)
    tokens = 8 + 3 * i
    match i % 4:
        case 0:
            return CHAT, dict(messages=turns(i), max_tokens=tokens, **drawn)
        case 1:
            return TEXT, dict(prompt=turns(i)[0]["content"], max_tokens=tokens, **drawn)
        case 2:
            return RESPONSES, dict(input=turns(i), max_output_tokens=tokens, **drawn)
        case _:
            return MESSAGES, dict(messages=turns(i), max_tokens=tokens, **drawn)


GOOD = [good(i) for i in range(16)]


def said(path, answer):
    match path:
        case "/v1/chat/completions":
            return answer["choices"][0]["message"]["content"]
        case "/v1/completions":
            return answer["choices"][0]["text"]
        case "/v1/responses":
            return answer["output"][0]["content"][0]["text"]
        case _:
            return answer["content"][0]["text"] if answer["content"] else ""


def ask(path, body):
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    c.request("POST", path, body if isinstance(body, bytes) else json.dumps(body), JSON)
    response = c.getresponse()
    text = response.read()
    c.close()
    return response.status, json.loads(text), response.headers


def begun(body, path=CHAT, receive=None):
    """A connection on which a request was sent."""
    s = socket.socket()
    if receive:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    s.settimeout(120)
    s.connect(("127.0.0.1", port))
    data = json.dumps(body).encode()
    s.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    return s


def right(chance):
    i = chance.randrange(len(GOOD))
    path, body = GOOD[i]
    status, answer, headers = ask(path, body)
    if status == 503:
        assert headers["Retry-After"], answer
        return "refused: full"
    assert status == 200 and said(path, answer) == alone[i], (i, status, answer, alone[i])
    return "right"


def streamed(chance):
    i = 4 * chance.randrange(4)
    s = begun(GOOD[i][1] | dict(stream=True))
    text = b""
    while not text.endswith(b"0\r\n\r\n") and (some := s.recv(65536)):
        text += some
        if b" 503 " in text[:20]:
            return "refused: full"
    s.close()
    pieces = [json.loads(line[6:]) for line in text.split(b"\n") if line.startswith(b"data: {")]
    whole = "".join(p["choices"][0]["delta"].get("content", "") for p in pieces)
    assert whole == alone[i], (i, whole, alone[i])
    return "right, in a stream"


def leaves(chance):
    path, body = GOOD[chance.choice([0, 2, 3])]
    key = "max_output_tokens" if path == RESPONSES else "max_tokens"
    s = begun(body | {"stream": True, key: 400}, path)
    s.recv(chance.choice([1, 300, 3000]))
    if chance.random() < 0.5:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    s.close()
    return "left"


def leaves_at_once(chance):
    s = begun(GOOD[chance.randrange(16)][1] | dict(n=2, max_tokens=200))
    s.close()
    return "left at once"


JUNK = [None, True, -1, 1e300, "x", "\0", [], {}, [[]], [None], {"a": [1]}, "hot", 2**70, [{"role": "robot"}], [{"type": "x"}]]


def nonsense(chance):
    path, body = GOOD[chance.randrange(16)]
    kind = chance.randrange(5)
    if kind == 0:
        data = json.dumps(body).encode()
        data = data[: chance.randrange(len(data))]
    elif kind == 1:
        data = chance.randbytes(chance.randrange(2000))
    elif kind == 2:
        data = b"[" * chance.randrange(1000, 100_000)
    elif kind == 3:
        data = json.dumps(body | dict(temperature=chance.choice([-1, "hot", [], 1e300]), stop=[""])).encode()
    else:
        body = dict(body)
        body[chance.choice([*body, "tools", "stop", "n", "logit_bias"])] = chance.choice(JUNK)
        body = {"max_tokens": 3} | body | ({"max_output_tokens": 3} if path == RESPONSES else {})
        status, answer, _ = ask(path, body)
        # Some of it is taken: a null, or what another path knows.
        assert status < 500 or status == 503, (body, answer)
        assert status == 200 or answer["error"]["message"], answer
        return "nonsense"
    status, answer, _ = ask(path, data)
    assert 400 <= status < 500 and answer["error"]["message"], (status, data[:100], answer)
    return "nonsense"


def too_much(chance):
    if chance.random() < 0.5:
        body = GOOD[0][1] | dict(messages=[{"role": "user", "content": "much " * 200_000}])  # more than the context
        status, answer, _ = ask(CHAT, body)
        if status == 503:
            return "refused: full"
        assert status == 400 and answer["error"]["code"] == "context_length_exceeded", (status, answer)
        return "too much"
    try:
        status, answer, _ = ask(CHAT, b" " * (6 << 20))
        assert status == 413, answer
    except (BrokenPipeError, ConnectionResetError):
        pass  # it needn't read it to the end
    return "too much"


def sends_slowly(chance):
    s = socket.create_connection(("127.0.0.1", port), timeout=60)
    try:
        for byte in b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n"[: chance.randrange(20, 90)]:
            s.send(bytes([byte]))
            time.sleep(0.05)
    except OSError:
        pass
    s.close()
    return "sent slowly"


def reads_slowly(chance):
    s = begun(GOOD[4][1] | dict(stream=True, logprobs=True, top_logprobs=20), receive=2048)
    text = b""
    while not text.endswith(b"0\r\n\r\n") and (some := s.recv(512)):
        text += some
        if b" 503 " in text[:20]:
            return "refused: full"
        time.sleep(0.01)
    s.close()
    assert b"data: [DONE]" in text, text[-300:]
    return "read slowly"


DEEDS = [right] * 6 + [streamed] * 3 + [leaves] * 2 + [leaves_at_once, nonsense, nonsense, nonsense, too_much, sends_slowly, reads_slowly]
counts, faults = Counter(), []


def client(number):
    chance = random.Random(args.seed * 1000 + number)
    while time.monotonic() < until and not faults:
        deed = chance.choice(DEEDS)
        try:
            counts[deed(chance)] += 1
        except Exception as e:  # whatever it is, it is told
            faults.append(f"{deed.__name__}: {e!r}")
        time.sleep(chance.random() * 2 * args.pause)


def memory():
    return int(re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{server.pid}/status").read_text())[1]) / 1024


def sockets():
    n = 0
    for f in os.scandir(f"/proc/{server.pid}/fd"):
        try:
            n += os.readlink(f.path).startswith("socket:")
        except FileNotFoundError:
            pass  # closed meanwhile
    return n


def health():
    began = time.monotonic()
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    c.request("GET", "/health")
    assert c.getresponse().status == 200
    return time.monotonic() - began


command = [args.program, "serve", args.model, "--listen", "127.0.0.1:0", "--threads", str(args.threads),
           "--sequences", "4", "--queue", "4", "--context", "1024"]
server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
for line in server.stderr:
    if found := re.search(r"http://\S+:(\d+)/v1", line):
        port = int(found[1])
        break
threading.Thread(target=lambda: faults.extend(l for l in server.stderr if "panicked" in l), daemon=True).start()
alone = [said(path, ask(path, body)[1]) for path, body in GOOD]
quiet = sockets()
began = time.monotonic()
until = began + args.minutes * 60
threads = [threading.Thread(target=client, args=(n,)) for n in range(args.clients)]
[t.start() for t in threads]
first, slowest, told = None, 0.0, 0
while any(t.is_alive() for t in threads):
    time.sleep(min(5, args.minutes * 3))
    if server.poll() is not None:
        faults.append(f"the server ended: {server.returncode}")
        break
    passed = time.monotonic() - began
    try:
        slowest = max(slowest, health())
    except Exception as e:
        faults.append(f"health: {e!r}")
    if passed > args.minutes * 6:
        first = first or memory()
    if passed > told:
        told += args.minutes * 6
        print(f"{passed / 60:5.1f} min, {memory():6.1f} MB, {sockets()} sockets, {sum(counts.values())} deeds", flush=True)
[t.join(130) for t in threads]
if server.poll() is None:
    time.sleep(3)
    last = memory()
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    c.request("GET", "/metrics")
    running = re.search(r"vllm:num_requests_running (\d+)", c.getresponse().read().decode())[1]
    c.close()
    time.sleep(1)
    left = sockets() - quiet
    for i, (path, body) in enumerate(GOOD):
        if said(path, ask(path, body)[1]) != alone[i]:
            faults.append(f"question {i} has another answer now")
    if first and last > first + args.grown:
        faults.append(f"memory grew from {first:.0f} to {last:.0f} MB")
    if running != "0":
        faults.append(f"{running} answers still run")
    if left > 0:
        faults.append(f"{left} sockets are left")
    server.send_signal(signal.SIGTERM)
    if server.wait(60) != 0:
        faults.append(f"it ended with {server.returncode}")
    print(f"memory {first or last:.1f} to {last:.1f} MB, /health in {slowest * 1000:.0f} ms at most")
print(dict(sorted(counts.items())))
if faults:
    raise SystemExit("\n".join(faults[:20]))
print(f"{args.minutes:g} minutes: no crash, memory flat, every answer right")
