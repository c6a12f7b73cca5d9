"""A hub on this machine: the few endpoints of huggingface_hub that one upload and one download use; repositories in memory."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, NamedTuple


class Hub(NamedTuple):
    """What is served."""

    address: str
    repositories: dict[str, dict[str, bytes]]  # contents by name of repository, then of file


class _Handler(BaseHTTPRequestHandler):
    repositories: dict[str, dict[str, bytes]]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Say nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        match self.path.split("?")[0].strip("/").split("/"):
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                self.repositories.setdefault(name, {})
                self._say({"url": f"{self._here}/{name}", "name": name})
            case ["api", "validate-yaml"]:
                self._say({"errors": [], "warnings": []})
            case ["api", "models", _, _, "preupload", "main"]:
                names = [file["path"] for file in json.loads(body)["files"]]
                self._say(
                    {
                        "files": [
                            {"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names
                        ]
                    }
                )
            case ["api", "models", owner, name, "commit", "main"]:
                files = self.repositories[f"{owner}/{name}"]
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                commit = _commit(files)
                self._say(
                    {
                        "success": True,
                        "commitOid": commit,
                        "commitUrl": f"{self._here}/{owner}/{name}/commit/{commit}",
                    }
                )
            case _:
                self._say({"error": "no such endpoint"}, 404)

    def do_GET(self) -> None:
        match self.path.split("?")[0].strip("/").split("/"):
            case ["api", "models", owner, name, "tree", _] if (
                files := self.repositories.get(f"{owner}/{name}")
            ) is not None:
                self._say(
                    [
                        {"type": "file", "path": file, "size": len(files[file]), "oid": _sha1(files[file])}
                        for file in files
                    ]
                )
            case ["api", "models", owner, name, *_] if (
                files := self.repositories.get(f"{owner}/{name}")
            ) is not None:
                siblings = [{"rfilename": file} for file in files]
                self._say(
                    {
                        "id": f"{owner}/{name}",
                        "sha": _commit(files),
                        "siblings": siblings,
                        "private": False,
                        "tags": [],
                    }
                )
            case [owner, name, "resolve", _, file] if file in (
                files := self.repositories.get(f"{owner}/{name}", {})
            ):
                self._send(files[file], {"ETag": f'"{_sha1(files[file])}"', "X-Repo-Commit": _commit(files)})
            case _:
                self._send(b"", {"X-Error-Code": "RepoNotFound"}, 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    @property
    def _here(self) -> str:
        return f"http://{self.headers['Host']}"

    def _say(self, answer: Any, status: int = 200) -> None:
        self._send(json.dumps(answer).encode(), {"Content-Type": "application/json"}, status)

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _commit(files: dict[str, bytes]) -> str:
    return _sha1(b"".join(name.encode() + content for name, content in sorted(files.items())))


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def local_hub() -> Iterator[Hub]:
    """Serve as long as the context lasts."""
    handler = type("Handler", (_Handler,), {"repositories": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield Hub(f"http://127.0.0.1:{server.server_port}", handler.repositories)
        server.shutdown()
        thread.join()
