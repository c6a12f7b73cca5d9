"""Real S3 servers as fixtures: moto's, which honours If-None-Match, and rclone's, which checks keys and does not."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import s3fs

from tests.helpers.ray_head import free_ports

KEY, SECRET = "AKIDTEST000000000001", "secretsecretsecretsecret"
BIN = Path(sys.executable).parent


@contextmanager
def s3_server(kind: str, folder: Path) -> Iterator[str]:
    """Run a server with an empty bucket `test`, its address and keys in the environment; yield s3://test."""
    (port,) = free_ports(1)
    command = {
        "moto": [str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        "rclone": [
            str(BIN / "rclone"),
            "serve",
            "s3",
            "--auth-key",
            f"{KEY},{SECRET}",
            "--addr",
            f"127.0.0.1:{port}",
            str(folder),
        ],
    }[kind]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}"),
        ):
            patch.setenv(name, value)
        server = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ.copy()
        )
        try:
            _wait_for(port)
            s3fs.S3FileSystem.clear_instance_cache()  # of another test's server
            s3fs.S3FileSystem().mkdir("test")
            yield "s3://test"
        finally:
            server.terminate()
            server.wait(20)
            s3fs.S3FileSystem.clear_instance_cache()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.1)
        else:
            return
