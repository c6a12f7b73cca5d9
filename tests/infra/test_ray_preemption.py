"""A training leaves a node that is about to be taken away, and goes on on others of a cluster."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist
from ray import cloudpickle
from ray._private.state import actors

from dualtoken.infra.ray_session import ray_session
from dualtoken.infra.ray_train import WorkerRun, fit
from tests.helpers.ray_head import RayHead
from tests.helpers.three_nodes import ThreeNodes

pytestmark = pytest.mark.slow
STEPS = 300


@pytest.fixture
def _session(three_nodes: ThreeNodes) -> Iterator[None]:
    this = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(this)  # workers cannot import a test
    with ray_session(three_nodes.address):
        yield
    cloudpickle.unregister_pickle_by_value(this)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data warns of its own defaults
@pytest.mark.usefixtures("_session")
def test_a_group_leaves_a_node_that_is_drained_and_takes_no_step_twice(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fit(
        _loop,
        {"folder": str(tmp_path)},
        name="run",
        storage_path=str(tmp_path),
        is_final=lambda _: True,
        group_sizes=(2,),
        max_failures=0,
    )
    first, second = (tmp_path / "starts").read_text().splitlines()
    [drained] = (tmp_path / "drained").read_text().split()
    assert drained in first
    assert drained not in second
    steps = (tmp_path / "steps").read_text().split()
    assert steps == [str(step) for step in range(STEPS)]
    told = "".join(capfd.readouterr())
    assert told.count(f"nodes {drained} are about to be taken away: the training goes on") == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_drains_are_watched_for_on_one_node_that_others_may_join_and_not_on_a_cluster_of_our_own(
    tmp_path: Path, ray_head: RayHead
) -> None:
    this = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(this)
    for address, is_watched in (("local", False), (ray_head.cluster, True)):
        with ray_session(address, num_cpus=1, object_store_mb=100):
            fit(_do_nothing, {}, name=address, storage_path=str(tmp_path), is_final=lambda _: True)
            names = {actor["ActorClassName"] for actor in actors().values()}
        assert "TrainController" in names
        assert ("PreemptionWatcher" in names) == is_watched
    cloudpickle.unregister_pickle_by_value(this)


def _do_nothing(_settings: dict[str, Any], _run: WorkerRun) -> bool:
    return True


def _loop(settings: dict[str, Any], run: WorkerRun) -> bool:
    """Count steps in a file, slowly at first; the first worker's node is drained before the first step."""
    steps = Path(settings["folder"]) / "steps"
    first = len(steps.read_text().split()) if steps.exists() else 0
    nodes = [""] * run.world_size
    dist.all_gather_object(nodes, ray.get_runtime_context().get_node_id())
    if run.rank == 0:
        with (steps.parent / "starts").open("a") as file:
            file.write(f"{' '.join(nodes)}\n")
        if first == 0:
            _drain_this_node(steps.parent)
    for step in range(first, STEPS):
        if first == 0:
            time.sleep(0.1)
        if run.rank == 0:
            with steps.open("a") as file:
                file.write(f"{step} ")
        must_stop = torch.tensor(float(run.asked_to_stop()))
        dist.all_reduce(must_stop)
        if must_stop and step < STEPS - 1:
            return False
    return True


def _drain_this_node(folder: Path) -> None:
    context = ray.get_runtime_context()
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", context.gcs_address]
    command += ["--node-id", context.get_node_id(), "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "test", "--deadline-remaining-seconds", "300"]
    subprocess.run(command, check=True)
    (folder / "drained").write_text(context.get_node_id())
