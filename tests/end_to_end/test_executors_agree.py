"""The executor changes no byte, and a killed driver loses no finished unit."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ray import cloudpickle

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import FileRecord, read_receipts
from dualtoken.pipelines.core.stage import AnyJob, StageJob, UnitOutcome, Worker
from dualtoken.pipelines.errors import ExitCode, UnitsFailed
from dualtoken.pipelines.runtime import ray_executor, stages
from dualtoken.pipelines.runtime.executor import WorkerSlot
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.runtime.ray_executor import RayExecutor
from dualtoken.pipelines.runtime.run import run_command
from tests.helpers.damage import cut_short
from tests.helpers.tiny_run import PROJECT, TINY, LoadTiny, planned_job

ONE_WORKER = "cluster.max_workers=1"
"""A worker's import of PyTorch is what takes time here. Tests in `faults/` have several workers."""
IN_PROCESS = ("--in-process",)
ON_RAY = ("--set", ONE_WORKER)


def checksums(recipe: Recipe) -> dict[str, list[tuple[str, str]]]:
    """Return the name and checksum of every output file of a run, by stage."""
    found: dict[str, list[tuple[str, str]]] = {}
    for planned in Planner(recipe).plan():
        if planned.job is None:
            continue
        files = found.setdefault(planned.label, [])
        for receipt in read_receipts(planned.job.store()).values():
            files += [(file.name, file.sha256) for file in receipt.files]
    return found


@pytest.mark.parametrize(
    "commands", [("download", "pretokenize"), pytest.param(tuple(stages.commands()), marks=pytest.mark.slow)]
)
def test_ray_and_this_process_give_identical_bytes(
    commands: tuple[str, ...], tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    root = Path(shutil.copytree(finished.root, tmp_path / "ray"))
    recipe = load_tiny(root, ONE_WORKER)
    for planned in list(Planner(recipe).plan()):
        if planned.job and planned.stage in commands:
            shutil.rmtree(planned.job.folder)
    with RayExecutor(recipe.cluster) as executor:
        for command in commands:
            run_command(command, recipe, executor, lambda _: None)
    in_process = checksums(finished)
    on_ray = checksums(recipe)
    # The report names the times and folders of its run.
    assert in_process.pop("report")[0][0] == on_ray.pop("report")[0][0]
    assert on_ray == in_process
    assert len(on_ray) == 17


class _Killer(ray_executor._UnitActor):
    """An actor whose process ends in unit 00002 each time, and in unit 00003 the first time."""

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
    recipe = load_tiny(Path(shutil.copytree(finished.root, tmp_path / "run")), ONE_WORKER)
    scores = planned_job(recipe, "score", "tiny-train")
    shutil.rmtree(scores.folder)
    monkeypatch.setattr(ray_executor, "_UnitActor", _Killer)
    monkeypatch.setattr(ray_executor, "TASK_RETRIES", 1)
    this_module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(this_module)  # workers cannot import a test
    message = "^1 of 10 units failed; score tiny-train 00002: its process died 2 times"
    with RayExecutor(recipe.cluster) as executor, pytest.raises(UnitsFailed, match=message) as error:
        run_command("filter", recipe, executor, lambda _: None)
    cloudpickle.unregister_pickle_by_value(this_module)
    assert error.value.code == ExitCode.TEMPORARY
    assert set(read_receipts(scores.store())) == all_units(scores) - {"00002"}


class _LostSlot(WorkerSlot):
    """The workers of a process that lost its device: every unit fails."""

    def open(self, job: AnyJob) -> Worker:  # noqa: ARG002
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


class _LosesDevice(ray_executor._UnitActor):
    """An actor whose process loses its device in unit 00003, the first time."""

    def _attempt(self, job_number: int, unit_number: int) -> UnitOutcome:
        recipe = self._work[job_number].job.recipe
        lost_before = Path(recipe.root) / "lost"
        if unit_number == 3 and not lost_before.exists():
            lost_before.touch()
            self._slot = _LostSlot()
        return super()._attempt(job_number, unit_number)


@pytest.mark.slow
def test_a_process_that_lost_its_device_ends_and_all_units_come_back(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_tiny(Path(shutil.copytree(finished.root, tmp_path / "run")), ONE_WORKER)
    scores = planned_job(recipe, "score", "tiny-train")
    shutil.rmtree(scores.folder)
    monkeypatch.setattr(ray_executor, "_UnitActor", _LosesDevice)
    this_module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(this_module)  # workers cannot import a test
    with RayExecutor(recipe.cluster) as executor:
        run_command("filter", recipe, executor, lambda _: None)
    cloudpickle.unregister_pickle_by_value(this_module)
    assert (Path(recipe.root) / "lost").exists()
    assert set(read_receipts(scores.store())) == all_units(scores)


def all_units(job: StageJob) -> set[str]:
    return {unit.id for unit in job.units}


@pytest.mark.slow
def test_a_unit_that_fails_on_ray_keeps_its_exit_code_and_its_neighbours_are_done(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    recipe = load_tiny(Path(shutil.copytree(finished.root, tmp_path / "damaged")))
    shards = planned_job(recipe, "download", "tiny-train")
    scores = planned_job(recipe, "score", "tiny-train")
    shutil.rmtree(scores.folder)
    cut_short(Path(shards.folder) / "00003.tar", num_bytes=2000)
    message = "1 of 10 units failed; score tiny-train 00003"
    with RayExecutor(recipe.cluster) as executor, pytest.raises(UnitsFailed, match=message) as error:
        run_command("filter", recipe, executor, lambda _: None)
    assert error.value.code == ExitCode.CONFIGURATION
    assert set(read_receipts(scores.store())) == all_units(scores) - {"00003"}


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("pretokenize", IN_PROCESS),
        pytest.param("download", ON_RAY, marks=pytest.mark.slow),
        pytest.param("targets", ON_RAY, marks=pytest.mark.slow),
        pytest.param("pretokenize", ON_RAY, marks=pytest.mark.slow),
    ],
)
def test_a_killed_driver_goes_on_where_it_was(
    command: str, options: tuple[str, ...], tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    root = Path(shutil.copytree(finished.root, tmp_path / "killed"))
    job = planned_job(load_tiny(root), command, "tiny-train")
    uninterrupted = planned_job(finished, command, "tiny-train")
    shutil.rmtree(job.folder)
    driver = start_driver(command, root, options)
    wait_for_first_receipt(Path(job.folder), driver)
    driver.kill()
    driver.wait()
    before = read_receipts(job.store())
    assert 0 < len(before) < len(job.units), "the kill came too late to be in the middle"
    assert start_driver(command, root, options).wait(timeout=240) == 0
    after = read_receipts(job.store())
    for unit, receipt in before.items():
        assert after[unit] == receipt
    assert files_by_unit(job) == files_by_unit(uninterrupted)


def start_driver(command: str, root: Path, options: tuple[str, ...]) -> "subprocess.Popen[bytes]":
    # By its short name, as a Ray job's entry point is named in the repository's root.
    arguments = [sys.executable, "-m", f"jobs.{command}", TINY, "--root", str(root), *options]
    return subprocess.Popen(arguments, cwd=PROJECT, stdout=subprocess.DEVNULL)


def wait_for_first_receipt(
    folder: Path, driver: "subprocess.Popen[bytes]", limit_seconds: float = 120
) -> None:
    deadline = time.monotonic() + limit_seconds
    while not any(folder.glob("receipts/*.json")):
        assert driver.poll() is None, "the driver ended before it was killed"
        assert time.monotonic() < deadline, "no unit was done in time"
        time.sleep(0.002)


def files_by_unit(job: StageJob) -> dict[str, tuple[FileRecord, ...]]:
    return {unit: receipt.files for unit, receipt in read_receipts(job.store()).items()}
