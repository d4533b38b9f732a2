"""A headless Chromium, driven by its DevTools protocol over two pipes: no package is needed."""

import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEYS = {"Enter": (13, "\r"), "ArrowDown": (40, ""), "ArrowUp": (38, ""), "Escape": (27, ""),
        "Tab": (9, ""), "/": (191, "/")}  # fmt: skip
PATIENCE = 300  # seconds without a word; machines that test may stand still for minutes


def program():
    """Where Chromium is, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a browser.

    Attributes
    ----------
    said : list of str
        Errors, and what was written to the console, since the page was opened.
    """

    def __init__(self, width=1000, height=900):
        self._folder = tempfile.mkdtemp()
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        command = [program(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   "--remote-debugging-pipe", f"--user-data-dir={self._folder}",
                   f"--window-size={width},{height}", "--disable-dev-shm-usage", "about:blank"]

        def as_3_and_4():
            given = os.dup(theirs_in), os.dup(theirs_out)
            for wanted, handle in zip((3, 4), given, strict=True):
                os.dup2(handle, wanted)

        self._process = subprocess.Popen(command, preexec_fn=as_3_and_4, close_fds=False,
                                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self._number, self._read, self._events, self.said = itertools.count(1), b"", [], []
        self._session = None
        (page,) = (target for target in self.send("Target.getTargets")["targetInfos"]
                   if target["type"] == "page")  # fmt: skip
        self._session = self.send("Target.attachToTarget", targetId=page["targetId"],
                                  flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        """Result of a command."""
        number = next(self._number)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data):]
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self._events.append(answer)

    def _receive(self):
        while b"\0" not in self._read:
            assert select.select([self._from], [], [], PATIENCE)[0], "the browser says nothing"
            part = os.read(self._from, 1 << 16)
            assert part, "the browser has ended"
            self._read += part
        message, self._read = self._read.split(b"\0", 1)
        message = json.loads(message)
        told = message.get("params", {})
        if message.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled",
                                     "Log.entryAdded"):  # fmt: skip
            self.said.append(json.dumps(told))
        return message

    def open(self, path, scheme="light"):
        """Load a file, and wait until it is there."""
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=media)
        self.said, self._events = [], []
        self.send("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._receive())

    def run(self, script):
        """Value of an expression of JavaScript."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True,
                           awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key):
        """Press and release a key."""
        code, text = KEYS[key]
        given = {"key": key, "windowsVirtualKeyCode": code, "text": text}
        self.send("Input.dispatchKeyEvent", type="keyDown", **given)
        self.send("Input.dispatchKeyEvent", type="keyUp", **given)

    def type(self, text):
        """Put text where the focus is."""
        self.send("Input.insertText", text=text)

    def first_paint(self):
        """Milliseconds from the navigation to the first contentful paint."""
        for _ in range(600):
            times = self.run("performance.getEntriesByName('first-contentful-paint')"
                             ".map(entry => entry.startTime)")
            if times:
                return times[0]
            time.sleep(0.05)
        raise AssertionError("nothing was painted")

    def screenshot(self, path):
        """Write what is seen, as PNG."""
        import base64

        data = self.send("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self):
        with contextlib.suppress(OSError):
            os.close(self._to)
        self._process.kill()  # nothing is kept
        self._process.wait()
        os.close(self._from)
        shutil.rmtree(self._folder, ignore_errors=True)
