"""A headless Chromium for tests of web pages, driven by the DevTools protocol over two pipes.

    @pytest.fixture(scope="module")
    def browser(tmp_path_factory):
        with open_browser(tmp_path_factory.mktemp("browser")) as browser:
            yield browser

No process outlives the block. Tests carry the mark `needs_chromium`.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Command, needs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = needs(CHROMIUM is not None, "needs chromium: apt-get install chromium")
_FLAGS = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking"
_FLAGS += " --disable-component-update --disable-sync --disable-breakpad --hide-scrollbars --remote-debugging-pipe"
_TIMEOUT = 60.0
_KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " ")}


class Browser:
    def __init__(self, command: Command, write: int, read: int) -> None:
        self._command, self._write, self._read = command, write, read
        self._buffer, self._number = b"", 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Return the result of a method of the protocol. Fail at an error, and after a minute."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _TIMEOUT
        while (answer := self._receive(deadline)).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def wait_for(self, method: str, session: str) -> None:
        deadline = time.monotonic() + _TIMEOUT
        while not any(event.get("method") == method and event.get("sessionId") == session for event in self.events):
            self.events.append(self._receive(deadline))

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if time.monotonic() > deadline or self._command.process.poll() is not None:
                pytest.fail(f"chromium does not answer:\n{self._command.output[-2000:]}")
            if select.select([self._read], [], [], 0.2)[0]:
                part = os.read(self._read, 1 << 20)
                self._buffer += part
                time.sleep(0 if part else 0.05)  # Without a part, Chromium has not opened the pipe yet.
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(
        self, path: Path | str, width: int = 1280, height: int = 900, scheme: str = "light", script: bool = True
    ) -> Page:
        """Return an HTML file, or an address, as a page of a size, `light` or `dark`, with or without JavaScript."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", session)
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.call("Emulation.setDeviceMetricsOverride", session, mobile=False, **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", session, features=features)
        self.call("Emulation.setScriptExecutionDisabled", session, value=not script)
        started = time.monotonic()
        self.call("Page.navigate", session, url=path if isinstance(path, str) else path.absolute().as_uri())
        self.wait_for("Page.loadEventFired", session)
        page = Page(self, session)
        if script:
            page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")  # The page is drawn.
        page.seconds = time.monotonic() - started
        return page


class Page:
    """An open page. `seconds` is the time from the navigation to the first drawn frame."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.seconds = 0.0

    def evaluate(self, expression: str) -> Any:
        options = {"returnByValue": True, "awaitPromise": True}
        answer = self._browser.call("Runtime.evaluate", self._session, expression=expression, **options)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, **options: Any) -> None:
        """Press a key of `_KEYS`, as a person does."""
        code, text = _KEYS[key]
        common = {"key": key, "windowsVirtualKeyCode": code, **options}
        self._browser.call("Input.dispatchKeyEvent", self._session, type="keyDown", text=text, **common)
        self._browser.call("Input.dispatchKeyEvent", self._session, type="keyUp", **common)

    def type(self, text: str) -> None:
        self._browser.call("Input.insertText", self._session, text=text)

    @property
    def errors(self) -> list[str]:
        """Errors and warnings of the console, and uncaught exceptions."""
        names = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [json.dumps(event["params"]) for event in self._events() if event["method"] in names]

    @property
    def requests(self) -> list[str]:
        """Addresses that the page loaded, without the data in the page."""
        events = (event["params"]["request"]["url"] for event in self._events("Network.requestWillBeSent"))
        return [url for url in events if not url.startswith("data:")]

    def _events(self, method: str | None = None) -> Iterator[dict[str, Any]]:
        return (
            event
            for event in self._browser.events
            if event.get("sessionId") == self._session and method in (None, event["method"])
        )


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
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
