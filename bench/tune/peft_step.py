"""LoRA by TRL and PEFT, for bench.py: trains on rows of token ids with labels, says the loss of each step and the
tokens a second. Runs as a process of its own, so that its memory is its own."""

import json
import resource
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

job = json.load(open(sys.argv[1]))
torch.set_num_threads(job["threads"])
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32, attn_implementation="sdpa")
model.config.use_cache = False
config = LoraConfig(
    task_type="CAUSAL_LM", r=job["rank"], lora_alpha=job["alpha"], lora_dropout=0.0, target_modules=job["modules"]
)
model = get_peft_model(model, config)
if job.get("start"):
    from safetensors.torch import load_file
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, load_file(job["start"]))
parameters = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(parameters, lr=job["lr"], betas=tuple(job["betas"]), eps=job["eps"], weight_decay=0.0, fused=True)
model.train()
print(json.dumps({"trainable": sum(p.numel() for p in parameters)}), flush=True)

losses, seconds = [], []
for step in range(job["steps"]):
    rows = torch.tensor(job["rows"][step % len(job["rows"])])
    began = time.perf_counter()
    loss = model(input_ids=rows, labels=rows).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses.append(loss.item())
    seconds.append(time.perf_counter() - began)
timed = sorted(seconds[1:] or seconds)
rate = rows.numel() / timed[len(timed) // 2]
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
if job.get("save"):
    model.save_pretrained(job["save"])
print(json.dumps({"losses": losses, "tokens_per_s": rate, "peak_rss_bytes": memory}))
