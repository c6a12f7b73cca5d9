"""A training whose node is lost goes on from its last checkpoint on another, and ends with the same bits."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.ray_executor import newest_checkpoint
from dualtoken.pipelines.runtime.run import run_command
from tests.faults.test_killed_training import wait_for_checkpoint
from tests.helpers.command_line import dualtoken_command
from tests.helpers.three_nodes import ThreeNodes
from tests.helpers.tiny_run import PROJECT, TINY, LoadTiny, planned_job
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.slow
STEPS = 40
# Two CPUs, which the head does not have.
PARTS = (f"train.steps={STEPS}", "train.checkpoint_every=5", "train.cpus_per_worker=2")
WORKER = "RayTrainWorker"


def test_a_training_whose_node_is_killed_goes_on_elsewhere_and_ends_with_the_same_bits(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny, three_nodes: ThreeNodes
) -> None:
    whole = load_tiny(Path(shutil.copytree(finished.root, tmp_path / "whole")), *PARTS)
    run_command("train", whole, LocalExecutor(), lambda _: None)
    expected = (Path(planned_job(whole, "train").folder) / "model.safetensors").read_bytes()

    root = Path(shutil.copytree(finished.root, tmp_path / "data"))
    job = planned_job(load_tiny(root, *PARTS), "train")
    training = _train_on(three_nodes, root)
    try:
        step = wait_for_checkpoint(job, after=0)
        lost = three_nodes.node_of(WORKER)
        assert lost is not None
        three_nodes.kill_node(lost)
        wait_until(lambda: three_nodes.node_of(WORKER) is not None, seconds=300)
        assert three_nodes.node_of(WORKER) in three_nodes.raylets[1:]
        printed, errors = training.communicate(timeout=600)
    finally:
        training.kill()
    assert training.returncode == 0, errors
    went_on = [int(found) for found in re.findall(r"train: goes on after step (\d+)", printed)]
    assert len(went_on) == 1
    assert step < went_on[0] < STEPS
    assert newest_checkpoint(job) == STEPS - 1
    assert (Path(job.folder) / "model.safetensors").read_bytes() == expected


def _train_on(cluster: ThreeNodes, root: Path) -> "subprocess.Popen[str]":
    """Start the train stage of a recipe on a running cluster, as a user does."""
    options: list[str] = []
    for override in (*PARTS, f"cluster.address={cluster.address}"):
        options += ["--set", override]
    return subprocess.Popen(
        dualtoken_command("train", TINY, "--root", root, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    )
