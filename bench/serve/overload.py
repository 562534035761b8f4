"""A server from idle to three times what it can do: times to the first token and between tokens against load, drawn.

    cargo build --release && python3 bench/serve/overload.py MODEL.gguf [--draw docs/images/overload.svg]

First the most it serves is measured, with as many streams as it computes at a time. Then requests come at random moments
(Poisson), at shares of that rate, each from a client of its own who doesn't wait for the others: --tokens in, --tokens out. And last,
what a system prompt of 1,000 tokens that all share costs until the first token.
"""

import argparse
import http.client
import json
import random
import socket
import statistics
import subprocess
import threading
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("--program", default=Path(__file__).parent / "../../target/release/homegrown")
parser.add_argument("--loads", default="0.25,0.5,0.75,1,1.5,2,3", help="shares of the most it serves")
parser.add_argument("--seconds", type=float, default=20, help="of each load")
parser.add_argument("--tokens", type=int, default=64)
parser.add_argument("--sequences", type=int, default=16)
parser.add_argument("--queue", type=int, default=16)
parser.add_argument("--draw", type=Path)
args = parser.parse_args()

with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
command = [args.program, "serve", args.model, "--listen", f"127.0.0.1:{port}", "--sequences", str(args.sequences),
           "--queue", str(args.queue), "--context", "2048", "--tokens", str(args.sequences * 2048)]
process = subprocess.Popen(command, stderr=subprocess.DEVNULL)


def ask(prompt, tokens=args.tokens):
    """Status, seconds to the first token (or to the refusal), between tokens, tokens."""
    began = time.perf_counter()
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    body = dict(prompt=prompt, max_tokens=tokens, temperature=0.8, seed=1, stream=True, ignore_eos=True,
                stream_options=dict(include_usage=True))
    c.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = c.getresponse()
    if response.status != 200:
        response.read()
        return response.status, time.perf_counter() - began, [], 0
    times, said = [], 0
    for line in response:
        if line.startswith(b"data: {"):
            chunk = json.loads(line[6:])
            times += [time.perf_counter()] if chunk.get("choices") else []
            said = (chunk.get("usage") or {}).get("completion_tokens", said)
    return 200, times[0] - began, [b - a for a, b in zip(times, times[1:])], said


chance = random.Random(1)
fresh = lambda n: [chance.randrange(1000, 20000) for _ in range(n)]
at = lambda values, p: sorted(values)[min(int(len(values) * p), len(values) - 1)] * 1e3 if values else float("nan")
try:
    while True:
        try:
            ask(fresh(4), 1)
            break
        except OSError:
            time.sleep(0.01)

    def several(n, each):
        done = [[] for _ in range(n)]
        threads = [threading.Thread(target=lambda d=d: d.extend(ask(fresh(args.tokens)) for _ in range(each))) for d in done]
        began = time.perf_counter()
        [t.start() for t in threads]
        [t.join() for t in threads]
        return sum(r[3] for d in done for r in d) / (time.perf_counter() - began)

    several(args.sequences, 1)
    most = several(args.sequences, 4)
    print(f"{args.model}: at most {most:.0f} tokens/s with {args.sequences} streams, {args.tokens} tokens in and out\n")
    print("| load | tokens/s | refused | refusal, ms, p99 | first token, ms, p50 | p99 | between, ms, p50 | p99 |\n|--:|--:|--:|--:|--:|--:|--:|--:|")
    rows = []
    for load in map(float, args.loads.split(",")):
        results, threads, began = [], [], time.perf_counter()
        due = 0.0
        while (due := due + chance.expovariate(load * most / args.tokens)) < args.seconds:
            prompt = fresh(args.tokens)
            time.sleep(max(0.0, began + due - time.perf_counter()))
            threads.append(threading.Thread(target=lambda p=prompt: results.append(ask(p))))
            threads[-1].start()
        [t.join() for t in threads]
        seconds = time.perf_counter() - began
        good, bad = [r for r in results if r[0] == 200], [r for r in results if r[0] != 200]
        assert all(r[0] == 503 for r in bad), bad
        firsts, gaps = [r[1] for r in good], [g for r in good for g in r[2]]
        row = (load, sum(r[3] for r in good) / seconds, len(bad) / max(len(results), 1), at([r[1] for r in bad], .99),
               at(firsts, .5), at(firsts, .99), at(gaps, .5), at(gaps, .99))
        rows.append(row)
        print(f"| {load:g} | {row[1]:.0f} | {row[2]:.0%} | {row[3]:.0f} | {row[4]:.0f} | {row[5]:.0f} | {row[6]:.1f} | {row[7]:.1f} |", flush=True)

    system = fresh(1000)
    first = lambda prompt: ask(prompt, 4)[1]
    with_it, without = [first(system + fresh(30)) for _ in range(12)], [first(fresh(30)) for _ in range(12)]
    a, b = statistics.median(with_it[1:]), statistics.median(without[1:])
    print(f"\nFirst token behind 1,000 shared tokens: {with_it[0] * 1e3:.0f} ms, from the second request on {a * 1e3:.1f} ms; "
          f"without them {b * 1e3:.1f} ms: {a / b:.2f} times.")
finally:
    process.terminate()
    process.wait()

if args.draw:
    import matplotlib
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    loads = [r[0] for r in rows]
    left.plot(loads, [r[1] for r in rows], "o-", label="served")
    left.plot(loads, [l * most for l in loads], ":", color="gray", label="asked for")
    left.set(xlabel="load", ylabel="tokens/s", ylim=(0, 1.4 * most))
    for column, name in [(4, "first token, median"), (5, "first token, p99"), (6, "between tokens, median"), (7, "between tokens, p99")]:
        right.plot(loads, [r[column] for r in rows], "o-", label=name)
    right.set(xlabel="load", ylabel="ms", yscale="log")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(args.draw)
