"""An HTTP proxy that injects faults into the requests of a test.

It drops and delays requests, cuts replies short, loses replies to requests that took effect, and refuses
requests as S3 does. Which request gets a fault follows from a seed, the method and the path, never from the
clock. A request that is made again goes through, unless it is refused. Faults are counted by kind.
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
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

Fault = Literal["drop", "delay", "cut", "lose"]
"""A fault of a request.

In order: it never reaches the server; it reaches it late; its reply ends after half of the body; its reply is
lost after it took effect.
"""
FAULTS: tuple[Fault, ...] = ("drop", "delay", "cut", "lose")
DELAY_SECONDS = 0.3
NOT_FORWARDED = {"expect", "connection"}
NOT_RETURNED = {"connection", "transfer-encoding", "content-length", "date", "server"}


class Refusal(NamedTuple):
    """Which requests are refused, and what is said."""

    asked: frozenset[str]
    """HTTP methods, and LIST for a GET that lists."""
    status: int
    code: str
    """Code of S3, in the reply's body; a reply to HEAD has none."""


class Faults:
    """Decides which request gets which fault, and counts them."""

    def __init__(self, seed: int, share: float, kinds: Sequence[Fault] = FAULTS) -> None:
        self.seed = seed
        self.share = share
        """Share of requests that get a fault, in [0, 1]."""
        self.kinds = kinds
        self.counts: Counter[str] = Counter()
        """Number of faults by kind and method, such as "lose PUT"."""
        self.requests = 0
        self.dead_after: int | None = None
        """Number of requests after which every one is dropped."""
        self.refusal: Refusal | None = None
        self._drawn: set[str] = set()
        self._lock = threading.Lock()

    def draw(self, method: str, path: str) -> Fault | None:
        """Return the fault of a request, or None."""
        with self._lock:
            self.requests += 1
            if self.dead_after is not None and self.requests > self.dead_after:
                return "drop"
            name = f"{self.seed} {method} {path}"
            if name in self._drawn:
                return None
            self._drawn.add(name)
            random_bytes = hashlib.sha256(name.encode()).digest()
            uniform = int.from_bytes(random_bytes[:4], "big") / 2**32
            if uniform >= self.share:
                return None
            fault = self.kinds[random_bytes[4] % len(self.kinds)]
            self.counts[f"{fault} {method}"] += 1
            return fault


@contextmanager
def fault_proxy(server: str, faults: Faults) -> Iterator[str]:
    """Run a proxy in front of the HTTP server at an address; yield the proxy's address."""

    class Handler(_Handler):
        upstream = urlsplit(server).netloc
        plan = faults

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
        refusal = self.plan.refusal
        if refusal and self._asked() in refusal.asked:
            self._refuse(refusal)
            return
        fault = self.plan.draw(self.command, self.path)
        if fault == "drop":
            self._hang_up()
            return
        if fault == "delay":
            time.sleep(DELAY_SECONDS)
        reply, content = self._forward(body)
        if fault == "lose":
            self._hang_up()
            return
        self._return_head(reply, len(content))
        if fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            self._hang_up()
        else:
            self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve  # noqa: N815

    def _asked(self) -> str:
        if self.command == "GET" and "list-type=2" in self.path:
            return "LIST"
        return self.command

    def _refuse(self, refusal: Refusal) -> None:
        content = f"<Error><Code>{refusal.code}</Code><Message>no</Message></Error>".encode()
        self.plan.counts[f"refuse {self._asked()}"] += 1
        self.send_response(refusal.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _forward(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        """Make the request of the real server; return its reply and the body of that."""
        headers = dict(self.headers.items())
        for name in self.headers:
            if name.lower() in NOT_FORWARDED:
                headers.pop(name, None)
        server = http.client.HTTPConnection(self.upstream, timeout=60)
        server.request(self.command, self.path, body, headers)
        reply = server.getresponse()
        content = reply.read()
        server.close()
        return reply, content

    def _return_head(self, reply: http.client.HTTPResponse, content_length: int) -> None:
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in NOT_RETURNED:
                self.send_header(name, value)
        length: str | None = str(content_length)
        if self.command == "HEAD":
            length = reply.getheader("Content-Length")
        self.send_header("Content-Length", length or "0")
        self.end_headers()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing."""
