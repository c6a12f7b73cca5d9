"""A real Ray head with token authentication on, as a fixture: `dashboard` is its dashboard's address."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """The address of a cluster's dashboard; this process has its token."""
    ports = free_ports(5)
    folder = tempfile.mkdtemp(prefix="dt-head-", dir="/tmp")  # short: Ray's socket paths have a limit
    from dualtoken.infra.ray_session import reread_authentication  # noqa: PLC0415  (Ray takes a second that most tests do not need)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        # A job runs with the `python` that the cluster's PATH finds.
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        reread_authentication()
        command = [
            "ray",
            "start",
            "--head",
            "--block",
            "--num-cpus=2",
            "--disable-usage-stats",
            "--object-store-memory=100000000",
        ]
        command += [
            "--dashboard-host=127.0.0.1",
            f"--temp-dir={folder}",
            f"--port={ports[0]}",
            f"--dashboard-port={ports[1]}",
        ]
        command += [
            f"--ray-client-server-port={ports[2]}",
            f"--dashboard-agent-listen-port={ports[3]}",
            f"--metrics-export-port={ports[4]}",
        ]
        command[0] = str(Path(sys.executable).parent / "ray")
        head = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        address = f"http://127.0.0.1:{ports[1]}"
        try:
            _eventually(lambda: _lists_jobs(address), seconds=60)
            yield address
        finally:
            head.terminate()
            with suppress(subprocess.TimeoutExpired):
                head.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)
            head.wait()
            shutil.rmtree(folder, ignore_errors=True)
    reread_authentication()


def _lists_jobs(address: str) -> bool:
    from ray.job_submission import JobSubmissionClient  # noqa: PLC0415

    with suppress(ConnectionError, RuntimeError):
        JobSubmissionClient(address).list_jobs()
        return True
    return False


def _eventually(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.3)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    with_ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in with_ports]
    for server in with_ports:
        server.close()
    return ports
