"""A tiny random model of each family, made by transformers, with its logits and the gradient of its
embedding: `fixtures/families/`. And the same as GGUF, by the names and the keys of the package gguf,
where llama.cpp can express the model; what its converter does to the weights is done here.

    pip install torch transformers gguf
    python model/tests/families.py
"""

import json
import math
import shutil
from pathlib import Path

import gguf
import numpy
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

OUT = Path(__file__).parent / "fixtures" / "families"
TOKENS = 24
VOCAB = 48

SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)

MODELS = {
    "llama": ("llama", dict(rope_parameters=dict(
        rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0,
        high_freq_factor=4.0, original_max_position_embeddings=16))),
    "llama-biases": ("llama", dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    "mistral": ("mistral", dict(sliding_window=7, head_dim=6)),
    "qwen2": ("qwen2", dict(rope_parameters=dict(
        rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=16))),
    "qwen2-windows": ("qwen2", dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)),
    "qwen3": ("qwen3", dict(head_dim=8)),
    "qwen3-moe": ("qwen3_moe", dict(
        head_dim=8, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=8, norm_topk_prob=True,
        output_router_logits=False)),
    "gemma2": ("gemma2", dict(
        head_dim=8, sliding_window=7, query_pre_attn_scalar=8, attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0)),
    "gemma2-scale": ("gemma2", dict(head_dim=8, query_pre_attn_scalar=10)),
    "gemma3": ("gemma3_text", dict(
        head_dim=8, sliding_window=7, query_pre_attn_scalar=8, num_hidden_layers=6,
        rope_parameters=dict(
            full_attention=dict(rope_type="linear", rope_theta=1e4, factor=8.0),
            sliding_attention=dict(rope_type="default", rope_theta=100.0)))),
    "phi3": ("phi3", dict(
        num_key_value_heads=2, original_max_position_embeddings=32,
        rope_parameters=dict(
            rope_type="longrope", rope_theta=1e4, partial_rotary_factor=0.5, original_max_position_embeddings=32,
            short_factor=[1.5], long_factor=[4.0]))),
    "gpt2": ("gpt2", dict(n_embd=16, n_layer=2, n_head=4, n_positions=64, n_inner=40)),
}


def made(kind, settings, seed):
    if kind == "gpt2":
        sizes = dict(vocab_size=VOCAB, bos_token_id=1, eos_token_id=2)
        sizes |= dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    else:
        sizes = SIZES
    config = AutoConfig.for_model(kind, **(sizes | settings))
    config._attn_implementation = config._experts_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in name or ".ln_" in name:
                p.add_(noise * 0.2)
            elif p.dim() == 1:
                p.copy_(noise * 0.3)
            else:
                p.copy_(noise * (0.8 if "emb" in name or "wte" in name or "wpe" in name else 0.35))
    return model


GGUF = {
    "llama": "llama", "llama-biases": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3-moe": "qwen3moe",
    "gemma2": "gemma2", "gemma3": "gemma3", "phi3": "phi3", "gpt2": "gpt2",
}


def write_gguf(name, model):
    arch = GGUF[name]
    c = model.config
    rope = getattr(c, "rope_parameters", None) or {}
    rope, local = rope.get("full_attention", rope), rope.get("sliding_attention")
    # Two parts, to have that too.
    split = dict(split_max_tensors=9) if name == "qwen3" else {}
    w = gguf.GGUFWriter(OUT / f"{name}.gguf", arch, **split)
    heads = c.num_attention_heads
    head = getattr(c, "head_dim", None) or c.hidden_size // heads
    kv_heads = getattr(c, "num_key_value_heads", heads)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(getattr(c, "intermediate_size", None) or c.n_inner)
    w.add_head_count(heads)
    if arch == "gpt2":
        w.add_layer_norm_eps(c.layer_norm_epsilon)
    else:
        w.add_head_count_kv(kv_heads)
        w.add_layer_norm_rms_eps(c.rms_norm_eps)
        w.add_rope_freq_base(rope["rope_theta"])
    if arch in ("qwen3", "qwen3moe", "gemma2", "gemma3"):
        w.add_key_length(head)
        w.add_value_length(head)
    if arch == "qwen3moe":
        w.add_expert_count(c.num_experts)
        w.add_expert_used_count(c.num_experts_per_tok)
        w.add_expert_feed_forward_length(c.moe_intermediate_size)
    if arch in ("gemma2", "gemma3"):
        w.add_sliding_window(c.sliding_window)
    if arch == "gemma2":
        w.add_attn_logit_softcapping(c.attn_logit_softcapping)
        w.add_final_logit_softcapping(c.final_logit_softcapping)
    if arch == "gemma3":
        w.add_rope_freq_base_swa(local["rope_theta"])
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(rope["factor"])
    if name == "qwen2":
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(rope["factor"])
        w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if name == "llama":
        freqs = 1.0 / rope["rope_theta"] ** (torch.arange(0, head, 2) / head)
        original, factor = rope["original_max_position_embeddings"], rope["factor"]
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        factors = []
        for f in freqs.tolist():
            wavelength = 2 * math.pi / f
            smooth = (original / wavelength - low) / (high - low)
            if wavelength < original / high:
                factors.append(1.0)
            elif wavelength > original / low:
                factors.append(factor)
            else:
                factors.append(1 / ((1 - smooth) / factor + smooth))
        w.add_tensor("rope_freqs.weight", numpy.array(factors, dtype=numpy.float32))
    if arch == "phi3":
        w.add_rope_dimension_count(int(head * rope["partial_rotary_factor"]))
        original = rope["original_max_position_embeddings"]
        w.add_rope_scaling_orig_ctx_len(original)
        scale = c.max_position_embeddings / original
        w.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))
        for kind in ["long", "short"]:
            factors = numpy.array(rope[f"{kind}_factor"], dtype=numpy.float32)
            w.add_tensor(f"rope_factors_{kind}.weight", factors)
    number = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch)
    names = gguf.get_tensor_name_map(number, c.num_hidden_layers)
    experts = {}
    tied = c.tie_word_embeddings
    for file in sorted((OUT / name).glob("*.safetensors")):
        for tensor, x in load_file(file).items():
            if tied and tensor == "lm_head.weight":
                continue
            if ".mlp.experts." in tensor:
                start, rest = tensor.split(".experts.")
                number, part = rest.split(".", 1)
                experts.setdefault(f"{start}.experts.{part}", {})[int(number)] = x
                continue
            if arch == "llama" and ("q_proj" in tensor or "k_proj" in tensor):
                n = heads if "q_proj" in tensor else kv_heads
                x = x.reshape(n, 2, x.shape[0] // n // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
            if arch.startswith("gemma") and tensor.endswith("norm.weight"):
                x = x + 1
            if arch == "gpt2" and tensor.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
                x = x.T.contiguous()
            found = names.get_name(tensor, try_suffixes=(".weight", ".bias"))
            assert found, tensor
            w.add_tensor(found, x.float().numpy())
    for tensor, parts in experts.items():
        stacked = torch.stack([parts[i] for i in range(len(parts))])
        w.add_tensor(names.get_name(tensor, try_suffixes=(".weight",)), stacked.float().numpy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    cases = {}
    for seed, (name, (kind, settings)) in enumerate(MODELS.items()):
        model = made(kind, settings, seed)
        sharded = name == "qwen3"
        folder = OUT / name
        model.save_pretrained(folder, max_shard_size="15KB" if sharded else "5GB")
        (folder / "generation_config.json").unlink(missing_ok=True)
        tokens = torch.randint(3, VOCAB, (1, TOKENS), generator=torch.Generator().manual_seed(99))
        if name in GGUF:
            write_gguf(name, model)
        model = model.double().eval()
        logits = model(tokens).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:])
        loss.backward()
        gradient = model.get_input_embeddings().weight.grad
        cases[name] = dict(
            tokens=tokens[0].tolist(),
            logits=[[float(f"{x:.7g}") for x in row] for row in logits[0].tolist()],
            loss=loss.item(),
            gradient=[float(f"{x:.6g}") for x in gradient.flatten().tolist()],
        )
        print(name, sum(f.stat().st_size for f in folder.iterdir()), "bytes", loss.item(), logits.abs().max().item())
    (OUT / "cases.json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")


main()
