"""Everything about a card in one call: whether it computes what the CPU computes, and how fast it is.

    python3 run.py BINARY [--out FOLDER] [--model GGUF]... [--python PYTHON_WITH_TORCH] [--minutes 9]

Checks, prompts and answers, then training steps beside PyTorch. A part that fails, or has no time left, is told, and
the next one begins. FOLDER ($OUT if there is that) gets results.json and table.md, which are written anew after every
measurement. Exit 1 if anything failed. Needs nothing but Python 3.9 and the binary; PyTorch only for its own figures.

With --device cpu --tiny it tries itself, in a minute or two, on a machine without a card.
"""

import argparse
import atexit
import hashlib
import json
import os
import selectors
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Of 50,304 tokens; heads of 64. batch_tokens make a step, micro_tokens go through the model at a time.
SIZES = {
    "124M": dict(layers=12, dim=768, heads=12, ffn=2048, batch_tokens=65536, micro_tokens=16384),
    "350M": dict(layers=24, dim=1024, heads=16, ffn=2752, batch_tokens=32768, micro_tokens=8192),
    "1.5B": dict(layers=48, dim=1600, heads=25, ffn=4288, batch_tokens=16384, micro_tokens=4096),
    "tiny": dict(layers=2, dim=64, heads=2, ffn=128, batch_tokens=512, micro_tokens=256),
}
# The shape of Llama 3.2 1B, and one to try the script.
RANDOM = {
    "1B": dict(layers=16, dim=2048, heads=32, kv_heads=8, head_dim=64, ffn=8192, vocab=128256, context=8192),
    "tiny": dict(layers=2, dim=64, heads=2, kv_heads=1, head_dim=32, ffn=128, vocab=512, context=512),
}
RECIPE = """
[world]
people = 32
first_names = 32
last_names = 32
[corpus]
documents = 1000
conversations = 200
finetune = 100
heldout = 50
[tokenizer]
vocab_size = 512
[model]
context = 128
layers = 2
dim = 64
heads = 2
kv_heads = 1
head_dim = 32
ffn = 192
[pretrain]
tokens = 65_536
batch_tokens = 1024
micro_tokens = 1024
validate_tokens = 65_536
sample_tokens = 0
"""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("binary", type=Path)
parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "card-results"))
parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
parser.add_argument("--minutes", type=float, default=9.0, help="after which it ends, whatever is left")
parser.add_argument("--parts", default="checks,inference,training")
parser.add_argument("--model", type=Path, action="append", default=[], help="GGUF file or folder; several are possible")
parser.add_argument("--sizes", default="124M,350M,1.5B", help="of models that are trained")
parser.add_argument("--contexts", default="1024,2048")
parser.add_argument("--steps", type=int, default=5, help="of a turn")
parser.add_argument("--rounds", type=int, default=3, help="turns of each at most")
parser.add_argument("--python", default=sys.executable, help="that has PyTorch")
parser.add_argument("--compile", default="layers", choices=["layers", "whole", "none"], help="what torch.compile gets")
parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the script")
args = parser.parse_args()
if not set(args.parts.split(",")) <= {"checks", "inference", "training"}:
    parser.error("--parts: some of checks,inference,training")
if args.tiny:
    args.sizes, args.contexts, args.steps, args.rounds = "tiny", "64,128", 2, 2
BEGAN = time.monotonic()
END = BEGAN + 60 * args.minutes
# Of the time; a part also has what those before it leave.
SHARES = {"checks": 0.25, "inference": 0.25, "training": 0.5}
results = dict(schema_version=1, device=args.device, machine={}, checks=[], inference=[], training=[], failures=[])
environment = dict(os.environ)
until = END
# For recipes, runs and random models of some gigabytes.
WORK = Path(tempfile.mkdtemp(prefix="homegrown-card-"))
atexit.register(shutil.rmtree, WORK, ignore_errors=True)


class Failed(Exception):
    pass


def say(text):
    print(f"[{time.monotonic() - BEGAN:5.0f} s] {text}", flush=True)


def save():
    results["seconds"] = round(time.monotonic() - BEGAN, 1)
    for name, text in [("results.json", json.dumps(results, indent=1)), ("table.md", table())]:
        (args.out / name).write_text(text + "\n")


def failed(what, why):
    say(f"FAILED: {what}: {why}")
    results["failures"].append({"what": what, "why": str(why)})
    save()


def attempt(what, f, *values):
    """What f gives, or None where it failed; that is told."""
    try:
        return f(*values)
    except Failed as error:
        failed(what, error)
    except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
        failed(what, f"{type(error).__name__}: {error}")
    return None


def left():
    seconds = until - time.monotonic()
    if seconds < 1:
        raise Failed("no time left")
    return seconds


def call(command):
    """What a command prints."""
    command = [str(word) for word in command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=left(), env=environment)
    except subprocess.TimeoutExpired:
        raise Failed(f"no time left for {' '.join(command)}") from None
    if done.returncode != 0:
        text = (done.stderr or done.stdout).strip()[-2000:]
        raise Failed(f"exit {done.returncode} of {' '.join(command)}: {text}")
    return done.stdout


def homegrown(*words):
    return json.loads(call([args.binary, *words, "--json"]))


def check(name, passed, detail):
    say(f"{'passed' if passed else 'FAILED'}: {name}: {detail}")
    results["checks"].append({"name": name, "passed": passed, "detail": detail})
    if not passed:
        results["failures"].append({"what": name, "why": detail})
    save()


# Checks


def grown(dtype, device, turn):
    """A tiny model that is trained: losses, and the hash of the weights."""
    folder = WORK / f"run-{dtype}-{device.replace(':', '-')}-{turn}"
    recipe = WORK / "recipe.toml"
    recipe.write_text(RECIPE)
    words = ["--set", f'pretrain.dtype="{dtype}"', "--device", device, "--out", folder, "--until", "pretrain"]
    homegrown("grow", recipe, *words)
    lines = (folder / "pretrain" / "metrics.jsonl").read_text().splitlines()
    losses = [step["loss"] for step in map(json.loads, lines) if "loss" in step]
    weights = (folder / "base" / "model.safetensors").read_bytes()
    return folder / "base", losses, hashlib.sha256(weights).hexdigest()


def check_training(dtype, most):
    _, expected, _ = grown(dtype, "cpu", 0)
    _, first, weights = grown(dtype, args.device, 1)
    _, second, again = grown(dtype, args.device, 2)
    same = len(expected) == len(first) and len(first) > 0
    off = max((abs(a - b) / b for a, b in zip(first, expected)), default=0.0)
    detail = f"{len(first)} steps, {first[0]:.4f} to {first[-1]:.4f}, at most {off:.2e} off (allowed: {most:.0e})"
    check(f"losses of training in {dtype}: {args.device} and cpu", same and off <= most, detail)
    equal = weights == again and first == second
    check(f"training in {dtype} twice on {args.device}: the same bytes", equal, f"sha256 {weights[:16]} and {again[:16]}")


def answer(model, device):
    words = ["--raw", "--prompt", "The cat sat on the", "--max-tokens", 32, "--logprobs", 1, "--context", 128]
    whole = homegrown("generate", model, *words, "--device", device)
    return whole["text"], json.dumps({k: whole[k] for k in whole if k in ("text", "tokens", "logprobs")})


def check_model(name, model):
    text = WORK / "text.txt"
    text.write_text(Path(__file__).read_text()[:3000])
    nats = {}
    for device in ("cpu", args.device):
        nats[device] = homegrown("score", model, text, "--context", 128, "--device", device)["nats_per_token"]
    off = abs(nats[args.device] - nats["cpu"]) / nats["cpu"]
    both = f"{name}: {args.device} and cpu"
    check(f"{both}: score", off < 0.01, f"{nats[args.device]:.5f} and {nats['cpu']:.5f} nats a token, {off:.2e} off (allowed: 1e-2)")
    devices = ["cpu", args.device, args.device]
    (expected, _), (first, all_first), (_, all_second) = [answer(model, device) for device in devices]
    same = len(os.path.commonprefix([expected, first]))
    # Sums in other orders may choose otherwise where two tokens are about as likely.
    enough = same == len(expected) == len(first) or same >= 8
    check(f"{both}: answers", enough, f"the same for {same} of {len(expected)} characters")
    check(f"{name} twice on {args.device}: the same answer", all_first == all_second, repr(first[:60]))


def checks():
    for dtype, most in [("f32", 1e-2), ("bf16", 3e-2)]:
        attempt(f"training in {dtype}", check_training, dtype, most)
    attempt("the tiny model on both", lambda: check_model("the tiny model", tiny()))
    for model in args.model:
        attempt(f"{model.name} on both", check_model, model.name, model)


def tiny():
    """The tiny model that was trained on the CPU."""
    folder = WORK / "run-f32-cpu-0" / "base"
    return folder if (folder / "model.safetensors").exists() else grown("f32", "cpu", 0)[0]


# Prompts and answers


def random_model(name):
    """A folder of random weights in BF16, for speed alone; the tokenizer is the tiny model's."""
    shape, source, folder = RANDOM[name], tiny(), WORK / f"random-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(source / file, folder / file)
    config = json.loads((source / "config.json").read_text())
    config.update(
        vocab_size=shape["vocab"], hidden_size=shape["dim"], intermediate_size=shape["ffn"],
        num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"], max_position_embeddings=shape["context"], torch_dtype="bfloat16",
    )
    (folder / "config.json").write_text(json.dumps(config))
    d, f, q, kv = shape["dim"], shape["ffn"], shape["heads"] * shape["head_dim"], shape["kv_heads"] * shape["head_dim"]
    tensors = [("model.embed_tokens.weight", [shape["vocab"], d]), ("model.norm.weight", [d])]
    for i in range(shape["layers"]):
        tensors += [
            (f"model.layers.{i}.{part}.weight", size)
            for part, size in [
                ("input_layernorm", [d]), ("self_attn.q_proj", [q, d]), ("self_attn.k_proj", [kv, d]),
                ("self_attn.v_proj", [kv, d]), ("self_attn.o_proj", [d, q]), ("self_attn.q_norm", [shape["head_dim"]]),
                ("self_attn.k_norm", [shape["head_dim"]]), ("post_attention_layernorm", [d]), ("mlp.gate_proj", [f, d]),
                ("mlp.up_proj", [f, d]), ("mlp.down_proj", [d, f]),
            ]
        ]
    header, offset = {}, 0
    for tensor, size in tensors:
        end = offset + 2 * size[0] * (size[1] if len(size) > 1 else 1)
        header[tensor] = {"dtype": "BF16", "shape": size, "data_offsets": [offset, end]}
        offset = end
    # Numbers of both signs from 2^-7 to 2^-5: the upper byte is 3c or bc.
    block = bytearray(os.urandom(1 << 23))
    block[1::2] = bytes(0x3C | byte & 0x80 for byte in block[1::2])
    with open(folder / "model.safetensors", "wb") as file:
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor, size in tensors:
            start, end = header[tensor]["data_offsets"]
            source = b"\x80\x3f" * size[0] if len(size) == 1 else block
            for at in range(start, end, len(source)):
                file.write(source[: min(len(source), end - at)])
    return folder


def models():
    """Those given, or random ones, each made when those before it are measured."""
    if args.model:
        yield from args.model
        return
    folder = random_model("tiny" if args.tiny else "1B")
    yield folder
    for kind in ("Q8_0", "Q4_K_M"):
        path = folder.with_name(f"{folder.name}-{kind}.gguf")
        say(f"random weights as {kind}")
        words = ["export", folder, "--to", "gguf", "--quant", kind, "--out", path]
        if attempt(f"random weights as {kind}", homegrown, *words):
            yield path


def measure_model(model):
    say(f"bench infer {model.name}")
    lengths = ["--prompt", "64", "--generate", "8"] if args.tiny else ["--prompt", "512,2048", "--generate", "128"]
    batches = ["--batch", "1,16", "--rounds", "3"]
    found = homegrown("bench", "infer", model, "--device", args.device, *lengths, *batches)
    results["inference"].append({"model": model.name, **found})
    for test in found["tests"]:
        say(f"  {test['test']}: {test['tokens_per_s']:.0f} tokens/s, {test['share_of_limit'] * 100:.0f} % of the limit")
    save()


def inference():
    for model in models():
        attempt(f"bench infer {model.name}", measure_model, model)


# Training


class PyTorch:
    """A process that does steps when it is told to."""

    def __init__(self, shape):
        shape = {**shape, "device": args.device, "compile": args.compile}
        command = [args.python, str(HERE / "torch_step.py"), json.dumps(shape)]
        self.errors = open(WORK / "torch.log", "w+")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        self.seconds, self.memory = [], 0
        try:
            if self.line() != "ready":
                raise Failed("it says something else than that it is ready")
        except Failed:
            self.close()
            raise

    def line(self):
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(left()):
                raise Failed("no time left for PyTorch")
        line = self.process.stdout.readline().decode().strip()
        if not line:
            self.errors.seek(0)
            raise Failed(f"PyTorch ended: {self.errors.read().strip()[-1500:]}")
        return line

    def turn(self):
        self.process.stdin.write(f"{args.steps}\n".encode())
        self.process.stdin.flush()
        found = json.loads(self.line())
        self.seconds += found["seconds"]
        self.memory = found["card_bytes"]

    def close(self):
        self.process.kill()
        self.process.communicate()
        self.errors.close()


class Homegrown:
    """Steps of `homegrown bench train`, a process a turn."""

    def __init__(self, shape):
        self.words = ["--dtype", "bf16", "--adamw", "--steps", str(args.steps), "--device", args.device]
        for key, value in shape.items():
            self.words += ["--" + key.replace("_", "-"), str(value)]
        self.found = []

    def turn(self):
        self.found.append(homegrown("bench", "train", *self.words))


def measure_shape(size, context, seconds):
    """Both in turns, for so many seconds; at least one turn each."""
    began = time.monotonic()
    vocab = 256 if size == "tiny" else 50304
    shape = {**SIZES[size], "vocab": vocab, "context": context}
    row = dict(size=size, context=context, shape=shape, homegrown=None, pytorch=None)
    results["training"].append(row)
    name = f"{size}, context {context}"
    say(f"training {name}: {shape}")
    sides = {"homegrown": Homegrown(shape)}
    if "torch" in results["machine"]:
        peer = attempt(f"PyTorch, {name}", PyTorch, shape)
        if peer:
            sides = {"pytorch": peer, **sides}
    try:
        for turn in range(args.rounds):
            start = time.monotonic()
            for side in list(sides):
                try:
                    sides[side].turn()
                    row[side] = summary(sides[side], shape)
                    say(f"  {side}: {row[side]['tokens_per_s']:.0f} tokens/s (turn {turn + 1})")
                    save()
                except (Failed, OSError, KeyError, ValueError) as error:
                    failed(f"{side}, {name}", error)
                    stopped = sides.pop(side)
                    if isinstance(stopped, PyTorch):
                        stopped.close()
            if not sides or 2 * time.monotonic() - start > began + seconds:
                break
    finally:
        if "pytorch" in sides:
            sides["pytorch"].close()


def summary(side, shape):
    """The median over all turns so far."""
    if isinstance(side, PyTorch):
        speeds = [shape["batch_tokens"] / s for s in side.seconds]
        return dict(tokens_per_s=statistics.median(speeds), tokens_per_s_of_steps=speeds, card_bytes=side.memory)
    speeds = [found["tokens_per_s"] for found in side.found]
    last = side.found[-1]
    return dict(
        tokens_per_s=statistics.median(speeds), tokens_per_s_of_turns=speeds, parameters=last["parameters"],
        flops_per_token=last["flops_per_s"] / last["tokens_per_s"],
        peak_flops_per_s=max(found["peak_flops_per_s"] for found in side.found),
        peak_rss_bytes=last["peak_rss_bytes"], device=last["device"],
    )


def training():
    shapes = [(size, int(context)) for context in args.contexts.split(",") for size in args.sizes.split(",")]
    for i, (size, context) in enumerate(shapes):
        each = (until - time.monotonic()) / (len(shapes) - i)
        attempt(f"training {size}, context {context}", measure_shape, size, context, each)


# What it comes to


def table():
    text = [f"# {results['machine'].get('card', args.device)}\n"]
    text += [f"{key}: {value}  " for key, value in results["machine"].items()]
    if results["checks"]:
        text.append("\n## Checks\n\n| | | |\n|---|---|---|")
        text += [f"| {c['name']} | {'passed' if c['passed'] else '**failed**'} | {c['detail']} |" for c in results["checks"]]
    if results["inference"]:
        text.append("\n## Prompts and answers\n\n| model | test | tokens/s | GB/s | TFLOP/s | of the limit |\n|---|---|--:|--:|--:|--:|")
    for model in results["inference"]:
        for t in model["tests"]:
            rates = f"{t['tokens_per_s']:.0f} | {t['bytes_per_s'] / 1e9:.0f} | {t['flops_per_s'] / 1e12:.2f}"
            text.append(f"| {model['model']} | {t['test']} | {rates} | {t['share_of_limit'] * 100:.0f} % |")
    for limit in results["inference"][-1]["limits"] if results["inference"] else []:
        half, single = limit["bf16_flops_per_s"] / 1e12, limit["f32_flops_per_s"] / 1e12
        text.append(f"\nAt best: {half:.1f} TFLOP/s in bf16, {single:.1f} in f32, {limit['bytes_per_s'] / 1e9:.0f} GB/s.")
    if results["training"]:
        text.append("\n## Training beside PyTorch, bf16, AdamW\n")
        text.append("| model | context | tokens a step, at a time | homegrown, tokens/s | of the bf16 peak | PyTorch, tokens/s | of the peak | ratio |")
        text.append("|---|--:|--:|--:|--:|--:|--:|--:|")
    for row in results["training"]:
        ours, theirs, shape = row["homegrown"], row["pytorch"], row["shape"]
        share = lambda side: side and ours and f"{side['tokens_per_s'] * ours['flops_per_token'] / ours['peak_flops_per_s'] * 100:.0f} %"
        speed = lambda side: side and f"{side['tokens_per_s']:.0f}"
        ratio = ours and theirs and f"{ours['tokens_per_s'] / theirs['tokens_per_s']:.2f}"
        cells = [row["size"], row["context"], f"{shape['batch_tokens']}, {shape['micro_tokens']}"]
        cells += [speed(ours), share(ours), speed(theirs), share(theirs), ratio]
        text.append("| " + " | ".join(str(cell or "") for cell in cells) + " |")
    if results["failures"]:
        text.append("\n## What failed\n")
        text += [f"- {f['what']}: {f['why'].strip()}" for f in results["failures"]]
    return "\n".join(text)


def machine():
    found = results["machine"]
    found["cores"] = os.cpu_count()
    found["homegrown"] = call([args.binary, "--version"]).strip()
    found["sha256 of the binary"] = hashlib.sha256(args.binary.read_bytes()).hexdigest()
    if args.device != "cpu":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit", "--format=csv,noheader"]
        found["card"] = call(query).strip().replace("\n", "; ")


def torch():
    code = "import sys, torch; print(sys.prefix, torch.__version__, torch.version.cuda, sep='|')"
    prefix, version, cuda = call([args.python, "-c", code]).strip().split("|")
    results["machine"]["torch"] = f"{version}, CUDA {cuda}"
    # NVIDIA's libraries may lie there.
    environment.setdefault("VIRTUAL_ENV", prefix)


args.binary = args.binary.resolve()
args.out.mkdir(parents=True, exist_ok=True)
attempt("the machine", machine)
attempt("PyTorch, which only homegrown is timed without", torch)
say(f"{results['machine']}")
parts = {"checks": checks, "inference": inference, "training": training}
wanted = args.parts.split(",")
for i, part in enumerate(wanted):
    weights = [SHARES[p] for p in wanted[i:]]
    until = time.monotonic() + (END - time.monotonic()) * weights[0] / sum(weights)
    say(f"part: {part}, until {until - BEGAN:.0f} s")
    attempt(part, parts[part])
    save()
until = END
save()
say(f"{args.out / 'table.md'}: {len(results['failures'])} failures")
print(table(), flush=True)
sys.exit(1 if results["failures"] else 0)
