"""Renders conversations with Python's Jinja, set up as `transformers` sets it up, for chat_templates.json.

    pip install jinja2 && python model/tests/chat_templates.py
"""

import json
from pathlib import Path

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = Path(__file__).parent

TRIMMING = """
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'].strip() + '\\n\\n' %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{ bos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must alternate: user, assistant, user, ...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
[INST] {{ (system if loop.first else '') + message['content'] | trim }} [/INST]
    {%- else %} {{ message['content'].split('END')[0].rstrip() + eos_token -}}
    {%- endif %}
{% endfor %}
"""

HEADERS = """{% set ns = namespace(calls=0, last='') %}
{% for message in messages %}
    {% if loop.index > 40 %}{% break %}{% endif %}
    {% if message.role == 'tool' and not message.content %}{% continue %}{% endif %}
<|im_start|>{{ message.role | upper }}{% if message.name is defined %} {{ message.name }}{% endif %}

{{ message.content | default('', true) | trim }}{% for call in message.tool_calls or [] %}
{% set ns.calls = ns.calls + 1 %}
{{ ns.calls }}. {{ call.function.name }}({% for key, value in call.function.arguments.items() %}{{ key }}={{ value | tojson }}{{ ', ' if not loop.last }}{% endfor %})
{% endfor %}<|im_end|>
{% set ns.last = message.role %}
{% endfor %}
{% if tools is not none and tools %}
{{ tools | tojson(indent=4) }}
{%- for tool in tools | selectattr('function', 'defined') %}

{{ loop.index }}/{{ tools | length }} {{ tool.function.name.replace('_', ' ').title() }}: {{ tool.function.parameters.required | join(', ') }}
{%- endfor %}
{% endif %}
{{ '<|im_start|>ASSISTANT\\n\\n' if add_generation_prompt and ns.last != 'assistant' }}"""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "calculator",
            "description": "Computes “a+b” & more: <exact>.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string"}, "scale": {"type": "number", "default": 1.0, "maximum": 1e16, "minimum": 1.5e-07}},
                "required": ["expression"],
            },
        },
    },
    {"type": "function", "function": {"name": "no_op", "parameters": {"required": []}}},
]


def call(name, **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


CONVERSATIONS = {
    "plain": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}],
    "system": [
        {"role": "system", "content": "  Be brief.\n"},
        {"role": "user", "content": "\n Wie geht’s? 你好 🙂 \t"},
        {"role": "assistant", "content": "Gut. \n END of it"},
        {"role": "user", "content": ""},
    ],
    "tools": [
        {"role": "user", "content": "12*34, and é?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [call("calculator", expression="12*34"), call("no_op", a=[1, 2.5, None, True, {}], b={"ü\n": "\"x\" \\ \u007f\u2028"})],
        },
        {"role": "tool", "content": "408"},
        {"role": "tool", "content": "{\"ok\": true}"},
        {"role": "assistant", "content": "408.", "tool_calls": [call("no_op")]},
        {"role": "tool", "content": ""},
        {"role": "system", "content": "Stop now."},
        {"role": "assistant", "content": "Done."},
    ],
    "astray": [{"role": "assistant", "content": "I begin."}, {"role": "tool", "content": "?"}],
}


def environment():
    def raise_exception(message):
        raise ValueError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env


def main():
    templates = {
        "chatml": (HERE / "../src/template/chatml.jinja").read_text(),
        "trimming": TRIMMING,
        "headers": HEADERS,
    }
    env = environment()
    cases = []
    for template, source in templates.items():
        for conversation, messages in CONVERSATIONS.items():
            for tools in (None, TOOLS):
                for add_generation_prompt in (False, True):
                    try:
                        text = env.from_string(source).render(
                            messages=messages,
                            tools=tools,
                            add_generation_prompt=add_generation_prompt,
                            bos_token="<s>",
                            eos_token="</s>",
                        )
                    except ValueError:
                        text = None
                    cases.append(
                        {
                            "template": template,
                            "conversation": conversation,
                            "tools": tools is not None,
                            "add_generation_prompt": add_generation_prompt,
                            "text": text,
                        }
                    )
    out = {
        "templates": {name: source for name, source in templates.items() if name != "chatml"},
        "conversations": CONVERSATIONS,
        "tools": TOOLS,
        "cases": cases,
    }
    path = HERE / "fixtures/chat_templates.json"
    path.write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n")
    print(len(cases), "cases")


if __name__ == "__main__":
    main()
