"""A tiny random model of each family, made by transformers, with its logits and the gradient of its
embedding: `fixtures/families/`.

    pip install torch transformers
    python model/tests/families.py
"""

import json
import shutil
from pathlib import Path

import torch
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
        head_dim=8, sliding_window=7, query_pre_attn_scalar=10, attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0)),
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
