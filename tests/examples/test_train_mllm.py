"""The training script that others begin with: it runs in one process and in several, and resumes exactly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dualtoken.pipelines.config.recipe import Recipe
from tests.helpers.tiny_run import PROJECT, TINY

SCRIPT = str(PROJECT / "examples/train_mllm.py")
SETTINGS = ["--epochs", "2", "--batch-size", "4", "--capacity", "256", "--checkpoint-every", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def start(recipe: Recipe, out: Path, *launcher: str) -> "subprocess.Popen[str]":
    command = [sys.executable, *launcher, SCRIPT, TINY, "--set", f"root={recipe.root}"]
    return subprocess.Popen(
        [*command, "--out", str(out), *SETTINGS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def finish(process: "subprocess.Popen[str]") -> list[str]:
    """Return the lines that are left to be printed, one for each step."""
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return printed.splitlines()


@pytest.mark.slow
def test_a_killed_training_goes_on_with_the_same_batches_losses_and_weights(
    finished: Recipe, tmp_path: Path
) -> None:
    whole = finish(start(finished, tmp_path / "whole"))
    assert whole[-1].startswith("step 9: loss ")
    assert all(f"step {step}: " in line for step, line in enumerate(whole, start=1))

    killed = start(finished, tmp_path / "killed")
    assert killed.stdout is not None
    begun = [killed.stdout.readline().rstrip("\n") for _ in range(5)]
    killed.kill()
    killed.communicate()
    resumed = finish(start(finished, tmp_path / "killed"))
    assert begun == whole[:5]
    # From its last checkpoint on: that of step 4, or of a later one if the kill came late.
    assert len(resumed) in {1, 3, 5}
    assert resumed == whole[-len(resumed) :]
    models = [torch.load(tmp_path / out / "model.pt", weights_only=True) for out in ("whole", "killed")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.slow
def test_two_processes_of_torchrun_take_the_steps_of_one(finished: Recipe, tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    steps = finish(start(finished, tmp_path / "two", *torchrun))
    assert [line.split(":")[0] for line in steps] == [f"step {number}" for number in range(1, 10)]
    # The checkpoint of two is gone on with by one.
    assert len(finish(start(finished, tmp_path / "two"))) == 1
