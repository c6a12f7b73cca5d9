"""Serve images that a run made itself over HTTP on this machine, so that they take the same way as any URL's."""

import mimetypes
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from threading import Thread
from typing import cast
from urllib.parse import unquote, urlsplit

Lookup = Callable[[str], bytes | None]
"""From a path without its leading slash to the body, or None where there is none; called by several threads."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    lookup: Lookup

    def handle_error(self, request: object, client_address: object) -> None:
        # A client that hangs up is its own business; anything else is printed with its traceback.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(cast("socket", request), cast("str", client_address))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "dualtoken"
    sys_version = ""
    timeout = 30
    # Head and body leave in one segment; else Nagle's algorithm waits for the client's delayed acknowledgement.
    wbufsize = 1 << 16
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        path = unquote(urlsplit(self.path).path).lstrip("/")
        body = self.server.lookup(path)
        status, kind = HTTPStatus.OK, mimetypes.guess_type(path)[0] or "application/octet-stream"
        if body is None:
            status, kind, body = HTTPStatus.NOT_FOUND, "text/plain", b"no such image\n"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815  (the name that http.server looks for)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (overrides)
        """Say nothing: the ledger has a row per image."""


@contextmanager
def serve_images(lookup: Lookup) -> Generator[str]:
    """Answer GET and HEAD on 127.0.0.1 and a free port while the block runs; yield `http://127.0.0.1:<port>`."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.lookup = lookup
    thread = Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="image-server", daemon=True
    )
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
