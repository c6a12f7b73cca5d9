"""The executor changes no byte, and a killed driver loses no finished unit."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray import cloudpickle

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import read_receipts
from dualtoken.pipelines.core.stage import UnitOutcome
from dualtoken.pipelines.errors import ExitCode, UnitsFailed
from dualtoken.pipelines.runtime import ray_executor as run_ray
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.runtime.ray_executor import RayExecutor
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.runtime.stages import command_of, commands
from tests.helpers.tiny_run import TINY, LoadTiny, planned, planned_job

PROJECT = Path(TINY).parents[1]


def contents(recipe: Recipe) -> dict[str, list[tuple[str, str]]]:
    """Return the name and checksum of every output file of a run, by step."""
    receipts = {
        one.label: read_receipts(one.job.store()).values() for one in Planner(recipe).plan() if one.job
    }
    return {
        label: [(file.name, file.sha256) for receipt in of_step for file in receipt.files]
        for label, of_step in receipts.items()
    }


@pytest.mark.parametrize(
    "commands", [("download", "pretokenize"), pytest.param(tuple(commands()), marks=pytest.mark.slow)]
)
def test_ray_and_this_process_give_identical_bytes(
    commands: tuple[str, ...], tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    root = tmp_path / "ray"
    shutil.copytree(finished.root, root)
    # A worker's import of PyTorch is what takes time here; `faults` has stages with several.
    recipe = load_tiny(root, "cluster.max_workers=1")
    for one in list(Planner(recipe).plan()):
        if one.job and command_of(one.stage) in commands:
            shutil.rmtree(one.job.folder)
    with RayExecutor(recipe.cluster) as executor:
        for command in commands:
            run_command(command, recipe, executor, lambda _: None)
    # The report names its run's times and folders.
    ours, theirs = contents(finished), contents(recipe)
    assert ours.pop("report")[0][0] == theirs.pop("report")[0][0]
    assert ours == theirs
    assert len(ours) == 14


class _Killer(run_ray._UnitActor):
    """Its process ends in unit 00002 each time, in unit 00003 the first time."""

    def _attempt(self, job_number: int, unit_number: int) -> UnitOutcome:
        recipe = self._work[job_number].job.recipe
        tries = Path(recipe.root) / f"tries-{unit_number}"
        with tries.open("a") as file:
            file.write("x")
        if unit_number == 2 or (unit_number == 3 and tries.stat().st_size == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._attempt(job_number, unit_number)


@pytest.mark.slow
def test_a_unit_that_kills_its_process_is_given_up_and_its_neighbours_are_done(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_tiny(Path(shutil.copytree(finished.root, tmp_path / "run")), "cluster.max_workers=1")
    scores = planned_job(recipe, "score", "tiny-train")
    shutil.rmtree(scores.folder)
    monkeypatch.setattr(run_ray, "_UnitActor", _Killer)
    monkeypatch.setattr(run_ray, "TASK_RETRIES", 1)
    cloudpickle.register_pickle_by_value(this := sys.modules[__name__])  # workers cannot import a test
    told = "^1 of 10 units failed; score tiny-train 00002: its process died 2 times"
    with RayExecutor(recipe.cluster) as executor, pytest.raises(UnitsFailed, match=told) as error:
        run_command("filter", recipe, executor, lambda _: None)
    cloudpickle.unregister_pickle_by_value(this)
    assert error.value.code == ExitCode.TEMPORARY
    assert set(read_receipts(scores.store())) == {unit.id for unit in scores.units} - {"00002"}


@pytest.mark.slow
def test_a_unit_that_fails_on_ray_keeps_its_exit_code_and_its_neighbours_are_done(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    shutil.copytree(finished.root, tmp_path / "damaged")
    recipe = load_tiny(tmp_path / "damaged")
    shards, scores = planned(recipe, "download", "tiny-train").job, planned(recipe, "score", "tiny-train").job
    assert shards is not None
    assert scores is not None
    shutil.rmtree(scores.folder)
    tar = Path(shards.folder) / "00003.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    with (
        RayExecutor(recipe.cluster) as executor,
        pytest.raises(UnitsFailed, match="1 of 10 units failed; score tiny-train 00003") as error,
    ):
        run_command("filter", recipe, executor, lambda _: None)
    assert error.value.code == ExitCode.CONFIGURATION
    assert set(read_receipts(scores.store())) == {unit.id for unit in scores.units} - {"00003"}


def wait_for_first_receipt(
    folder: Path, driver: "subprocess.Popen[bytes]", limit_seconds: float = 120
) -> None:
    until = time.monotonic() + limit_seconds
    while not any(folder.glob("receipts/*.json")):
        assert driver.poll() is None, "the driver ended before it was killed"
        assert time.monotonic() < until, "no unit was done in time"
        time.sleep(0.002)


ON_RAY = ("--set", "cluster.max_workers=1")


@pytest.mark.parametrize(
    ("command", "how"),
    [
        ("pretokenize", ("--in-process",)),
        *(
            pytest.param(command, ON_RAY, marks=pytest.mark.slow)
            for command in ("download", "targets", "pretokenize")
        ),
    ],
)
def test_a_killed_driver_goes_on_where_it_was(
    command: str, how: tuple[str, ...], tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    root = tmp_path / "killed"
    shutil.copytree(finished.root, root)
    recipe = load_tiny(root)
    job, uninterrupted = (
        planned(recipe, command, "tiny-train").job,
        planned(finished, command, "tiny-train").job,
    )
    assert job is not None
    assert uninterrupted is not None
    shutil.rmtree(job.folder)
    driver = start(command, root, how)
    wait_for_first_receipt(Path(job.folder), driver)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    before = read_receipts(job.store())
    assert 0 < len(before) < len(job.units), "the kill came too late to be in the middle"
    assert start(command, root, how).wait(timeout=240) == 0
    after = read_receipts(job.store())
    assert {unit: after[unit] for unit in before} == before
    assert {unit: receipt.files for unit, receipt in after.items()} == {
        unit: receipt.files for unit, receipt in read_receipts(uninterrupted.store()).items()
    }


def start(command: str, root: Path, how: tuple[str, ...]) -> "subprocess.Popen[bytes]":
    arguments = [sys.executable, "-m", f"jobs.{command}", TINY, "--root", str(root), *how]
    return subprocess.Popen(arguments, cwd=PROJECT, stdout=subprocess.DEVNULL)
