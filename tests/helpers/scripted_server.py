"""A real server that answers as a test tells it, and what the fetcher makes of its answers."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dualtoken.infra.fetch import Fetched, Fetcher, FetchFailed, FetchLimits

Answer = Callable[[socket.socket, str, int], None]
"""Function of the connection, the whole request head, and the number of requests before this one."""
LIMITS = FetchLimits(
    max_bytes=100_000,
    deadline_seconds=2.0,
    max_redirects=3,
    retries=2,
    concurrency=4,
    allow_private_addresses=True,
)


class Served:
    """A running server, with what it was asked and when."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        """Heads of all requests, in order."""
        self.times: list[float] = []
        """Moment of each request, seconds of `time.monotonic`."""
        self.base = ""
        """The server's address."""


@contextmanager
def serving(answer: Answer) -> Iterator[Served]:
    """Run a server while the block runs; each request has a thread of its own."""
    served = Served()
    listener = socket.create_server(("127.0.0.1", 0))
    served.base = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread = threading.Thread(target=_accept, args=(listener, served, answer), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def _accept(listener: socket.socket, served: Served, answer: Answer) -> None:
    """Accept connections until the listener is shut down."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        arguments = (connection, served, answer)
        threading.Thread(target=_serve_connection, args=arguments, daemon=True).start()


def _serve_connection(connection: socket.socket, served: Served, answer: Answer) -> None:
    with connection:
        head = _read_head(connection)
        if not head:
            return
        number = len(served.requests)
        served.requests.append(head)
        served.times.append(time.monotonic())
        try:
            answer(connection, head, number)
        except OSError:
            return  # the client hung up


def _read_head(connection: socket.socket) -> str:
    """Read up to the empty line after the head; return "" if the client hangs up before."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        if not chunk:
            return ""
        data += chunk
    return data.decode()


def reply(body: bytes = b"", status: str = "200 OK", **headers: str) -> Answer:
    """Return an answer with a body; `content_type="text/html"` sets a header, "" leaves it out."""
    values = {"Content-Length": str(len(body)), "Connection": "close"}
    for name, value in headers.items():
        values[name.replace("_", "-")] = value
    head = f"HTTP/1.1 {status}\r\n"
    for name, value in values.items():
        if value:
            head += f"{name}: {value}\r\n"
    content = head.encode("utf-8", "surrogateescape") + b"\r\n" + body
    return lambda connection, _head, _number: connection.sendall(content)


def in_turn(*answers: Answer) -> Answer:
    """Return an answer that is the first one to the first request, and so on; the last one is repeated."""

    def answer(connection: socket.socket, head: str, number: int) -> None:
        answers[min(number, len(answers) - 1)](connection, head, number)

    return answer


def drip(connection: socket.socket, _head: str, _number: int) -> None:
    """Answer with one byte every 20 ms, without end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def endless(connection: socket.socket, _head: str, _number: int) -> None:
    """Answer as fast as the client reads, without end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 65536)


def get(url: str, limits: FetchLimits = LIMITS) -> Fetched | FetchFailed:
    """Fetch one URL."""

    async def fetch_once() -> Fetched | FetchFailed:
        async with Fetcher(limits) as fetcher:
            return await fetcher.fetch(url)

    return asyncio.run(fetch_once())


def reason(result: Fetched | FetchFailed) -> str:
    """Return why a fetch failed."""
    assert isinstance(result, FetchFailed), result
    return result.reason
