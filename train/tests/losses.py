"""Makes fixtures/losses.json: the first 50 losses of a run of PyTorch, in f32 and with its AdamW, from the
weights of model/tests/fixtures/pytorch.safetensors on batches of a text that can be learned; and fixtures/lora/: the same
of adapters by PEFT over these weights, with the adapter that they start from.

    pip install torch transformers safetensors peft && python train/tests/losses.py
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).parent
STEPS, SEQUENCES, LENGTH = 50, 4, 48
settings = dict(lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
torch.manual_seed(1)
with safe_open(HERE / "../../model/tests/fixtures/pytorch.safetensors", "pt") as file:
    config = json.loads(file.metadata()["config"])
    weights = {n.removeprefix("weight."): file.get_tensor(n) for n in file.keys() if n.startswith("weight.")}
model = Qwen3ForCausalLM(Qwen3Config(**config, attn_implementation="eager")).float()
model.load_state_dict(weights, strict=False)
model.tie_weights()
# Each token follows from that before it, or, one time in eight, from nothing.
tokens = torch.zeros(STEPS, SEQUENCES, LENGTH + 1, dtype=torch.long)
tokens[:, :, 0] = torch.randint(61, (STEPS, SEQUENCES))
for i in range(LENGTH):
    noise = torch.randint(61, (STEPS, SEQUENCES))
    tokens[:, :, i + 1] = torch.where(torch.rand(STEPS, SEQUENCES) < 1 / 8, noise, tokens[:, :, i] * 7 % 61)


def train(model, **changes):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **(settings | changes))
    losses = []
    for batch in tokens:
        loss = torch.nn.functional.cross_entropy(model(batch[:, :-1]).logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


losses = train(model)
path = HERE / "fixtures" / "losses.json"
path.write_text(json.dumps({"tokens": tokens.tolist(), "losses": losses}, separators=(",", ":")))
print(path, path.stat().st_size, "bytes; losses", losses[0], losses[-1], torch.__version__)

model.load_state_dict(weights, strict=False)
adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear"))
adapted.save_pretrained(HERE / "fixtures/lora")
(HERE / "fixtures/lora/README.md").unlink()
losses = train(adapted, lr=1e-2)
(HERE / "fixtures/lora/losses.json").write_text(json.dumps(losses))
print("adapters: losses", losses[0], losses[-1])
