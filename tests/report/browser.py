"""A real browser, Chromium without a window, driven through its own pipe: no library, and no port is open."""

import json
import lzma
import os
import shutil
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 120.0  # that an answer may take on a busy machine
KEYS = {
    "Enter": 13,
    "Escape": 27,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Tab": 9,
}
# The browser hears on handle 3 and answers on 4.
PIPES = """import fcntl, os, sys
ends = [fcntl.fcntl(int(word), fcntl.F_DUPFD, 10) for word in sys.argv[1:3]]
for place, end in zip((3, 4), ends):
    os.dup2(end, place)
    os.close(end)
os.execv(sys.argv[3], sys.argv[3:])"""


@cache
def checker() -> str:
    return lzma.decompress((Path(__file__).parent / "axe" / "axe.min.js.xz").read_bytes()).decode()


class Browser:
    """One page. What it says on its console and every address it asks for are kept."""

    def __init__(self, sent: int, heard: int) -> None:
        self.sent, self.heard, self.rest, self.last = sent, heard, b"", 0
        self.session: str | None = None
        self.said, self.requests = list[str](), list[str]()
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **values: Any) -> dict[str, Any]:
        self.last += 1
        message = {"id": self.last, "method": method, "params": values}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.sent, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.next()
            if answer.get("id") == self.last:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            part = os.read(self.heard, 2**20)
            assert part, "the browser has ended"
            self.rest += part
        text, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(text)
        values, kind = message.get("params", {}), message.get("method")
        if kind == "Runtime.exceptionThrown":
            details = values["exceptionDetails"]
            self.said.append(f"{details['text']} {details.get('exception', {}).get('description', '')}")
        elif kind == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
            self.said.append(str([one.get("value", one.get("description")) for one in values["args"]]))
        elif kind == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.said.append(f"{values['entry']['text']} {values['entry'].get('url', '')}")
        elif kind == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif kind == "Page.javascriptDialogOpening":
            self.said.append(f"dialog: {values['message']}")
        return message

    def open(self, address: str, *, width: int = 1280, height: int = 900, ratio: float = 1.0) -> None:
        self.size(width, height, ratio)
        self.ask("Page.navigate", url=address)
        self.until("document.documentElement.dataset.ready === 'yes'")

    def size(self, width: int, height: int, ratio: float = 1.0) -> None:
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=ratio,
                 mobile=width < 600)  # fmt: skip

    def dark(self, dark: bool) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=features)

    def js(self, text: str) -> Any:
        """The value of an expression, awaited."""
        found = self.ask("Runtime.evaluate", expression=text, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, text: str) -> Any:
        """Wait for an expression to be true."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            with suppress(AssertionError):
                if value := self.js(text):
                    return value
            time.sleep(0.05)
        raise AssertionError(f"never came: {text}; the console says {self.said}")

    def mouse(self, kind: str, x: float, y: float, *, shift: bool = False, wheel: float = 0) -> None:
        pressed = kind != "mouseMoved" and kind != "mouseWheel"
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left" if pressed else "none",
                 clickCount=int(pressed), modifiers=8 * shift, deltaX=0, deltaY=wheel)  # fmt: skip

    def drag(self, *spots: tuple[float, float], shift: bool = False) -> None:
        self.mouse("mousePressed", *spots[0], shift=shift)
        for x, y in spots[1:]:
            self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left", buttons=1,
                     modifiers=8 * shift)  # fmt: skip
        self.mouse("mouseReleased", *spots[-1], shift=shift)

    def click(self, x: float, y: float) -> None:
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def key(self, key: str, *, shift: bool = False) -> None:
        code = KEYS.get(key, ord(key[0].upper()))
        text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code,
                     modifiers=8 * shift, **(text if kind == "keyDown" else {}))  # fmt: skip

    def inaccessible(self) -> list[str]:
        """What axe-core 4.14.1 (MPL-2.0, in axe/) finds serious or critical on the page as it is."""
        self.js(f"{checker()};0")
        found = self.js(
            "axe.run(document).then((found) => found.violations"
            ".filter((one) => ['serious', 'critical'].includes(one.impact))"
            ".flatMap((one) => one.nodes.map((node) => `${one.id}: ${node.html} ${node.failureSummary}`)))"
        )
        return list(found)

    def picture(self, path: Path, whole: bool = False) -> None:
        found = self.ask("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(b64decode(found["data"]))


@contextmanager
def browser(*flags: str) -> Iterator[Browser]:
    """Chromium, which may reach nothing but files and this machine; it ends with the block."""
    assert CHROMIUM is not None
    to_read, to_send = os.pipe()
    to_hear, to_write = os.pipe()
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = [CHROMIUM, "--headless=new", "--no-sandbox", "--no-first-run",
                 "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
                 "--remote-debugging-pipe", f"--user-data-dir={profile}", *flags]  # fmt: skip
        command = [sys.executable, "-SEc", PIPES, str(to_read), str(to_write), *words]
        with subprocess.Popen(command, pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL) as process:
            os.close(to_read)
            os.close(to_write)
            try:
                yield Browser(to_send, to_hear)
            finally:
                process.terminate()
                process.wait()
                os.close(to_send)
                os.close(to_hear)
