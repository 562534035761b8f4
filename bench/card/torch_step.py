"""A PyTorch training step, for run.py: reads a number of steps a line, answers with the seconds of each. The model is
that of `homegrown bench train`: RMSNorm, heads normed and rotated, SwiGLU, the head tied to the embedding. bf16
autocast over f32 weights, flash attention, AdamW (fused), torch.compile."""

import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

shape = json.loads(sys.argv[1])
device = shape["device"]
dim, heads, ffn, vocab = shape["dim"], shape["heads"], shape["ffn"], shape["vocab"]
context, width = shape["context"], dim // heads
torch.manual_seed(0)
torch.set_default_device(device)
if device.startswith("cuda"):
    torch.cuda.set_device(int(device.partition(":")[2] or 0))


def wait():
    if device.startswith("cuda"):
        torch.cuda.synchronize()


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


class Head(nn.Module):
    def __init__(self, embedding):
        super().__init__()
        self.norm, self.weight = nn.RMSNorm(dim), embedding.weight

    def forward(self, x, targets):
        logits = F.linear(self.norm(x), self.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList(Layer() for _ in range(shape["layers"]))
        self.head = Head(self.embedding)
        rates = 1e4 ** (-torch.arange(0, width, 2) / width)
        self.register_buffer("angles", torch.arange(context)[:, None] * rates[None])

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.angles)
        return self.head(x, targets)


model = Model()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), fused=True)
if shape["compile"] == "whole":
    model.compile()
elif shape["compile"] == "layers":  # All have one shape and share what is compiled.
    for part in [*model.layers, model.head]:
        part.compile()
rows, parts = shape["micro_tokens"] // context, shape["batch_tokens"] // shape["micro_tokens"]
data = torch.randint(vocab, (8, rows, context + 1))


def step():
    wait()
    start = time.perf_counter()
    for i in range(parts):
        tokens = data[i % 8]
        with torch.autocast(device.split(":")[0], torch.bfloat16), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            loss = model(tokens[:, :-1], tokens[:, 1:]) / parts
        loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss.item()
    wait()
    return time.perf_counter() - start


for _ in range(3):
    step()
print("ready", flush=True)
for line in sys.stdin:
    seconds = [step() for _ in range(int(line))]
    memory = torch.cuda.max_memory_allocated() if device.startswith("cuda") else 0
    print(json.dumps({"seconds": seconds, "card_bytes": memory}), flush=True)
