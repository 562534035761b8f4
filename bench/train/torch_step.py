"""A PyTorch training step, for bench.py: reads a number of steps a line, answers with the tokens a
second of each. The model is `homegrown bench train`'s: RMSNorm, heads normed and rotated, SwiGLU, the
head tied to the embedding; AdamW (fused)."""

import json
import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

shape = json.loads(sys.argv[1])
dim, heads, ffn, vocab = shape["dim"], shape["heads"], shape["ffn"], shape["vocab"]
context, width = shape["context"], dim // heads
torch.set_num_threads(shape["threads"])
torch.manual_seed(0)


def rotate(x, angles):
    a, b = x.chunk(2, -1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.q_norm, self.k_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.gate_up = nn.Linear(dim, 2 * ffn, bias=False)
        self.down = nn.Linear(ffn, dim, bias=False)

    def forward(self, x, angles):
        batch, rows, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, rows, 3, heads, width).unbind(2)
        q, k = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2)
        q, k = rotate(q, angles), rotate(k, angles)
        v = v.transpose(1, 2)
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, rows, dim))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList(Layer() for _ in range(shape["layers"]))
        self.norm = nn.RMSNorm(dim)
        rates = 1e4 ** (-torch.arange(0, width, 2) / width)
        self.register_buffer("angles", torch.arange(context)[:, None] * rates[None])

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.angles)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


model = Model()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), fused=True)
forward = torch.compile(model) if "compile" in shape["mode"] else model
rows = shape["batch_tokens"] // context
data = torch.randint(vocab, (8, rows, context + 1))


def step(i):
    start = time.perf_counter()
    tokens = data[i % 8]
    with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in shape["mode"]):
        loss = forward(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss.item()
    return rows * context / (time.perf_counter() - start)


for i in range(2):
    step(i)
print("ready", flush=True)
for line in sys.stdin:
    speeds = [step(i) for i in range(int(line))]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"speeds": speeds, "peak_rss_bytes": memory}), flush=True)
