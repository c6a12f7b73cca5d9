"""An HTTP proxy that spoils requests on purpose: it drops, delays, cuts replies short, and loses the reply to what took effect.

Which request is spoiled follows from a seed, the method and the path, not from when it comes; a spoiled request that is made
again goes through. What was spoiled is counted by kind.
"""

import hashlib
import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["drop", "delay", "cut", "lose"]
"""Before the server has it; late; after half of the reply's body; after it took effect."""


class Faults:
    """Decides what happens to a request, and says what did."""

    def __init__(
        self, seed: int, share: float, kinds: Sequence[Fault] = ("drop", "delay", "cut", "lose")
    ) -> None:
        self.seed, self.share, self.kinds = seed, share, kinds
        self.counts: Counter[str] = Counter()
        self.requests = 0
        self.dead_after: int | None = None
        """From this request on, every one is dropped."""
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def of(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests += 1
            if self.dead_after is not None and self.requests > self.dead_after:
                return "drop"
            name = f"{self.seed} {method} {path}"
            if name in self._seen:
                return None
            self._seen.add(name)
            draw = hashlib.sha256(name.encode()).digest()
            if int.from_bytes(draw[:4], "big") / 2**32 >= self.share:
                return None
            fault = self.kinds[draw[4] % len(self.kinds)]
            self.counts[f"{fault} {method}"] += 1
            return fault


@contextmanager
def fault_proxy(server: str, faults: Faults) -> Iterator[str]:
    """Yield the address of a proxy before the HTTP server at an address."""

    class Handler(_Handler):
        upstream, plan = urlsplit(server).netloc, faults

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        proxy.daemon_threads = True
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_address[1]}"
        finally:
            proxy.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    upstream: str
    plan: Faults

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.plan.of(self.command, self.path)
        if fault == "drop":
            return self._hang_up()
        if fault == "delay":
            time.sleep(0.3)
        server = http.client.HTTPConnection(self.upstream, timeout=60)
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in {"expect", "connection"}
        }
        server.request(self.command, self.path, body, headers)
        reply = server.getresponse()
        content = reply.read()
        server.close()
        if fault == "lose":
            return self._hang_up()
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in {"connection", "transfer-encoding", "content-length", "date", "server"}:
                self.send_header(name, value)
        length = reply.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            return self._hang_up()
        self.wfile.write(content)
        return None

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve  # noqa: N815

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""
