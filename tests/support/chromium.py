"""Drives a headless Chromium over its debugging pipe: real pages, real file drops, no network."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

NO_BROWSER = "no Chromium: install Debian's package chromium, or set CHROMIUM to the path of one"
_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")


def find_browser() -> str:
    """Returns the path of a Chromium, "" if there is none: CHROMIUM, that of PATH, Playwright's."""
    if named := os.environ.get("CHROMIUM"):
        return named
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH", "~/.cache/ms-playwright")).expanduser()
    downloaded = sorted(map(str, cache.glob("chromium-*/chrome-linux*/chrome")))
    found = [path for name in _NAMES if (path := shutil.which(name))]
    return next(iter(found + downloaded[::-1]), "")


BROWSER = find_browser()
needs_browser = pytest.mark.skipif(not BROWSER, reason=NO_BROWSER)


class Page:
    """One page of a browser, to be closed with `close`.

    Messages of the DevTools protocol end with NUL.
    """

    def __init__(self, path: Path, profile: Path, timeout: float = 120.0):
        self._timeout = timeout
        # The browser reads from descriptor 3 and writes to 4.
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
        script = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$@"'
        self._process = subprocess.Popen(
            [
                *("bash", "-c", script, "bash", BROWSER, *flags, f"--user-data-dir={profile}"),
                *(
                    "--remote-debugging-pipe",
                    "--host-resolver-rules=MAP * ~NOTFOUND",
                    "about:blank",
                ),
            ],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._numbers, self._rest = itertools.count(1), b""
        self.messages: list[dict[str, Any]] = []
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=path.absolute().as_uri())

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command and returns its result; events on the way are kept in `messages`."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.messages.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._in, 1 << 16)
            if not piece:
                raise RuntimeError("the browser ended")
            self._rest += piece
        line, self._rest = self._rest.split(b"\0", 1)
        return json.loads(line)

    def evaluate(self, expression: str) -> Any:
        """Returns the value of JavaScript; a promise is awaited."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Waits until JavaScript is true."""
        end = time.monotonic() + self._timeout
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition}; {self.evaluate('document.body.innerText')}")
            time.sleep(0.1)

    def drop(self, paths: Sequence[Path]) -> None:
        """Drops files in the middle of the page, as the mouse does."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=200, y=200, data=data)

    def press(self, key: str) -> None:
        """Presses and releases a key, e.g. Tab or Enter."""
        code = {"Tab": 9, "Enter": 13, " ": 32}[key]
        text = {"Enter": "\r", " ": " "}.get(key, "")
        common = {"key": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self, path: Path) -> None:
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._out)
        os.close(self._in)
