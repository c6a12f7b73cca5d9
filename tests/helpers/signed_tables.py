"""A real server with a table and images that it gives to nobody without a password or a signature."""

import base64
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.helpers.images import encode, noise_image
from tests.helpers.scripted_server import Served, reply, serving

USER = "reader"


@contextmanager
def serving_signed_table(is_allowed: Callable[[str], bool], rows: int) -> Iterator[Served]:
    """Serve `t.csv` to requests whose head is allowed, and the images that its rows name to everybody."""
    images = [encode(noise_image((40 + row, 40))) for row in range(rows)]

    def answer(connection: socket.socket, head: str, number: int) -> None:
        method, target, _ = head.split(" ", 2)
        body = b""
        status = "200 OK"
        if target.startswith("/t.csv") and is_allowed(head):
            lines = [f"{served.base}/{row}.png?token=of-a-row,a caption {row}" for row in range(rows)]
            body = "\n".join(["url,caption", *lines, ""]).encode()
        elif target.startswith("/t.csv"):
            status = "403 Forbidden"
        else:
            body = images[int(target[1:].partition(".")[0])]
        answered = reply(body, status)
        if method == "HEAD":
            answered = reply(b"", status, Content_Length=str(len(body)))
        answered(connection, head, number)

    with serving(answer) as served:
        yield served


def has_query(secret: str) -> Callable[[str], bool]:
    """Allow requests with a signature in their query."""
    return lambda head: f"Signature={secret}" in head.partition(" HTTP/")[0]


def has_password(secret: str) -> Callable[[str], bool]:
    """Allow requests with a password for `USER`."""
    token = base64.b64encode(f"{USER}:{secret}".encode()).decode()
    return lambda head: f"Basic {token}" in head
