"""Headless Chromium, driven over its own debugging protocol: pages, clicks, pictures and downloads."""

from __future__ import annotations

import base64
import io
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)"
)
# as root in a container without a GPU: no sandbox, WebGL in software, shared memory in files
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--remote-debugging-port=0", "--remote-allow-origins=*",
)  # fmt: skip
WAIT = 120.0  # seconds; software WebGL on a busy machine


class Page:
    """One tab. Console errors, uncaught exceptions and requests are collected as they come."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._ids = socket, itertools.count(1)
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command; the events that come before its answer are noted."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            message = json.loads(self._socket.recv(timeout=WAIT))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)
        raise TimeoutError(method)

    def _note(self, event: dict[str, Any]) -> None:
        kind, values = event.get("method"), event.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.errors.append(str(values["exceptionDetails"]))
        elif kind == "Runtime.consoleAPICalled" and values["type"] in ("error", "assert"):
            self.errors.append(str([part.get("value", part.get("description")) for part in values["args"]]))
        elif kind == "Log.entryAdded" and values["entry"]["level"] == "error":
            self.errors.append(values["entry"]["text"] + " " + values["entry"].get("url", "")[:200])
        elif kind == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"][:200])

    def open(self, address: str) -> None:
        self.send("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression; promises are awaited."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, condition: str, seconds: float = WAIT) -> Any:
        """Waits for an expression to become true; returns its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(condition)):
            assert time.monotonic() < deadline, f"{condition} did not come true; errors: {self.errors}"
            time.sleep(0.1)
        return value

    def picture(self, selector: str = "body") -> np.ndarray:
        """(height, width, 3) uint8 of an element, scrolled into view."""
        place = self.place(selector)
        shot = self.send("Page.captureScreenshot", format="png", clip={**place, "scale": 1})
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB"))

    def place(self, selector: str) -> dict[str, float]:
        """x, y, width and height of an element in the page, scrolled into view."""
        return self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView();"
            "const r = e.getBoundingClientRect(); return {x: r.x + scrollX, y: r.y + scrollY,"
            "width: r.width, height: r.height}; })()"
        )

    def drag(self, start: tuple[float, float], end: tuple[float, float], steps: int = 8) -> None:
        """The left mouse button from one point of the window to another."""
        self._mouse("mousePressed", *start)
        for k in range(1, steps + 1):
            self._mouse("mouseMoved", *(a + (b - a) * k / steps for a, b in zip(start, end, strict=True)))
            time.sleep(0.02)
        self._mouse("mouseReleased", *end)

    def click(self, x: float, y: float) -> None:
        self._mouse("mousePressed", x, y)
        self._mouse("mouseReleased", x, y)

    def key(self, name: str) -> None:
        for kind in ("keyDown", "keyUp"):
            code = {"key": name, "code": name, "windowsVirtualKeyCode": KEYS[name]}
            self.send("Input.dispatchKeyEvent", type=kind, **code)

    def _mouse(self, kind: str, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1, buttons=1)

    def wait(self, condition: Callable[[], bool], seconds: float = WAIT) -> None:
        """Waits for something outside the page, and keeps on taking in what the page says."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            self.run("1")
            time.sleep(0.1)

    def settled(self, selector: str = "body", seconds: float = WAIT) -> np.ndarray:
        """A picture of an element that has stopped moving: two in turn are the same."""
        deadline, before = time.monotonic() + seconds, self.picture(selector)
        while True:
            time.sleep(0.5)
            after = self.picture(selector)
            if np.array_equal(before, after):
                return after
            assert time.monotonic() < deadline, f"{selector} keeps moving"
            before = after

    def downloaded(self, folder: Path, name: str) -> bytes:
        """A file, once it is there; until then it has another name."""
        deadline = time.monotonic() + WAIT
        while not (folder / name).is_file():
            assert time.monotonic() < deadline, f"{name} was not downloaded"
            time.sleep(0.1)
        return (folder / name).read_bytes()

    def press(self, label: str) -> None:
        """Clicks the button with a label, once it is there."""
        button = f"[...document.querySelectorAll('button')].find(b => b.innerText.trim() === {label!r})"
        self.until(f"Boolean({button})")
        self.run(f"{button}.click()")

    def download_to(self, folder: Path) -> None:
        """Where downloads go from now on."""
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))


KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "Home": 36}


@contextmanager
def chromium(profile: Path, size: tuple[int, int]) -> Iterator[Page]:
    """A browser with one page; `profile` is a new folder for its state.

    Args:
        size: (width, height) of its window; small ones are quicker, as a processor draws their WebGL.
    """
    from websockets.sync.client import connect

    own = [f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", "about:blank"]
    browser = subprocess.Popen(
        [str(CHROMIUM), *FLAGS, *own], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        address = _page_address(profile)
        with connect(address, max_size=None, compression=None) as socket:
            yield Page(socket)
    finally:
        browser.terminate()
        try:
            browser.wait(10)
        except subprocess.TimeoutExpired:
            browser.kill()
            browser.wait()


def _page_address(profile: Path) -> str:
    """Of the first tab's socket; the browser writes its port into a file when it is ready."""
    from urllib.request import urlopen

    file, deadline = profile / "DevToolsActivePort", time.monotonic() + WAIT
    while True:
        assert time.monotonic() < deadline, "chromium did not start"
        if file.is_file() and len(lines := file.read_text().split()) > 1:
            with urlopen(f"http://127.0.0.1:{lines[0]}/json/list", timeout=10) as answer:
                pages = [tab for tab in json.load(answer) if tab["type"] == "page"]
            if pages:
                return pages[0]["webSocketDebuggerUrl"]
        time.sleep(0.1)
