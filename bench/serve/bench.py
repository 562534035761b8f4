"""A server under load: output tokens a second, times to the first token and between tokens, memory, by streams at a time.

    cargo build --release && python3 bench/serve/bench.py MODEL.gguf [--llama-server PATH] [--streams 1,4,8,16,64]

Each stream asks again and again for --tokens tokens after as many random ones, drawn at temperature 0.8.
With a llama-server (its slots: the streams; its best settings otherwise the default) the two take turns.
"""

import argparse
import http.client
import json
import random
import re
import socket
import statistics
import subprocess
import threading
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("--program", default=Path(__file__).parent / "../../target/release/homegrown")
parser.add_argument("--llama-server")
parser.add_argument("--streams", default="1,4,8,16,64")
parser.add_argument("--tokens", type=int, default=128)
parser.add_argument("--requests", type=int, default=4, help="of each stream in a round, one before them not counted")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def prompt(stream, i):
    chance = random.Random(1000 * stream + i)
    return [chance.randrange(1000, 20000) for _ in range(args.tokens)]


class Server:
    def __init__(self, kind, streams):
        port = free_port()
        need = streams * (2 * args.tokens + 64)
        if kind == "homegrown":
            command = [args.program, "serve", args.model, "--listen", f"127.0.0.1:{port}", "--threads", str(args.threads),
                       "--sequences", str(streams), "--context", str(2 * args.tokens + 64), "--tokens", str(need)]
        else:
            command = [args.llama_server, "-m", args.model, "--port", str(port), "-t", str(args.threads), "-np", str(streams),
                       "-c", str(need), "--no-webui"]
        began = time.perf_counter()
        self.port = port
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                if self.get("/health") == 200:
                    break
            except OSError:
                pass
            time.sleep(0.005)
        self.ask(prompt(0, 0), 1)
        self.first = time.perf_counter() - began

    def get(self, path):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        c.request("GET", path)
        return c.getresponse().status

    def ask(self, text, tokens):
        """Tokens of an answer, and the times of its pieces from the request on."""
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        body = dict(prompt=text, max_tokens=tokens, temperature=0.8, seed=1, stream=True, ignore_eos=True,
                    stream_options=dict(include_usage=True))
        began = time.perf_counter()
        c.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response, times, said = c.getresponse(), [], 0
        assert response.status == 200, response.read()
        for line in response:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                if chunk.get("choices"):
                    times.append(time.perf_counter() - began)
                said = (chunk.get("usage") or {}).get("completion_tokens", said)
        return said, times

    def memory(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) * 1024

    def close(self):
        self.process.terminate()
        self.process.wait()


def load(server, streams):
    """Output tokens a second of all streams together, times to the first token, times between tokens."""
    firsts, gaps, tokens = [], [], []

    def one(stream):
        server.ask(prompt(stream, 0), args.tokens)
        ready.wait()
        for i in range(1, args.requests + 1):
            said, times = server.ask(prompt(stream, i), args.tokens)
            firsts.append(times[0])
            gaps.extend(b - a for a, b in zip(times, times[1:]))
            tokens.append(said)

    ready = threading.Barrier(streams + 1)
    threads = [threading.Thread(target=one, args=(s,)) for s in range(streams)]
    [t.start() for t in threads]
    ready.wait()
    began = time.perf_counter()
    [t.join() for t in threads]
    return sum(tokens) / (time.perf_counter() - began), firsts, gaps


kinds = ["homegrown"] + (["llama-server"] if args.llama_server else [])
print(f"{args.model}, {args.tokens} tokens in and out, {args.threads} threads, medians of {args.rounds} rounds\n")
print("| streams | server | tokens/s | first token, ms, p50 | p99 | between, ms, p50 | p99 | memory, MB | ready, s |")
print("|--:|---|--:|--:|--:|--:|--:|--:|--:|")
for streams in map(int, args.streams.split(",")):
    seen = {kind: [] for kind in kinds}
    for _ in range(args.rounds):
        for kind in kinds:
            server = Server(kind, streams)
            rate, firsts, gaps = load(server, streams)
            seen[kind].append((rate, firsts, gaps, server.memory(), server.first))
            server.close()
    for kind, rounds in seen.items():
        at = lambda values, p: sorted(values)[min(int(len(values) * p), len(values) - 1)] * 1e3
        firsts, gaps = ([x for r in rounds for x in r[i]] for i in (1, 2))
        rate = statistics.median(r[0] for r in rounds)
        print(f"| {streams} | {kind} | {rate:.0f} | {at(firsts, .5):.0f} | {at(firsts, .99):.0f} | {at(gaps, .5):.1f} | "
              f"{at(gaps, .99):.1f} | {max(r[3] for r in rounds) / 1e6:.0f} | {statistics.median(r[4] for r in rounds):.2f} |", flush=True)
