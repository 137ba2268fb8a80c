"""A web server of a folder that answers requests of ranges, as object storage does; perhaps slowly.

    python tests/data/range_server.py FOLDER '{"delay": 0.02}'     # prints its port

It runs in a process of its own: in the one that reads, it would share Python's lock with the reader.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path


@dataclass
class Server:
    """Answers GET and HEAD. With `ranges` off it sends whole files; `fail` requests are refused first."""

    folder: Path
    delay: float = 0.0  # seconds before each answer, as of a network
    rate: float = 1e12  # bytes a second, of all answers together
    ranges: bool = True
    versions: bool = True  # whether it tells when a file was written
    lists: bool = True  # whether it tells that something is not there, or only that it is not allowed
    fail: int = 0
    free_at: float = 0.0  # when the line is free again
    asked: int = 0
    sent: int = 0

    async def serve(self) -> None:
        server = await asyncio.start_server(self.talk, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                writer.write(await self.answer(request.decode("latin-1")))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def answer(self, request: str) -> bytes:
        method, path, _ = request.split(" ", 2)
        fields = dict(line.lower().split(": ", 1) for line in request.split("\r\n")[1:] if ": " in line)
        await asyncio.sleep(self.delay)
        if path == "/counts":
            return reply("200 OK", json.dumps({"asked": self.asked, "sent": self.sent}).encode())
        self.asked += 1
        file = self.folder / path.partition("?")[0].lstrip("/")
        if self.fail > 0:
            self.fail -= 1
            return reply("503 Slow Down", b"")
        if not file.is_file():
            return reply("404 Not Found" if self.lists else "403 Forbidden", b"")
        size = file.stat().st_size
        start, end, status, extra = 0, size, "200 OK", ""
        if self.ranges and "range" in fields:
            first, last = fields["range"].removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last) + 1, size) if last else size
            status, extra = "206 Partial Content", f"Content-Range: bytes {start}-{end - 1}/{size}\r\n"
        extra += "Accept-Ranges: bytes\r\n" if self.ranges else "Accept-Ranges: none\r\n"
        if self.versions:
            extra += f"Last-Modified: {formatdate(file.stat().st_mtime, usegmt=True)}\r\n"
            extra += f'ETag: "{file.stat().st_mtime_ns:x}"\r\n'
        if method == "HEAD":
            return reply(status, b"", extra, size)
        with file.open("rb") as opened:
            opened.seek(start)
            data = opened.read(end - start)
        self.sent += len(data)
        now = asyncio.get_running_loop().time()
        self.free_at = max(now, self.free_at) + len(data) / self.rate
        await asyncio.sleep(self.free_at - now)
        return reply(status, data, extra)


def reply(status: str, data: bytes, extra: str = "", length: int | None = None) -> bytes:
    length = len(data) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{extra}\r\n".encode() + data


@contextmanager
def serving(folder: Path, **options: object) -> Iterator[str]:
    """The address of a server of a folder."""
    words = [sys.executable, __file__, str(folder), json.dumps(options)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(Server(Path(sys.argv[1]), **json.loads(sys.argv[2])).serve())
