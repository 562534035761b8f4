"""Adapters by PEFT over the models of families.py, with the logits of both and of all merged: `fixtures/adapters/`.

    pip install torch transformers peft
    python model/tests/adapters.py
"""

import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent / "fixtures"
OUT = HERE / "adapters"
ADAPTERS = {
    # All linear layers; another rank and alpha for some of them.
    "llama": ("llama", dict(
        r=4, lora_alpha=6, target_modules="all-linear", rank_pattern={"down_proj": 2},
        alpha_pattern={r"layers\.1\.self_attn\.[qk]_proj": 3})),
    "llama-second": ("llama", dict(r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj", "up_proj"])),
    # One matrix for what is three here.
    "phi3": ("phi3", dict(r=2, lora_alpha=4, target_modules=["qkv_proj", "gate_up_proj"])),
    # The same, with rows for columns.
    "gpt2": ("gpt2", dict(r=2, lora_alpha=4, fan_in_fan_out=True, target_modules=["c_attn", "c_fc"])),
}


def base(name):
    return AutoModelForCausalLM.from_pretrained(HERE / "families" / name, dtype=torch.float64)


def logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].double().tolist()


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    families = json.load(open(HERE / "families" / "cases.json"))
    cases = {}
    for seed, (name, (family, settings)) in enumerate(ADAPTERS.items()):
        model = get_peft_model(base(family), LoraConfig(task_type="CAUSAL_LM", **settings))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, p in model.named_parameters():
                if "lora_" in key:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
        tokens = families[family]["tokens"]
        model = model.half() if name == "phi3" else model.float()
        model.save_pretrained(OUT / name)
        (OUT / name / "README.md").unlink(missing_ok=True)
        config = OUT / name / "adapter_config.json"
        about = json.loads(config.read_text()) | dict(base_model_name_or_path=family)
        config.write_text(json.dumps(about, indent=1, sort_keys=True))
        model = PeftModel.from_pretrained(base(family), OUT / name).double()
        cases[name] = dict(family=family, tokens=tokens, logits=logits(model, tokens))
    # Both of llama at once.
    model = PeftModel.from_pretrained(base("llama"), OUT / "llama", adapter_name="one")
    model.load_adapter(OUT / "llama-second", adapter_name="two")
    model.base_model.set_adapter(["one", "two"])
    cases["both"] = dict(family="llama", tokens=cases["llama"]["tokens"], logits=logits(model.double(), cases["llama"]["tokens"]))
    for case in cases.values():
        case["logits"] = [[round(x, 6) for x in row] for row in case["logits"]]
    json.dump(cases, open(OUT / "cases.json", "w"), separators=(",", ":"))


main()
