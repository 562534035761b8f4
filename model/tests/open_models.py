"""What transformers makes of real open models, their weights widened to f32: `fixtures/open_models.json`.

    pip install torch transformers accelerate gguf jinja2
    python model/tests/open_models.py FOLDER     # with smollm2.gguf and gemma3.gguf: see .ci/models
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

OUT = Path(__file__).parent / "fixtures" / "open_models.json"
TEXT = """The lighthouse keeper wrote in her log: "Wind from the north-west, 42 knots; visibility poor."
fn main() {\n    let xs = vec![1, 2, 3];\n\tprintln!("{:?}", xs.iter().sum::<i32>());\n}
Straße, naïve, 東京の天気は晴れです。 Привет, мир! 😀👍🏽 12345 + 67890 = 80235      end.
"""
TALKS = [
    [dict(role="user", content="Hello!")],
    [dict(role="system", content=" You are brief. "), dict(role="user", content="Name a colour.\n"),
     dict(role="assistant", content="Blue."), dict(role="user", content="Another <|im_end|> one?")],
]


def main(folder):
    models = {}
    for name in ["smollm2", "gemma3"]:
        file = f"{name}.gguf"
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
        ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
        start = [tokenizer.bos_token_id] if name == "gemma3" else []
        with torch.no_grad():
            logits = model(torch.tensor([start + ids])).logits[0].double()
        nats = torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor((start + ids)[1:])[:, None])
        talks = []
        if tokenizer.chat_template:
            for messages in TALKS:
                for prompt in [False, True]:
                    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
                    talks.append(dict(messages=messages, prompt=prompt, text=text))
        models[name] = dict(
            ids=ids,
            logprobs=[round(x, 6) for x in nats[:, 0].tolist()],
            talks=talks,
        )
    OUT.write_text(json.dumps(dict(text=TEXT, models=models), ensure_ascii=False, separators=(",", ":")) + "\n")


main(Path(sys.argv[1]))
