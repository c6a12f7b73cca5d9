"""Two real S3 servers: moto, which honours If-None-Match, and rclone, which ignores it but checks keys."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import s3fs

from tests.helpers.waiting import accepts_connections, free_ports, wait_until

KEY = "AKIDTEST000000000001"
SECRET = "secretsecretsecretsecret"
BIN = Path(sys.executable).parent


@contextmanager
def s3_server(kind: str, folder: Path) -> Iterator[str]:
    """Run a server with an empty bucket `test`, its address and keys in the environment; yield s3://test."""
    (port,) = free_ports(1)
    environment = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        server = subprocess.Popen(
            _command(kind, port, folder),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ.copy(),
        )
        try:
            wait_until(lambda: accepts_connections(port), seconds=60)
            s3fs.S3FileSystem.clear_instance_cache()  # of another test's server
            s3fs.S3FileSystem().mkdir("test")
            yield "s3://test"
        finally:
            server.terminate()
            server.wait(20)
            s3fs.S3FileSystem.clear_instance_cache()


def _command(kind: str, port: int, folder: Path) -> list[str]:
    if kind == "moto":
        return [str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    assert kind == "rclone", kind
    command = [str(BIN / "rclone"), "serve", "s3"]
    command += ["--auth-key", f"{KEY},{SECRET}"]
    command += ["--addr", f"127.0.0.1:{port}", str(folder)]
    return command
