"""A Ray cluster of three nodes on this machine, as a fixture: `three_nodes` has its address and knows its processes.

`ray.cluster_utils.Cluster` runs in a process of its own, `python -m tests.three_nodes`: what it starts dies with it, and it ends
with its standard input.
"""

import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

CPUS = (1, 2, 2)
"""Of each node, the head first."""
OPTIONS = {"object_store_memory": 100_000_000, "include_dashboard": False}


@dataclass
class ThreeNodes:
    """What a test may know of the cluster, and do to it."""

    address: str
    raylets: list[int]
    """Process ids of those alive, the head's first: a driver hangs on that one."""

    def actors(self) -> list[int]:
        """Return the processes that do units, in order of id."""
        return sorted(pid for raylet in self.raylets for pid in _children(raylet) if _is_actor(pid))

    def kill_actor(self, chance: random.Random, limit_seconds: float = 120) -> None:
        """Kill a process that does units, as soon as there is one: a new driver's may be starting."""
        until = time.monotonic() + limit_seconds
        while not (actors := self.actors()):
            assert time.monotonic() < until, "no actor was started in time"
            time.sleep(0.01)
        os.kill(chance.choice(actors), signal.SIGKILL)

    def kill_raylet(self, chance: random.Random) -> None:
        """Kill the raylet of a node that is not the head, which its workers go with."""
        os.kill(victim := chance.choice(self.raylets[1:]), signal.SIGKILL)
        self.raylets.remove(victim)


def _children(pid: int) -> list[int]:
    return [
        int(child) for tasks in Path(f"/proc/{pid}/task").glob("*/children") for child in _read(tasks).split()
    ]


def _is_actor(pid: int) -> bool:
    return b"_UnitActor" in _read(Path(f"/proc/{pid}/cmdline"))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # the process, or its thread, ended
        return b""


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[ThreeNodes]:
    """A cluster with token authentication on; this process and those that it starts have its token."""
    from dualtoken.infra.ray_session import reread_authentication  # noqa: PLC0415  (Ray takes a second that most tests do not need)

    folder = tempfile.mkdtemp(prefix="dt-", dir="/tmp")  # short: Ray's socket paths have a limit
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"MODE": "token", "TOKEN": secrets.token_hex(32)}.items():
            patch.setenv(f"RAY_AUTH_{name}", value)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        reread_authentication()
        cluster, said = _start(folder)
        try:
            yield ThreeNodes(**json.loads(said))
        finally:
            _stop(cluster)
            shutil.rmtree(folder, ignore_errors=True)
    reread_authentication()


def _start(folder: str, tries: int = 3) -> tuple["subprocess.Popen[bytes]", bytes]:
    """Start the cluster and return what it says of itself; Ray gives a node 30 seconds, which a busy machine may exceed."""
    # Ray also writes the address to a file of its temporary folder, for others to find: to be found by nobody, it has its own.
    environment = {**os.environ, "RAY_TMPDIR": folder}
    for _ in range(tries):
        cluster = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.three_nodes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert cluster.stdout is not None
        if said := cluster.stdout.readline():
            return cluster, said
        _stop(cluster)
    raise AssertionError(f"no cluster in {tries} tries: what Ray says of it is above")


def _stop(cluster: "subprocess.Popen[bytes]") -> None:
    try:
        cluster.communicate(timeout=60)
    finally:
        cluster.kill()


def main() -> None:
    """Start the cluster, tell of it, and stop it when standard input ends."""
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET  # noqa: PLC0415
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    cluster = Cluster()
    try:
        nodes = [cluster.add_node(num_cpus=cpus, wait=False, **OPTIONS) for cpus in CPUS]
        cluster.wait_for_nodes(timeout=120)
        raylets = [node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid for node in nodes]
        print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
