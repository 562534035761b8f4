"""Clients that nobody here wrote, against `homegrown serve MODEL`: openai's.

    pip install openai && python3 serve/tests/clients.py HOMEGROWN MODEL
"""

import re
import subprocess
import sys

import openai
from openai import OpenAI

server = subprocess.Popen([sys.argv[1], "serve", sys.argv[2], "--listen", "127.0.0.1:0", "--name", "m"],
                          stderr=subprocess.PIPE, text=True)
try:
    for line in server.stderr:
        if found := re.search(r"http://\S+/v1", line):
            break
    client = OpenAI(base_url=found[0], api_key="none")
    assert [m.id for m in client.models.list()] == ["m"]
    ask = dict(model="m", messages=[{"role": "user", "content": "Name three colours."}], max_tokens=24, seed=7, temperature=0.7)
    whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2, n=2)
    first, second = (choice.message.content for choice in whole.choices)
    assert first and second and first != second
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == first, (said, first)
    assert chunks[-1].usage.completion_tokens == 24
    again = client.chat.completions.create(**ask | dict(seed=8))
    assert again.choices[0].message.content == second
    text = client.completions.create(model="m", prompt=["Once upon a time", "The sky is"], max_tokens=8, temperature=0)
    assert len(text.choices) == 2 and text.usage.completion_tokens == 16
    for wrong, param in [(dict(temperature=-1), "temperature"), (dict(messages=[]), "messages"), (dict(n=1000), "n")]:
        try:
            client.chat.completions.create(**ask | wrong)
            raise AssertionError(wrong)
        except openai.BadRequestError as error:
            assert error.param == param, error
    try:
        client.chat.completions.create(**ask | dict(model="gpt-5"))
        raise AssertionError("another model")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found"
    print("openai", openai.__version__, "passed")
finally:
    server.terminate()
    assert server.wait(20) == 0
