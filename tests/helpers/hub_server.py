"""A model hub on this machine, with repositories in memory.

It has the few endpoints that one upload and one download of huggingface_hub use.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, NamedTuple

Files = dict[str, bytes]
"""Contents by file name."""


class Hub(NamedTuple):
    """A hub while it is served."""

    address: str
    repositories: dict[str, Files]  # by name, OWNER/NAME


class _Handler(BaseHTTPRequestHandler):
    repositories: dict[str, Files]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Log nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        match self._path_parts():
            case ["api", "repos", "create"]:
                self._create(json.loads(body))
            case ["api", "validate-yaml"]:
                self._reply({"errors": [], "warnings": []})
            case ["api", "models", _, _, "preupload", "main"]:
                self._tell_upload_modes(json.loads(body))
            case ["api", "models", owner, name, "commit", "main"]:
                self._commit_files(f"{owner}/{name}", body.splitlines())
            case _:
                self._reply({"error": "no such endpoint"}, 404)

    def do_GET(self) -> None:
        match self._path_parts():
            case ["api", "models", owner, name, "tree", _] if f"{owner}/{name}" in self.repositories:
                self._list_files(self.repositories[f"{owner}/{name}"])
            case ["api", "models", owner, name, *_] if f"{owner}/{name}" in self.repositories:
                self._describe(f"{owner}/{name}")
            case [owner, name, "resolve", _, file] if file in self.repositories.get(f"{owner}/{name}", {}):
                files = self.repositories[f"{owner}/{name}"]
                headers = {"ETag": f'"{_sha1(files[file])}"', "X-Repo-Commit": _commit_id(files)}
                self._send(files[file], headers)
            case _:
                self._send(b"", {"X-Error-Code": "RepoNotFound"}, 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _create(self, request: dict[str, str]) -> None:
        name = f"{request['organization']}/{request['name']}"
        self.repositories.setdefault(name, {})
        self._reply({"url": f"{self._own_address()}/{name}", "name": name})

    def _tell_upload_modes(self, request: dict[str, Any]) -> None:
        mode = {"uploadMode": "regular", "shouldIgnore": False}
        self._reply({"files": [{"path": file["path"], **mode} for file in request["files"]]})

    def _commit_files(self, repository: str, lines: list[str]) -> None:
        files = self.repositories[repository]
        for line in lines:
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        commit = _commit_id(files)
        url = f"{self._own_address()}/{repository}/commit/{commit}"
        self._reply({"success": True, "commitOid": commit, "commitUrl": url})

    def _list_files(self, files: Files) -> None:
        listing: list[dict[str, object]] = []
        for name, content in files.items():
            listing.append({"type": "file", "path": name, "size": len(content), "oid": _sha1(content)})
        self._reply(listing)

    def _describe(self, repository: str) -> None:
        files = self.repositories[repository]
        description = {
            "id": repository,
            "sha": _commit_id(files),
            "siblings": [{"rfilename": name} for name in files],
            "private": False,
            "tags": [],
        }
        self._reply(description)

    def _path_parts(self) -> list[str]:
        return self.path.split("?")[0].strip("/").split("/")

    def _own_address(self) -> str:
        return f"http://{self.headers['Host']}"

    def _reply(self, document: Any, status: int = 200) -> None:
        self._send(json.dumps(document).encode(), {"Content-Type": "application/json"}, status)

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _commit_id(files: Files) -> str:
    """Return an id that stands for the names and contents of all files."""
    named_contents = [name.encode() + content for name, content in sorted(files.items())]
    return _sha1(b"".join(named_contents))


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def local_hub() -> Iterator[Hub]:
    """Serve an empty hub while the block runs."""
    handler = type("Handler", (_Handler,), {"repositories": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield Hub(f"http://127.0.0.1:{server.server_port}", handler.repositories)
        server.shutdown()
        thread.join()
