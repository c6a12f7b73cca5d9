"""The server of a run's own images."""

import http.client
import threading
from urllib.parse import urlsplit

from dualtoken.infra.image_server import serve_images


def test_it_answers_by_path_over_one_connection_and_leaves() -> None:
    threads = set(threading.enumerate())
    with serve_images({"00000/0001.png": b"png", "empty.png": b""}.get) as base:
        host = urlsplit(base).netloc
        assert host.startswith("127.0.0.1:")
        connection = http.client.HTTPConnection(host)
        answers = []
        for method, path in [
            ("GET", "/00000/0001.png?x=1"),
            ("GET", "/none.png"),
            ("HEAD", "/00000/0001.png"),
            ("GET", "/empty.png"),
        ]:
            connection.request(method, path)
            response = connection.getresponse()
            assert response.version == 11
            answers.append((response.status, response.read(), response.getheader("Content-Length")))
        connection.close()
    assert answers[0] == (200, b"png", "3")
    assert answers[1][0] == 404
    assert answers[2] == (200, b"", "3")
    assert answers[3] == (200, b"", "0")
    for thread in threading.enumerate():
        if "process_request" in thread.name:
            thread.join(2)
    assert set(threading.enumerate()) <= threads
