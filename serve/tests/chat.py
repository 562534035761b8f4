"""The page of `homegrown serve` in a headless Chromium, through the real server with a real model.

    python3 serve/tests/chat.py HOMEGROWN MODEL [FOLDER FOR SCREENSHOTS]
"""

import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

from browser import Browser

program, model = sys.argv[1:3]
shots = pathlib.Path(sys.argv[3]) if len(sys.argv) > 3 else None
folder = pathlib.Path(tempfile.mkdtemp())


class Server:
    def __init__(self, listen="127.0.0.1:0", *more):
        command = [program, "serve", model, "--listen", listen, "--name", "SmolLM2-135M", "--store", str(folder / "chat.db"),
                   "--runs", str(folder / "runs"), *more]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if found := re.search(r"http://(\S+)/ is for people", line):
                self.at = found[1]
                break
        self.url = f"http://{self.at}/"

    def ask(self, path, body=None, method=None, key=None):
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request) as answer:
            text = answer.read().decode()
        return text

    def json(self, *args, **more):
        return json.loads(self.ask(*args, **more))

    def kill(self):
        self.process.kill()
        self.process.wait()

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0


def shot(page, name):
    if shots:
        shots.mkdir(parents=True, exist_ok=True)
        time.sleep(0.3)
        page.shot(shots / f"{name}.png")


def send(page, text):
    page.js("document.getElementById('say').focus()")
    page.type(text)
    page.key("Enter")


def last(page, what=".md", nth=-1):
    return page.js(f"[...document.querySelectorAll('.message.assistant > {what}')].at({nth})?.innerText ?? ''")


DONE = "!document.querySelector('#send.stop') && !document.querySelector('.message.writing')"


def done(page):
    page.until(DONE, 120)


def here(page):
    """The open conversation as the server has it."""
    return server.json("chat/conversations/" + page.js("location.hash.slice(1)"))


def settings(page, temperature=0, most=60, seed=7):
    page.js(f"""(() => {{ const set = (label, value) => {{
        const field = [...document.querySelectorAll('#settings .field')].find((f) => f.innerText.includes(label)).querySelector('input[type=number]');
        field.value = value; field.dispatchEvent(new Event('change')); }};
        set('Temperature', {temperature}); set('Most tokens', {most}); set('Seed', {json.dumps(seed if seed is not None else "")}); }})()""")


def streams_and_stops(page):
    page.until("document.querySelector('.welcome')?.innerText.includes('SmolLM2-135M')")
    shot(page, "welcome")
    settings(page)
    send(page, "Explain why the sky is blue, in two sentences.")
    page.until("document.querySelector('.message.user > .md')?.innerText.startsWith('Explain why')")
    first = page.until("document.querySelector('.message.writing > .md')?.innerText")
    page.until(f"document.querySelector('.message.assistant > .md').innerText.length > {len(first) + 5}")
    done(page)
    shown = last(page)
    user, answer = here(page)["messages"]
    assert user["content"].startswith("Explain why") and answer["state"] in ("stop", "length"), answer
    assert shown.split() == re.sub(r"[*`#]", "", answer["content"]).split(), (shown, answer["content"])
    assert answer["seed"] == 7 and answer["usage"]["completion_tokens"] > 5 and answer["fingerprint"]
    # The same as everybody gets who asks the API.
    body = {"messages": [{"role": "user", "content": user["content"]}], "temperature": 0, "max_tokens": 60, "seed": 7}
    alone = server.json("v1/chat/completions", body)["choices"][0]["message"]["content"]
    assert alone == answer["content"], (alone, answer["content"])
    # Stop keeps what there is.
    settings(page, 0, 4000, None)
    send(page, "Write a very long story about a small tree in a large forest.")
    page.until("document.querySelector('.message.writing > .md')?.innerText.length > 60")
    page.key("Escape")
    done(page)
    stopped = last(page)
    assert "You stopped it here" in page.js("[...document.querySelectorAll('.note')].at(-1).innerText")
    until = time.time() + 10
    while (kept := here(page)["messages"][-1])["state"] == "writing" and time.time() < until:
        time.sleep(0.1)
    assert kept["state"] == "stopped" and len(kept["content"]) >= len(stopped) > 50, kept
    while '{finished_reason="abort"} 1' not in (metrics := server.ask("metrics")) and time.time() < until:
        time.sleep(0.1)
    assert '{finished_reason="abort"} 1' in metrics, metrics


def branches(page):
    settings(page, 0.9, 40, None)
    page.js("[...document.querySelectorAll('.message.user')].at(-1).querySelector('[aria-label=Edit]').click()")
    page.until("document.activeElement.classList.contains('editor')")
    page.js("document.activeElement.select()")
    page.type("Name a fruit that begins with A.")
    page.key("Enter")
    page.until("[...document.querySelectorAll('.message.user')].at(-1).innerText.includes('2/2')")
    done(page)
    page.js("[...document.querySelectorAll('.message.user')].at(-1).focus()")
    page.key("ArrowLeft")
    page.until("[...document.querySelectorAll('.message.user')].at(-1).innerText.includes('very long story')")
    page.key("ArrowRight")
    page.until("[...document.querySelectorAll('.message.user')].at(-1).innerText.includes('Name a fruit')")
    before = last(page)
    page.js("[...document.querySelectorAll('.message.assistant')].at(-1).querySelector('[aria-label=\"Answer again\"]').click()")
    page.until("[...document.querySelectorAll('.message.assistant')].at(-1).innerText.includes('2/2')")
    done(page)
    again = last(page)
    page.js("[...document.querySelectorAll('.message.assistant')].at(-1).querySelector('[aria-label=\"Bad answer\"]').click()")
    page.until("[...document.querySelectorAll('[aria-label=\"Bad answer\"]')].at(-1).getAttribute('aria-pressed') === 'true'")
    page.js("[...document.querySelectorAll('[aria-label=\"Previous version\"]')].at(-1).click()")
    page.until("[...document.querySelectorAll('.message.assistant')].at(-1).innerText.includes('1/2')")
    assert last(page) == before != again
    page.js("[...document.querySelectorAll('[aria-label=\"Good answer\"]')].at(-1).click()")
    page.until("[...document.querySelectorAll('[aria-label=\"Good answer\"]')].at(-1).getAttribute('aria-pressed') === 'true'")
    pairs = [json.loads(line) for line in server.ask("chat/feedback.jsonl?form=preferences").splitlines()]
    assert len(pairs) == 1 and pairs[0]["chosen"] != pairs[0]["rejected"] and pairs[0]["prompt"][-1]["content"].startswith("Name a fruit")
    # What is shown is what comes back.
    path = page.js("[...document.querySelectorAll('.message > .md')].map((m) => m.innerText)")
    time.sleep(0.6)
    page.reload()
    page.until("document.querySelectorAll('.message').length > 3")
    assert page.js("[...document.querySelectorAll('.message > .md')].map((m) => m.innerText)") == path


def tokens(page):
    page.click("#new")
    settings(page, 0.7, 40, 3)
    send(page, "Tell me about the moon.")
    page.until("document.querySelector('.message.assistant')")
    done(page)
    page.click("#show-tokens")
    answer = here(page)["messages"][-1]
    page.until("document.querySelectorAll('.chip').length > 5")
    chips = page.js("document.querySelectorAll('.chip').length")
    assert abs(chips - answer["usage"]["completion_tokens"]) <= 1, (chips, answer["usage"])
    page.click(".chip:nth-of-type(4)")
    page.until("document.querySelectorAll('.alternatives li').length >= 10")
    shares = page.js("[...document.querySelectorAll('.alternatives .fill')].map((f) => parseFloat(f.style.width))")
    assert 99 < sum(shares) < 106, shares
    shot(page, "tokens")
    page.key("ArrowRight")
    page.until("document.querySelector('.detail').innerText.startsWith('Token 5')")
    other = page.js("document.querySelector('.alternatives .pick code').innerText")
    page.js("document.querySelector('.alternatives .pick').click()")
    page.until("document.querySelector('.message.assistant').innerText.includes('2/2')")
    done(page)
    kept = here(page)["messages"][-1]
    assert kept["content"].startswith(kept["asked"]["begun"]) and kept["asked"]["begun"].rstrip().endswith(other.strip("·⏎"))
    assert page.js("document.querySelector('.given').innerText").strip() == kept["asked"]["begun"].strip()
    page.reload()
    page.until("document.querySelectorAll('.chip').length > 5")
    page.click("#show-tokens")
    page.until("!document.querySelector('.chip')")


HOSTILE = """# Title <img src=x onerror="window.hacked=1">

<script>window.hacked=2</script> and <b>bold</b> [bad](javascript:window.hacked=3) [data](data:text/html,<script>alert(1)</script>)
[good](https://example.org/?a=1&b=2) https://example.org/auto. ![pixel](https://example.org/pixel.png)

| a | b<svg onload=window.hacked=4> |
|---|--:|
| **x** | `y` |

- one
  - two
    1. three

> quote with *emphasis*

```html
<img src=x onerror=window.hacked=5>
```

""" + "*" * 3000 + "[" * 3000 + "> " * 500 + "deep\n" + "- " * 300 + "\n`unclosed\n\n~~~\nopen fence <iframe src=javascript:window.hacked=6>"


def hostile(page):
    made = server.json("chat/conversations", {"title": "<img src=x onerror=window.hacked=7>", "settings": {"system": "<b>", "sides": [{"model": "<i>x</i>"}]}})
    path = f"chat/conversations/{made['id']}/messages"
    user = server.json(path, {"role": "user", "content": "<img src=x onerror=window.hacked=8>"})
    server.json(path, {"role": "assistant", "content": HOSTILE, "parent": user["id"]})
    began = time.time()
    page.go(server.url + "#" + made["id"])
    page.reload()
    page.until("document.querySelector('.message.assistant .code')")
    assert time.time() - began < 10
    time.sleep(0.3)
    assert page.js("window.hacked") is None
    assert page.js("document.querySelectorAll('.message :is(img, script, iframe, svg:not(.i), b)').length") == 0
    links = page.js("[...document.querySelectorAll('.message a')].map((a) => [a.href, a.rel, a.target])")
    assert [link[0] for link in links] == ["https://example.org/?a=1&b=2", "https://example.org/auto", "https://example.org/pixel.png"], links
    assert all("noopener" in rel and target == "_blank" for _, rel, target in links)
    assert page.js("document.querySelector('.message h3').innerText").startswith("Title <img")
    assert page.js("document.querySelector('.md td strong').innerText") == "x" and page.js("!!document.querySelector('.md li li ol li')")
    assert page.js("document.querySelector('.code code').textContent") == "<img src=x onerror=window.hacked=5>"


def compares(page):
    page.click("#new")
    settings(page, 0.7, 60, None)
    page.click("#compare")
    page.until("document.querySelectorAll('.column').length === 2")
    send(page, "Write a haiku about a forest.")
    page.until("document.querySelectorAll('.message.assistant').length === 2")
    done(page)
    messages = here(page)["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "assistant"]
    page.media(True)
    shot(page, "compare")
    page.media(False)
    send(page, "Another one, about the sea.")
    page.until("document.querySelectorAll('.message.assistant').length === 4")
    done(page)
    parents = [m["parent"] for m in here(page)["messages"] if "sea" in m["content"] and m["role"] == "user"]
    assert sorted(parents) == sorted(m["id"] for m in messages[1:])
    page.click(".column:nth-child(2) .head .quiet")
    page.until("document.querySelectorAll('.column').length === 1")


def searches(page):
    page.key("k", modifiers=2)
    page.until("document.activeElement.id === 'search'")
    page.type("haiku fores")
    page.until("document.querySelector('#list mark')")
    assert page.js("document.querySelectorAll('#list .item').length") == 1
    page.key("ArrowDown")
    page.until("document.activeElement.matches('#list a')")
    page.js("document.getElementById('search').value = ''; document.getElementById('search').dispatchEvent(new Event('input'))")
    page.until("document.querySelectorAll('#list .item').length > 3")


def calls(page):
    """Calls of tools, told by a stand-in for the model: the page runs the calculator and asks again."""
    page.click("#new")
    page.js("""window.bodies = []; window.plain = window.fetch; window.fetch = async (path, options) => {
        if (!path.includes('/answers')) return window.plain(path, options);
        window.bodies.push(JSON.parse(options.body));
        const call = {index: 0, id: 'call_1', type: 'function', function: {name: 'calculator', arguments: '{"expression":"12*34"}'}};
        const deltas = window.bodies.length === 1 ? [{reasoning_content: 'I have to multiply.'}, {tool_calls: [call]}] : [{content: 'It is 408.'}];
        const lines = deltas.map((delta) => JSON.stringify({model: 'm', choices: [{delta}]}));
        lines.push(JSON.stringify({choices: [{delta: {}, finish_reason: window.bodies.length === 1 ? 'tool_calls' : 'stop'}]}));
        const body = {parent: new URL(path, location).searchParams.get('parent'), role: 'assistant', content: deltas[0].content ?? ''};
        const kept = await (await window.plain(path.replace(/answers.*/, 'messages'), {...options, body: JSON.stringify(body)})).json();
        return new Response(lines.map((l) => `data: ${l}\\n\\n`).join(''), {headers: {'x-homegrown-message': kept.id}});
    }""")
    page.js("[...document.querySelectorAll('#settings .check input')].at(-1).click()")
    send(page, "What is 12 times 34?")
    page.until("document.body.innerText.includes('It is 408.')")
    bodies = page.js("window.bodies")
    assert bodies[0]["tools"][0]["function"]["name"] == "calculator"
    assert bodies[1]["messages"][-1]["role"] == "tool" and bodies[1]["messages"][-1]["content"] == "408"
    assert bodies[1]["messages"][-2]["tool_calls"][0]["function"]["name"] == "calculator"
    assert page.js("document.querySelector('.call summary').innerText").startswith("Called calculator → 408")
    assert page.js("document.querySelector('.thinking summary').innerText") == "Thinking"
    page.js("window.fetch = window.plain")


def survives(page):
    """kill -9 in the middle of an answer: all that was shown is there afterwards."""
    global server
    page.click("#new")
    settings(page, 0, 4000, None)
    send(page, "Write a very long story about a small tree in a large forest.")
    page.until("document.querySelector('.message.writing > .md')?.innerText.length > 80")
    server.kill()
    done(page)
    shown = last(page)
    assert "The server went away" in page.js("document.querySelector('.note:not([hidden])').innerText")
    send(page, "Are you there?")
    page.until("!document.querySelector('#problem').hidden")
    assert page.js("document.getElementById('say').value") == "Are you there?"
    server = Server(server.at)
    conversation = here(page)
    cut = conversation["messages"][-1]
    assert cut["state"] == "cut" and len(shown) > 80, cut
    page.reload()
    page.until("document.querySelectorAll('.message').length === 2")
    assert last(page).split()[:len(shown.split()) - 1] == shown.split()[:-1], (shown, last(page))
    assert len(last(page)) >= len(shown)


def looks(browser, page):
    """Dark, and on a phone."""
    made = server.json("chat/conversations", {"title": "Sorting in Rust", "settings": {}})
    path = f"chat/conversations/{made['id']}/messages"
    user = server.json(path, {"role": "user", "content": "How do I sort words by length?"})
    text = ("Use `sort_by_key`, which is **stable**:\n\n```rust\nfn by_length(words: &mut Vec<String>) {\n    // Equal lengths keep their order.\n"
            "    words.sort_by_key(|word| word.len());\n}\n```\n\n| method | stable | allocates |\n|---|:-:|:-:|\n| `sort_by_key` | yes | yes |\n| `sort_unstable_by_key` | no | no |\n\n"
            "1. It compares **keys**, not words.\n2. For keys that cost much, take `sort_by_cached_key`.\n\n> A stable sort keeps equal things in their order.")
    server.json(path, {"role": "assistant", "content": text, "parent": user["id"]})
    url = server.url + "#" + made["id"]
    page.go(server.url)
    page.go(url)
    page.until("document.querySelector('.md table')")
    shot(page, "light")
    for dark in [False, True]:
        phone = browser.page(url, 360, 740, dark)
        phone.until("document.querySelector('.md table')")
        assert phone.js("document.documentElement.scrollWidth") <= 360
        background = phone.js("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == dark, background
        shot(phone, f"phone-{'dark' if dark else 'light'}")
        phone.click("#open-side")
        phone.until("document.body.classList.contains('side-open')")
        time.sleep(0.3)
        assert phone.js("document.querySelector('#side').getBoundingClientRect().left") == 0
        phone.key("Escape")
        phone.click("#open-settings")
        phone.until("!document.querySelector('#settings').hidden")
        assert phone.js("document.documentElement.scrollWidth") <= 360
        shot(phone, f"phone-settings-{'dark' if dark else 'light'}")
        assert phone.complaints() == [], phone.complaints()
    page.media(True)
    page.click("#open-settings")
    shot(page, "dark")
    page.click("#open-settings")
    page.media(False)
    page.click("#theme")
    assert page.js("document.documentElement.dataset.theme") == "dark"
    page.click("#theme")
    # All that can be clicked has a name, and the keyboard gets everywhere.
    nameless = page.js("""[...document.querySelectorAll('button, input, select, textarea, a')].filter((e) =>
        !(e.innerText || e.value || e.getAttribute('aria-label') || e.closest('label') || e.placeholder)).map((e) => e.outerHTML)""")
    assert nameless == [], nameless
    page.js("document.querySelector('.skip').focus()")
    reached = []
    while len(reached) < 40 and (not reached or reached[-1] != "say"):
        page.key("Tab")
        reached.append(page.js("document.activeElement.id || document.activeElement.className"))
    assert {"new", "search", "to-runs", "theme", "show-tokens", "open-settings", "say"} <= set(reached), reached
    assert "message user" in " ".join(reached), reached


def runs(browser):
    run = folder / "runs" / "first"
    (run / "pretrain").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"command": "homegrown grow", "seed": 0, "source": "the microworld of seed 0"}))
    line = lambda i: json.dumps({"step": i, "tokens": i * 4096, "loss": 1 + 7 / (1 + i / 30) + 0.3 * ((i * 37) % 11) / 11, "lr": 0.02 * min(1, i / 40), "grad_norm": 1 + 5 / (i + 1)}) + "\n"
    metrics = run / "pretrain" / "metrics.jsonl"
    held = lambda i: json.dumps({"step": i, "tokens": i * 4096, "heldout_bits_per_byte": 0.6 + 3 / (1 + i / 40)}) + "\n"
    metrics.write_text("".join(line(i) + (held(i) if i % 50 == 0 else "") for i in range(1, 400)))
    page = browser.page(server.url + "runs")
    page.until("document.querySelectorAll('.chart path').length >= 3 && document.querySelector('#run .live')")
    before = page.js("document.querySelector('.chart .line').getAttribute('d')")
    shot(page, "runs")
    with metrics.open("a") as file:
        file.write("".join(line(i) for i in range(400, 600)) + '{"step": 600, "tok')
    page.until(f"document.querySelector('.chart .line').getAttribute('d') !== {json.dumps(before)}")
    page.until("document.querySelector('.figures').innerText.includes('599')")
    (run / "report.html").write_text("<!doctype html><h1>The report</h1><script>document.body.innerText = 'run'; parent.hacked = 1</script><style>h1 {color: rgb(1, 2, 3)}</style>")
    page.until("[...document.querySelectorAll('.tabs button')].some((b) => b.innerText === 'Report')")
    page.js("[...document.querySelectorAll('.tabs button')].find((b) => b.innerText === 'Report').click()")
    address = page.until("document.querySelector('iframe')?.src")
    time.sleep(0.5)
    with urllib.request.urlopen(address) as answer:
        assert "sandbox" in answer.headers["content-security-policy"] and b"The report" in answer.read()
    assert page.js("window.hacked") is None
    for path in ["..%2f..%2fchat.db", "costs.html", "..", "report.md"]:
        try:
            urllib.request.urlopen(address.rsplit("/", 1)[0] + "/" + path)
            raise AssertionError(path)
        except urllib.error.HTTPError as error:
            assert error.code == 404, (path, error.code)
    # The frame's own scripts are refused, which the console tells.
    assert [c for c in page.complaints() if "sandboxed" not in c] == [], page.complaints()
    narrow = browser.page(server.url + "runs", 360, 740, True)
    narrow.until("document.querySelector('.chart path')")
    assert narrow.js("document.documentElement.scrollWidth") <= 360
    shot(narrow, "phone-runs")


def keys(browser):
    """With keys the page asks for one, and everybody sees their own."""
    global server
    make = lambda name: json.loads(subprocess.run([program, "serve", model, "--keys", str(folder / "keys"), "--new-key", name, "--json"], capture_output=True, text=True, check=True).stdout)["key"]
    ann, eve = make("Ann"), make("Eve")
    server.end()
    server = Server("127.0.0.1:0", "--keys", str(folder / "keys"))
    page = browser.page(server.url)
    for key, title in [("hg-wrong", "That key is not"), (ann, None)]:
        page.until("document.querySelector('dialog input')")
        page.js("document.querySelector('dialog input').focus()")
        page.type(key)
        page.key("Enter")
        page.until(f"document.querySelector('dialog')?.innerText.includes({json.dumps(title)})" if title else "!document.querySelector('dialog')")
    page.until("document.querySelector('.welcome')?.innerText.includes('SmolLM2')")
    page.js("new Promise((r) => setTimeout(r, 200))")
    # What was said without keys is nobody's here.
    assert page.js("document.querySelectorAll('#list .item').length") == 0
    settings(page, 0, 10)
    send(page, "A secret of Ann's")
    page.until("document.querySelector('.message.assistant')")
    done(page)
    of_ann = server.json("chat/conversations", key=ann)["data"]
    assert len(of_ann) == 1 and server.json("chat/conversations", key=eve)["data"] == []
    try:
        server.ask(f"chat/conversations/{of_ann[0]['id']}", key=eve)
        raise AssertionError("Eve read it")
    except urllib.error.HTTPError as error:
        assert error.code == 404


server = Server()
browser = Browser()
try:
    page = browser.page(server.url)
    for test in [streams_and_stops, branches, tokens, hostile, compares, searches, calls]:
        test(page)
        assert page.complaints() == [], (test.__name__, page.complaints())
        print(test.__name__, "passed", flush=True)
    survives(page)
    print("survives passed", flush=True)
    page = browser.page(server.url)
    looks(browser, page)
    assert page.complaints() == [], page.complaints()
    runs(browser)
    keys(browser)
    print("the page passed in", browser.call("Browser.getVersion")["product"])
finally:
    browser.close()
    server.kill()
    shutil.rmtree(folder, ignore_errors=True)
