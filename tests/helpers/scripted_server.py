"""A real server on this machine that answers as told, and what the fetcher makes of its answers."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dualtoken.infra.fetch import Fetched, Fetcher, FetchFailed, FetchLimits

Answer = Callable[[socket.socket, str, int], None]
"""Gets the connection, the whole request head, and how many requests came before."""
LIMITS = FetchLimits(
    max_bytes=100_000,
    deadline_seconds=2.0,
    max_redirects=3,
    retries=2,
    concurrency=4,
    allow_private_addresses=True,
)


class Served:
    """A server that answers each request as told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.times: list[float] = []
        self.base = ""


def _head(connection: socket.socket) -> str:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        if not chunk:
            return ""
        data += chunk
    return data.decode()


@contextmanager
def serving(answer: Answer) -> Iterator[Served]:
    served, listener = Served(), socket.create_server(("127.0.0.1", 0))
    served.base = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def one(connection: socket.socket) -> None:
        with connection:
            if head := _head(connection):
                number = len(served.requests)
                served.requests.append(head)
                served.times.append(time.monotonic())
                try:
                    answer(connection, head, number)
                except OSError:
                    return  # The client had enough.

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def reply(body: bytes = b"", status: str = "200 OK", **headers: str) -> Answer:
    lines = {"Content-Length": str(len(body)), "Connection": "close"} | {
        k.replace("_", "-"): v for k, v in headers.items()
    }
    head = f"HTTP/1.1 {status}\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in lines.items() if value
    )
    return lambda connection, _head, _number: connection.sendall(head.encode() + b"\r\n" + body)


def in_turn(*answers: Answer) -> Answer:
    return lambda connection, head, number: answers[min(number, len(answers) - 1)](connection, head, number)


def drip(connection: socket.socket, _head: str, _number: int) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def endless(connection: socket.socket, _head: str, _number: int) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 65536)


def get(url: str, limits: FetchLimits = LIMITS) -> Fetched | FetchFailed:
    async def once() -> Fetched | FetchFailed:
        async with Fetcher(limits) as fetcher:
            return await fetcher.fetch(url)

    return asyncio.run(once())


def reason(result: Fetched | FetchFailed) -> str:
    assert isinstance(result, FetchFailed), result
    return result.reason
