"""A headless Chromium, spoken to over a pipe: opens a page, presses keys, answers questions about it."""

import base64
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # the tests may run as root in a container
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"),
    "--remote-debugging-pipe",
)


class Browser:
    """One tab. Source: the Chrome DevTools Protocol, messages parted by zero bytes."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = os.fdopen(reader, "rb"), os.fdopen(writer, "wb")
        self._buffer, self._count, self._session = b"", 0, ""
        self.violations: list[str] = []
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._ask("Page.enable")
        self._ask("Log.enable")
        self._ask("Runtime.enable")

    def open(self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Show a file in a window of that size."""
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self._ask("Page.navigate", url=page.resolve().as_uri())
        self._wait("Page.loadEventFired")

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, which its policy does not hinder."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press keys: Tab, Enter, or letters."""
        codes = {"Tab": 9, "Enter": 13}
        for key in keys:
            text = "\r" if key == "Enter" else key if len(key) == 1 else ""
            for kind in ("keyDown", "keyUp"):
                facts: dict[str, Any] = {"type": kind, "key": key, "windowsVirtualKeyCode": codes.get(key, 0)}
                self._ask("Input.dispatchKeyEvent", **facts, **({"text": text} if text else {}))

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        answer = self._ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._writer.write(json.dumps(message).encode() + b"\0")
        self._writer.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _wait(self, event: str) -> None:
        while self._next().get("method") != event:
            pass

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._reader.fileno(), 1 << 16)
            if not part:
                raise RuntimeError("the browser is gone")
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if message.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
            self.violations.append(json.dumps(message["params"]))
        return message


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A browser for as long as the context lasts."""
    program = next((path for name in _NAMES if (path := shutil.which(name))), None)
    assert program is not None, "no Chromium here; scripts/test installs it"
    to_child, from_child = os.pipe(), os.pipe()
    command = shlex.join([program, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"])
    child = subprocess.Popen(
        ["bash", "-c", f"exec {command} 3<&{to_child[0]} 4>&{from_child[1]}"],
        pass_fds=(to_child[0], from_child[1]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_child[0])
    os.close(from_child[1])
    try:
        yield Browser(from_child[0], to_child[1])
    finally:
        child.terminate()
        child.wait(30)
