"""Clients that nobody here wrote, against `homegrown serve MODEL`: those that are named, or all of them.

    pip install openai anthropic litellm langchain-openai 'lm-eval[api]' transformers
    python3 serve/tests/clients.py HOMEGROWN MODEL [openai anthropic litellm langchain lm_eval node]

`node` takes openai's client for Node from npm.
"""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

COLOURS = [{"role": "user", "content": "Name three colours."}]
ASK = dict(model="m", messages=COLOURS, max_tokens=24, seed=7, temperature=0.7)
PLACE = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"], "additionalProperties": False}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def refused(error, ask, **holds):
    """Asks what has to be refused, and looks at the fields of the error."""
    try:
        ask()
    except error as e:
        assert all(getattr(e, key) == value for key, value in holds.items()), (e, holds)
        return e
    raise AssertionError(f"not refused: {holds}")


def openai(url):
    import openai
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    assert [m.id for m in client.models.list()] == ["m"]
    whole = client.chat.completions.create(**ASK, logprobs=True, top_logprobs=2, n=2)
    first, second = (choice.message.content for choice in whole.choices)
    assert first and second and first != second
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
    chunks = list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == first, (said, first)
    assert chunks[-1].usage.completion_tokens == 24
    again = client.chat.completions.create(**ASK | dict(seed=8))
    assert again.choices[0].message.content == second
    text = client.completions.create(model="m", prompt=["Once upon a time", "The sky is"], max_tokens=8, temperature=0)
    assert len(text.choices) == 2 and text.usage.completion_tokens == 16
    for wrong, param in [(dict(temperature=-1), "temperature"), (dict(messages=[]), "messages"), (dict(n=1000), "n")]:
        refused(openai.BadRequestError, lambda: client.chat.completions.create(**ASK | wrong), param=param)
    refused(openai.NotFoundError, lambda: client.chat.completions.create(**ASK | dict(model="gpt-5")), code="model_not_found")

    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE}}
    formed = client.chat.completions.create(**ASK | dict(max_tokens=200), response_format=form)
    assert json.loads(formed.choices[0].message.content)["city"] in ("Oslo", "Rome")
    numbers = client.embeddings.create(model="m", input=["A cat.", "The sea."], encoding_format="float")
    letters = client.embeddings.create(model="m", input=["A cat.", "The sea."])  # base64, as the client asks
    assert [d.embedding for d in numbers.data] == [d.embedding for d in letters.data]
    assert abs(sum(x * x for x in numbers.data[0].embedding) - 1) < 1e-3

    responses = client.responses
    answer = responses.create(model="m", input=COLOURS, max_output_tokens=24, temperature=0.7, extra_body={"seed": 7})
    assert answer.output_text == first and answer.status == "incomplete", answer
    assert answer.usage.output_tokens == 24
    events = list(responses.create(model="m", input=COLOURS, max_output_tokens=24, temperature=0.7, stream=True, extra_body={"seed": 7}))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == first
    assert events[-1].response.output_text == first
    with responses.stream(model="m", input="Hi", temperature=0) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text
    form = {"format": {"type": "json_schema", "name": "place", "schema": PLACE}}
    formed = responses.create(model="m", input=COLOURS, max_output_tokens=200, text=form, extra_body={"seed": 7})
    assert json.loads(formed.output_text)["city"] in ("Oslo", "Rome")
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "1", "output": "3"}
    tool = {"type": "function", "name": "f", "parameters": SCHEMA, "strict": False}
    assert responses.create(model="m", input=COLOURS + [call, output], tools=[tool], max_output_tokens=8).output
    refused(openai.BadRequestError, lambda: responses.create(model="m", input="Hi", previous_response_id="x"),
            param="previous_response_id")

    async def many():
        # Together, and one that leaves.
        client = openai.AsyncOpenAI(base_url=url, api_key="none")
        left = await client.chat.completions.create(**ASK | dict(max_tokens=200), stream=True)
        async for _ in left:
            await left.close()
            break
        answers = await asyncio.gather(*(client.chat.completions.create(**ASK) for _ in range(4)))
        assert all(a.choices[0].message.content == first for a in answers)

    asyncio.run(many())
    return openai.__version__


def anthropic(url):
    import anthropic
    client = anthropic.Anthropic(base_url=url.removesuffix("/v1"), api_key="none", max_retries=0)
    # What its signatures no longer have.
    drawn = {"temperature": 0.7, "seed": 7}
    ask = dict(model="m", messages=COLOURS, max_tokens=6, extra_body=drawn)
    whole = client.messages.create(**ask, system="Tell long stories.")
    first = whole.content[0].text
    assert first and whole.stop_reason == "max_tokens" and whole.usage.output_tokens == 6
    with client.messages.stream(**ask, system=[{"type": "text", "text": "Tell long stories."}]) as stream:
        assert "".join(stream.text_stream) == first
        assert stream.get_final_message().content[0].text == first
    counted = client.messages.count_tokens(model="m", messages=COLOURS, system="Tell long stories.").input_tokens
    assert counted == whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    stop = first.split()[1]
    stopped = client.messages.create(**ask, system="Tell long stories.", stop_sequences=[stop])
    assert stopped.stop_sequence == stop and stop not in stopped.content[0].text
    call = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"city": "Rome"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Sunny."}
    turns = COLOURS + [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    tool = {"name": "f", "description": "The weather.", "input_schema": SCHEMA}
    assert client.messages.create(**ask | dict(messages=turns), tools=[tool]).content
    error = refused(anthropic.BadRequestError, lambda: client.messages.create(**ask | dict(extra_body={"temperature": -1})))
    assert error.body["error"]["type"] == "invalid_request_error" and "temperature" in str(error)
    refused(anthropic.NotFoundError, lambda: client.messages.create(**ask | dict(model="claude")))
    return anthropic.__version__


def litellm(url):
    import litellm
    from importlib.metadata import version
    ask = ASK | dict(model="openai/m", api_base=url, api_key="none")
    first = litellm.completion(**ask).choices[0].message.content
    chunks = litellm.completion(**ask, stream=True)
    assert first and "".join(c.choices[0].delta.content or "" for c in chunks) == first
    ask = ask | dict(model="anthropic/m", api_base=url.removesuffix("/v1"))
    assert litellm.completion(**ask | dict(seed=None)).choices[0].message.content
    refused(litellm.BadRequestError, lambda: litellm.completion(**ASK | dict(model="openai/m", api_base=url, api_key="none", temperature=-1)))
    return version("litellm")


def langchain(url):
    from importlib.metadata import version
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings
    chat = ChatOpenAI(base_url=url, api_key="none", model="m", max_tokens=24, seed=7, temperature=0.7)
    first = chat.invoke("Name three colours.").text
    assert first and "".join(c.text for c in chat.stream("Name three colours.")) == first
    assert chat.bind_tools([{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]).invoke("Hi").usage_metadata
    embeddings = OpenAIEmbeddings(base_url=url, api_key="none", model="m", check_embedding_ctx_length=False)
    assert len(embeddings.embed_documents(["A cat.", "The sea."])) == 2
    other = ChatOpenAI(base_url=url, api_key="none", model="m", max_tokens=24, temperature=0.7, use_responses_api=True)
    assert other.invoke("Name three colours.").text and "".join(c.text for c in other.stream("Hi"))
    return version("langchain-openai")


def lm_eval(url):
    """A task of its own, so that nothing has to be downloaded."""
    from importlib.metadata import version
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        lines = [{"question": f"What is {i} and {i}?", "answer": str(2 * i)} for i in range(4)]
        (folder / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "sums.yaml").write_text(f"""
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / 'sums.jsonl'}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
""")
        for kind, path in [("local-completions", "completions"), ("local-chat-completions", "chat/completions")]:
            arguments = f"model=m,base_url={url}/{path},num_concurrent=2,max_retries=1,tokenized_requests=False,tokenizer_backend=None"
            command = [sys.executable, "-m", "lm_eval", "--model", kind, "--model_args", arguments, "--tasks", "sums",
                       "--include_path", str(folder), "--output_path", str(folder / kind)]
            done = subprocess.run(command + ["--apply_chat_template"] * ("chat" in kind), capture_output=True, text=True)
            assert done.returncode == 0 and "exact_match" in done.stdout, done.stderr[-3000:]
    return version("lm-eval")


def node(url):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, "openai@7"], check=True)
        shutil.copy(Path(__file__).with_suffix(".mjs"), folder)
        return subprocess.run(["node", f"{folder}/clients.mjs", url], check=True, capture_output=True, text=True).stdout.strip()


CLIENTS = dict(openai=openai, anthropic=anthropic, litellm=litellm, langchain=langchain, lm_eval=lm_eval, node=node)

if __name__ == "__main__":
    program, model, *names = sys.argv[1:]
    server = subprocess.Popen([program, "serve", model, "--listen", "127.0.0.1:0", "--name", "m"],
                              stderr=subprocess.PIPE, text=True)
    try:
        for line in server.stderr:
            if found := re.search(r"http://\S+/v1", line):
                break
        for name in names or CLIENTS:
            print(name, CLIENTS[name](found[0]), "passed", flush=True)
    finally:
        server.terminate()
        assert server.wait(20) == 0
