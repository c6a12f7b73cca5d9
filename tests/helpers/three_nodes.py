"""A Ray cluster of three nodes on this machine, as the fixture `three_nodes`: its address and its processes.

`ray.cluster_utils.Cluster` runs in a process of its own, `python -m tests.helpers.three_nodes`. What it
starts dies with it, and it ends when its standard input ends.
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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

CPUS = (1, 2, 2)
"""Number of CPUs of each node, the head first."""
OPTIONS = {"object_store_memory": 100_000_000, "include_dashboard": False}


@dataclass
class ThreeNodes:
    """A running cluster and its processes."""

    address: str
    raylets: list[int]
    """Process ids of the raylets that are alive, the head's first: a driver hangs on that one."""

    def actors(self) -> list[int]:
        """Return the ids of the processes that run units, in order."""
        found: list[int] = []
        for raylet in self.raylets:
            found += [pid for pid in _children(raylet) if _runs("_UnitActor", pid)]
        return sorted(found)

    def kill_actor(self, chance: random.Random, limit_seconds: float = 120) -> None:
        """Kill a process that runs units, as soon as there is one: those of a new driver may be starting."""
        deadline = time.monotonic() + limit_seconds
        actors = self.actors()
        while not actors:
            assert time.monotonic() < deadline, "no actor was started in time"
            time.sleep(0.01)
            actors = self.actors()
        os.kill(chance.choice(actors), signal.SIGKILL)

    def kill_raylet(self, chance: random.Random) -> None:
        """Kill the raylet of a node that is not the head, and with it the node's workers."""
        victim = chance.choice(self.raylets[1:])
        os.kill(victim, signal.SIGKILL)
        self.raylets.remove(victim)

    def node_of(self, actor: str) -> int | None:
        """Return the raylet of the node that runs an actor of a class; None where there is none."""
        for raylet in self.raylets:
            if any(_runs(actor, pid) for pid in _children(raylet)):
                return raylet
        return None

    def kill_node(self, raylet: int) -> None:
        """Kill a node, not the head: its raylet and all processes that it started, at once."""
        assert raylet != self.raylets[0], "the cluster ends with its head"
        for pid in (raylet, *_children(raylet)):
            # One of them may have ended by itself.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.raylets.remove(raylet)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for thread_children in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in _read(thread_children).split()]
    return found


def _runs(actor: str, pid: int) -> bool:
    """Tell whether a process is one of an actor's class."""
    return actor.encode() in _read(Path(f"/proc/{pid}/cmdline"))


def _read(file: Path) -> bytes:
    """Read a file of /proc; return nothing if its process, or its thread, ended."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[ThreeNodes]:
    """A cluster with token authentication; this process and those that it starts have its token."""
    # Here, not above: Ray takes a second that most tests do not need.
    from dualtoken.infra.ray_session import reread_authentication  # noqa: PLC0415

    folder = tempfile.mkdtemp(prefix="dt-", dir="/tmp")  # short: Ray's socket paths have a limit
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        reread_authentication()
        cluster, description = _start(folder)
        try:
            yield ThreeNodes(**json.loads(description))
        finally:
            _stop(cluster)
            shutil.rmtree(folder, ignore_errors=True)
    reread_authentication()


def _start(folder: str, tries: int = 3) -> tuple["subprocess.Popen[bytes]", bytes]:
    """Start the cluster and return the line that it prints.

    Ray gives a node 30 seconds, which a busy machine may exceed: then the cluster is started again.
    """
    # Ray writes the address to a file of its temporary folder, where other drivers would find it.
    environment = {**os.environ, "RAY_TMPDIR": folder}
    for _ in range(tries):
        cluster = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.three_nodes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert cluster.stdout is not None
        description = cluster.stdout.readline()
        if description:
            return cluster, description
        _stop(cluster)
    raise AssertionError(f"no cluster in {tries} tries: what Ray says of it is above")


def _stop(cluster: "subprocess.Popen[bytes]") -> None:
    try:
        cluster.communicate(timeout=60)
    finally:
        cluster.kill()


def main() -> None:
    """Start the cluster, print what it is, and stop it when standard input ends."""
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
