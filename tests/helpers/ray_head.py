"""A real Ray head with token authentication: the fixture `ray_head`, and its address as `dashboard`."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.waiting import free_ports, wait_until

BIN = Path(sys.executable).parent


class RayHead(NamedTuple):
    """A running head."""

    address: str
    """The dashboard's."""
    cluster: str
    """Its own, host:port: a session connects there."""
    folder: Path
    """Where the session keeps its logs and uploads."""


@pytest.fixture(scope="module")
def dashboard(ray_head: RayHead) -> str:
    """The address of a cluster's dashboard; this process has its token."""
    return ray_head.address


@pytest.fixture(scope="module")
def ray_head() -> Iterator[RayHead]:
    """A cluster's head; this process has its token."""
    # Here, not above: Ray takes a second that most tests do not need.
    from dualtoken.infra.ray_session import reread_authentication  # noqa: PLC0415

    folder = tempfile.mkdtemp(prefix="dt-head-", dir="/tmp")  # short: Ray's socket paths have a limit
    ports = free_ports(5)
    dashboard_port, gcs_port, *_ = ports
    address = f"http://127.0.0.1:{dashboard_port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # A job runs with the `python` that the cluster's PATH finds.
        patch.setenv("PATH", str(BIN), prepend=os.pathsep)
        reread_authentication()
        head = subprocess.Popen(
            _command(folder, ports),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_until(lambda: _lists_jobs(address), seconds=60)
            yield RayHead(address, f"127.0.0.1:{gcs_port}", Path(folder))
        finally:
            _stop(head)
            shutil.rmtree(folder, ignore_errors=True)
    reread_authentication()


def _command(folder: str, ports: list[int]) -> list[str]:
    dashboard_port, gcs_port, client_port, agent_port, metrics_port = ports
    return [
        str(BIN / "ray"),
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        "--disable-usage-stats",
        "--object-store-memory=100000000",
        "--dashboard-host=127.0.0.1",
        f"--temp-dir={folder}",
        f"--port={gcs_port}",
        f"--dashboard-port={dashboard_port}",
        f"--ray-client-server-port={client_port}",
        f"--dashboard-agent-listen-port={agent_port}",
        f"--metrics-export-port={metrics_port}",
    ]


def _lists_jobs(address: str) -> bool:
    from ray.job_submission import JobSubmissionClient  # noqa: PLC0415

    with suppress(ConnectionError, RuntimeError):
        JobSubmissionClient(address).list_jobs()
        return True
    return False


def _stop(head: "subprocess.Popen[bytes]") -> None:
    """Stop the head, and then whatever is left of its process group."""
    head.terminate()
    with suppress(subprocess.TimeoutExpired):
        head.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)
    head.wait()
