"""Serves a run's own images over HTTP on this machine, so that they are fetched like those of any URL."""

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
"""Returns the body at a path without its leading slash, or None; called by several threads."""


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
    # Head and body leave in one segment; else Nagle's algorithm waits for the client's delayed
    # acknowledgement.
    wbufsize = 1 << 16
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        path = unquote(urlsplit(self.path).path).lstrip("/")
        status = HTTPStatus.OK
        content_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
        body = self.server.lookup(path)
        if body is None:
            status = HTTPStatus.NOT_FOUND
            content_type = "text/plain"
            body = b"no such image\n"

        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815  (the name that http.server looks for)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (overrides)
        """Say nothing: the ledger has a row per image."""


@contextmanager
def serve_images(lookup: Lookup) -> Generator[str]:
    """Answer GET and HEAD at a free port while the block runs; yield `http://127.0.0.1:<port>`."""
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
