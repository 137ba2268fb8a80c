"""A hub on this machine that keeps what is uploaded, as the Hugging Face Hub's protocol has it."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

TOKEN = "hf_of_this_test"


class Hub(ThreadingHTTPServer):
    """Repositories of one user, whose name is `me`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}  # of each repository
        self.large: dict[str, bytes] = {}  # by SHA-256
        self.commits: list[str] = []  # their messages

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def written(self, repository: str, folder: Path) -> Path:
        """The files of a repository, in a folder."""
        folder.mkdir()
        for name, content in self.files[repository].items():
            (folder / name).write_bytes(content)
        return folder


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.reply(401, {"error": "Invalid username or password."})
            return
        match self.path.strip("/").split("/"):
            case ["api", "repos", "create"]:
                self.create(json.loads(body))
            case ["api", "validate-yaml"]:
                self.reply(200, {"errors": [], "warnings": []})
            case ["api", "models", user, name, "preupload", _]:
                uploads = [
                    {"path": file["path"], "uploadMode": "lfs" if large(file["path"]) else "regular",
                     "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]  # fmt: skip
                self.reply(200, {"files": uploads})
            case [user, name, "info", "lfs", "objects", "batch"]:
                self.reply(
                    200, {"transfer": "basic", "objects": [*map(self.place, json.loads(body)["objects"])]}
                )
            case ["api", "models", user, name, "commit", _]:
                self.commit(f"{user}/{name}", [json.loads(line) for line in body.splitlines()])
            case _:
                self.reply(404, {"error": f"{self.path} is not known here."})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self.reply(200, {})

    def do_HEAD(self) -> None:
        user, name, _, _, file = self.path.strip("/").split("/")
        there = file in self.server.files[f"{user}/{name}"]
        self.send_response(200 if there else 404)
        self.send_header("ETag", '"1"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", "1")
        if not there:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()

    def create(self, asked: dict[str, object]) -> None:
        repository = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if not repository.startswith("me/"):
            self.reply(403, {"error": f"You don't have the rights to create a model under {repository}."})
            return
        told = {"url": f"{self.server.address}/{repository}", "id": repository}
        if repository in self.server.files:
            self.reply(409, told)
            return
        hidden = asked.get("private") is True or asked.get("visibility") == "private"
        self.server.private[repository], self.server.files[repository] = hidden, {}
        self.reply(200, told)

    def place(self, asked: dict[str, object]) -> dict[str, object]:
        return asked | {"actions": {"upload": {"href": f"{self.server.address}/large/{asked['oid']}"}}}

    def commit(self, repository: str, lines: list[dict[str, dict[str, str]]]) -> None:
        for kind, value in ((line["key"], line["value"]) for line in lines):
            if kind == "header":
                self.server.commits.append(value["summary"])
            elif kind == "file":
                self.server.files[repository][value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                self.server.files[repository][value["path"]] = self.server.large[value["oid"]]
            else:
                raise ValueError(kind)
        oid = f"{len(self.server.commits):040}"
        self.reply(200, {"commitUrl": f"{self.server.address}/{repository}/commit/{oid}", "commitOid": oid})

    def reply(self, status: int, told: object) -> None:
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def large(path: str) -> bool:
    return path.endswith(".safetensors")


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
