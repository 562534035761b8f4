"""Makes fixtures/pytorch.safetensors: a small random qwen3 model of transformers, the loss of some
text and its gradients, all computed by PyTorch in f64 (weights are f32 numbers).

    pip install torch transformers safetensors && python model/tests/pytorch.py
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

config = dict(
    vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=96,
    rms_norm_eps=1e-6, rope_theta=1e4, tie_word_embeddings=True, attention_bias=False,
    hidden_act="silu",
)  # fmt: skip
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
model = Qwen3ForCausalLM(Qwen3Config(**config, attn_implementation="eager")).double()
with torch.no_grad():
    for name, p in model.named_parameters():
        p.copy_((1 + 0.1 * torch.randn_like(p)) if "norm" in name else 0.1 * torch.randn_like(p))
        p.copy_(p.float().double())

tokens = torch.randint(0, 61, (1, 70))
logits = model(tokens).logits
loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:])
loss.backward()
tensors = {"tokens": tokens[0], "loss": loss.detach().reshape(1)}
for name, p in model.named_parameters():
    tensors["weight." + name] = p.detach().float().contiguous()
    tensors["gradient." + name] = p.grad.contiguous()
path = Path(__file__).parent / "fixtures" / "pytorch.safetensors"
save_file(tensors, path, metadata={"config": json.dumps({**config, "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"], "torch_dtype": "float32"})})
print(path, path.stat().st_size, "bytes; loss", float(loss), torch.__version__)
