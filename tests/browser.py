"""A headless Chromium for tests of web pages, driven by the DevTools protocol over two pipes.

No process outlives the block of `open_browser`. Tests carry the mark `needs_chromium`.
"""

import json
import os
import select
import shutil
import time
from contextlib import contextmanager

import pytest
from conftest import ROOT, Command, needs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = needs(CHROMIUM is not None, "needs chromium: apt-get install chromium")
_FLAGS = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking"
_FLAGS += " --disable-component-update --disable-sync --disable-breakpad --hide-scrollbars --remote-debugging-pipe"
_TIMEOUT = 60.0
_KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " ")}


class Browser:
    def __init__(self, command, write, read):
        self._command, self._write, self._read = command, write, read
        self._buffer, self._number = b"", 0
        self.events = []

    def call(self, method, session=None, **parameters):
        """Return the result of a method of the protocol. Fail at an error, and after a minute."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer = self._receive(lambda answer: answer.get("id") == number)
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self, is_wanted):
        """Return the next wanted message. The messages before are events."""
        deadline = time.monotonic() + _TIMEOUT
        while True:
            message, end, rest = self._buffer.partition(b"\0")
            if end:
                self._buffer, found = rest, json.loads(message)
                if is_wanted(found):
                    return found
                self.events.append(found)
                continue
            if time.monotonic() > deadline or self._command.process.poll() is not None:
                pytest.fail(f"chromium does not answer:\n{self._command.output[-2000:]}")
            if select.select([self._read], [], [], 0.2)[0]:
                part = os.read(self._read, 1 << 20)
                self._buffer += part
                time.sleep(0 if part else 0.05)  # Without a part, Chromium has not opened the pipe yet.

    def open(self, path, width=1280, height=900, scheme="light", script=True):
        """Return an HTML file, or an address, as a page of a size, `light` or `dark`, with or without JavaScript."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        page.call("Emulation.setDeviceMetricsOverride", mobile=False, **size)
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        page.call("Emulation.setScriptExecutionDisabled", value=not script)
        started = time.monotonic()
        page.call("Page.navigate", url=path if isinstance(path, str) else path.absolute().as_uri())
        if not page.events("Page.loadEventFired"):
            self._receive(lambda event: event.get("method") == "Page.loadEventFired")
        if script:
            page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")  # The page is drawn.
        page.seconds = time.monotonic() - started
        return page


class Page:
    """An open page. `seconds` is the time from the navigation to the first drawn frame."""

    def __init__(self, browser, session):
        self._browser, self._session = browser, session

    def call(self, method, **parameters):
        return self._browser.call(method, self._session, **parameters)

    def evaluate(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key):
        """Press a key of `_KEYS`, as a person does."""
        code, text = _KEYS[key]
        for kind in ({"type": "keyDown", "text": text}, {"type": "keyUp"}):
            self.call("Input.dispatchKeyEvent", key=key, windowsVirtualKeyCode=code, **kind)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def events(self, *methods):
        """Return the parameters of the events of some methods."""
        own = [event for event in self._browser.events if event.get("sessionId") == self._session]
        return [event["params"] for event in own if event["method"] in methods]

    @property
    def errors(self):
        """Errors and warnings of the console, and uncaught exceptions."""
        return [*map(json.dumps, self.events("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"))]

    @property
    def requests(self):
        """Addresses that the page loaded, without the data in the page."""
        urls = [event["request"]["url"] for event in self.events("Network.requestWillBeSent")]
        return [url for url in urls if not url.startswith("data:")]


@contextmanager
def open_browser(folder):
    """Start a browser whose files are in an empty folder. The end of the block kills all processes."""
    assert CHROMIUM
    there, back = folder / "in", folder / "out"
    for pipe in (there, back):
        os.mkfifo(pipe)
    write, read = os.open(there, os.O_RDWR), os.open(back, os.O_RDONLY | os.O_NONBLOCK)
    program = [CHROMIUM, *_FLAGS.split(), f"--user-data-dir={folder / 'profile'}"]
    shell = 'exec 3<"$0" 4>"$1"; shift; exec "$@"'
    command = Command(["bash", "-c", shell, there, back, *program], folder, {**os.environ, "HOME": str(folder)}, ROOT)
    try:
        yield Browser(command, write, read)
    finally:
        command.kill()
        os.close(write)
        os.close(read)
