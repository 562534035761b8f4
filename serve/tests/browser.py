"""A headless Chromium, driven over a pipe by its DevTools protocol: nothing but Python and the browser is needed."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time


class Browser:
    def __init__(self):
        name = next(filter(shutil.which, ["chromium", "chromium-browser", "google-chrome"]), None)
        assert name, "no Chromium is installed"
        self.folder = tempfile.mkdtemp()
        # The browser reads commands from its file 3 and writes to its file 4.
        read, to = os.pipe()
        back, write = os.pipe()
        flags = ["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run",
                 "--disable-dev-shm-usage", "--force-color-profile=srgb", "--disable-background-networking",
                 f"--user-data-dir={self.folder}", "about:blank"]
        command = 'exec "$0" "$@" 3<&%d 4>&%d' % (read, write)
        self.process = subprocess.Popen(["bash", "-c", command, name, *flags], pass_fds=(read, write),
                                        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        os.close(read)
        os.close(write)
        self.to, self.back, self.rest, self.count, self.events = to, back, b"", 0, []

    def _read(self, until):
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.back], [], [], max(0, until - time.time()))
            if not ready:
                return None
            more = os.read(self.back, 1 << 20)
            assert more, "the browser is gone"
            self.rest += more
        text, self.rest = self.rest.split(b"\0", 1)
        return json.loads(text)

    def call(self, method, session=None, timeout=60, **params):
        self.count += 1
        number = self.count
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self.to, json.dumps(message).encode() + b"\0")
        until = time.time() + timeout
        while (answer := self._read(until)) is not None:
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)
        raise TimeoutError(method)

    def page(self, url, width=1280, height=800, dark=False):
        return Page(self, url, width, height, dark)

    def close(self):
        self.process.terminate()
        self.process.wait(20)
        shutil.rmtree(self.folder, ignore_errors=True)


class Page:
    def __init__(self, browser, url, width, height, dark):
        self.browser = browser
        # A context of its own: no cookies, keys or settings of others.
        context = browser.call("Target.createBrowserContext")["browserContextId"]
        target = browser.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.media(dark)
        self.go(url)

    def call(self, method, **params):
        return self.browser.call(method, session=self.session, **params)

    def media(self, dark):
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def go(self, url):
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def reload(self):
        self.js("window.old = true")
        self.call("Page.reload")
        self.until("!window.old && document.readyState === 'complete'")

    def js(self, code):
        answer = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in answer, (code, answer["exceptionDetails"])
        return answer["result"].get("value")

    def until(self, code, timeout=60):
        """Waits until an expression is true, and returns it."""
        end = time.time() + timeout
        while time.time() < end:
            try:
                if (value := self.js(code)) not in (None, False, "", 0):  # A node is told as {}.
                    return value
            except AssertionError as error:
                if not any(why in str(error) for why in ["Cannot find context", "navigated or closed", "context was destroyed"]):
                    raise
            time.sleep(0.05)
        raise AssertionError(f"it never became true: {code}\n{self.js('document.body.innerText')}")

    def key(self, name, modifiers=0, text=""):
        codes = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}
        code = codes.get(name, ord(name.upper()[0]))
        text = text or ("\r" if name == "Enter" else "")
        for kind in ["keyDown", "keyUp"]:
            more = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, modifiers=modifiers, **more)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def click(self, selector):
        """Clicks as a person does: in the middle of what is visible."""
        self.until(f"document.querySelector({json.dumps(selector)})")
        x, y = self.js(f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            e.scrollIntoView({{block: "nearest"}}); const r = e.getBoundingClientRect();
            return [r.x + r.width / 2, r.y + r.height / 2]; }})()""")
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"]:
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def shot(self, path):
        data = self.call("Page.captureScreenshot", format="png")["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))

    def complaints(self):
        """What the console has to say: errors, exceptions, violations of the policy."""
        self.js("1")
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            params = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(params["exceptionDetails"].get("exception", {}).get("description", str(params)))
            if event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"] + " " + params["entry"].get("url", ""))
            if event["method"] == "Runtime.consoleAPICalled" and params["type"] == "error":
                found.append(str(params["args"]))
        return found
