"""The engine's failure policy, by a task that learns in no time: each failure is met as the recipe says."""

import gzip
import json
import re
import signal
import statistics
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.stop_request import stop_request
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.errors import ExitCode, Preempted, UserError
from dualtoken.pipelines.training import metrics_log
from dualtoken.pipelines.training.checkpoints import Checkpoints
from dualtoken.pipelines.training.engine import raise_if_stopped, train
from dualtoken.pipelines.training.metrics_log import read_metrics
from dualtoken.pipelines.training.train_context import SingleProcessContext
from tests.helpers.tiny_run import TINY
from tests.helpers.toy_training import (
    FarTooLarge,
    Hangs,
    NoRoomForHandle,
    NotANumber,
    NotANumberOfFirst,
    Slow,
    SlowData,
    Spike,
    TooLarge,
    ToyTask,
    Validated,
)
from tests.helpers.training_groups import CPU, GroupJob, load_trained, train_as_group
from tests.helpers.waiting import wait_until


def toy_job(folder: Path | str, *overrides: str) -> StageJob:
    recipe = load_recipe(TINY, ["train.batch_size=12", *overrides])
    return StageJob("train", None, recipe, str(folder), "f" * 12, {}, ())


def run(job: StageJob, task: type[ToyTask] = ToyTask) -> dict[str, torch.Tensor]:
    train(job, SingleProcessContext(CPU), task)
    with scratch_folder() as scratch:
        return load_trained(job, "model", torch.nn.Linear(4, 3), Path(scratch))


def logged(job: StageJob) -> list[dict[str, Any]]:
    return read_metrics(job.store())


def logged_steps(job: StageJob) -> list[int]:
    return [line["step"] for line in logged(job)]


def test_a_step_that_is_not_finite_is_skipped_and_its_samples_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = toy_job(tmp_path / "run", "train.steps=6")
    run(job, NotANumber)
    assert logged_steps(job) == [0, 1, 4, 5]
    dump = json.loads(job.store().read("logs/bad-steps/step-000000003-rank0.json"))
    assert (dump["step"], dump["samples"]) == (3, ["sample 3"])
    # Due after step 3, a bad one, and made after the next good one.
    assert job.store().folders("checkpoints") == [f"checkpoints/step-00000000{step}" for step in (4, 5)]
    assert capsys.readouterr().err.count("the step is skipped") == 2


def test_too_many_bad_steps_in_a_row_end_the_run_before_weights_change(tmp_path: Path) -> None:
    job = toy_job(tmp_path / "run", "train.steps=6", "train.max_bad_steps=2")
    with pytest.raises(UserError, match=r"step 3 .*2 bad steps in a row.*train\.max_bad_steps=2"):
        run(job, NotANumber)
    checkpoint = Checkpoints(job.store()).latest(tmp_path / "copies")
    assert checkpoint is not None
    assert checkpoint.receipt.step == 1
    with pytest.raises(UserError, match=r"step 3 .* it is the last step"):
        run(toy_job(tmp_path / "short", "train.steps=4"), NotANumber)


def test_a_spike_is_skipped_where_the_recipe_bounds_it(tmp_path: Path) -> None:
    bounded = toy_job(tmp_path / "bounded", "train.steps=32", "train.max_gradient_spike=50")
    run(bounded, Spike)
    assert 30 not in logged_steps(bounded)
    unbounded = toy_job(tmp_path / "unbounded", "train.steps=32")
    run(unbounded, Spike)
    assert 30 in logged_steps(unbounded)


@pytest.mark.parametrize("task", [TooLarge, NoRoomForHandle])
def test_a_step_too_large_for_the_memory_is_taken_in_more_parts(
    task: type[ToyTask], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = run(toy_job(tmp_path / "roomy"))
    found = run(toy_job(tmp_path / "tight"), task)
    assert torch.equal(found["weight"], expected["weight"])
    assert "a share of the batch is taken in 4 parts from now on" in capsys.readouterr().err
    with pytest.raises(UserError, match="in 4 parts is too large for the memory of this machine: lower the"):
        run(toy_job(tmp_path / "too tight"), FarTooLarge)


def test_a_file_that_was_not_stored_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter([OSError("a store that does not answer")] * 2)
    put = MemoryFileSystem.put_file

    def put_at_last(self: MemoryFileSystem, *arguments: Any, **options: Any) -> None:
        if "safetensors" in str(arguments):
            for error in failures:
                raise error
        put(self, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_at_last)
    job = toy_job(f"memory://{uuid.uuid4().hex}/run")
    run(job)
    failures = iter([OSError("a store that does not answer")] * 2)
    with pytest.raises(OSError, match="does not answer"):
        run(toy_job(f"memory://{uuid.uuid4().hex}/run", "train.max_upload_attempts=1"))


class AskedAtStep(SingleProcessContext):
    """A process that is asked to stop after two steps."""

    num_asked = 0

    def asked_to_stop(self) -> bool:
        self.num_asked += 1
        if self.num_asked == 3:
            stop_request.ask()
        return super().asked_to_stop()


def test_a_run_that_is_asked_to_stop_ends_with_a_checkpoint_of_its_last_step(tmp_path: Path) -> None:
    expected = run(toy_job(tmp_path / "whole", "train.steps=9"))
    job = toy_job(tmp_path / "stopped", "train.steps=9", "train.checkpoint_every=100")
    train(job, AskedAtStep(CPU), ToyTask)
    with pytest.raises(Preempted):
        raise_if_stopped()
    checkpoint = Checkpoints(job.store()).latest(tmp_path / "copies")
    assert checkpoint is not None
    assert checkpoint.receipt.step == 2
    assert torch.equal(run(job)["weight"], expected["weight"])


def toy_process(job: StageJob, task: type[ToyTask]) -> "subprocess.Popen[str]":
    """Train in a process of its own."""
    code = (
        "import sys; from pathlib import Path; from tests.pipelines.training import test_engine as t; "
        f"t.run(t.toy_job(Path({job.folder!r}), *sys.argv[1:]), t.{task.__name__})"
    )
    train_settings = job.recipe.train
    values = [
        f"train.steps={train_settings.steps}",
        f"train.checkpoint_every={train_settings.checkpoint_every}",
        f"train.hang_timeout_seconds={train_settings.hang_timeout_seconds}",
    ]
    return subprocess.Popen([sys.executable, "-c", code, *values], stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_worker_that_hangs_writes_its_stacks_and_ends(tmp_path: Path) -> None:
    # The first step has ten times as long.
    job = toy_job(tmp_path / "run", "train.hang_timeout_seconds=3")
    with toy_process(job, Hangs) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == ExitCode.TEMPORARY
    assert "worker 0 took no step in 3 s (train.hang_timeout_seconds)" in errors
    assert "toy_training.py" in (tmp_path / "run/logs/hang-rank0.txt").read_text()


def test_a_driver_that_is_killed_costs_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    expected = run(toy_job(tmp_path / "whole", "train.steps=20"))
    job = toy_job(tmp_path / "killed", "train.steps=20", "train.checkpoint_every=2")
    with toy_process(job, Slow) as process:
        wait_until(lambda: any(job.store().files("checkpoints")), seconds=60)
        process.send_signal(signal.SIGKILL)
    assert torch.equal(run(job)["weight"], expected["weight"])


class _Killed(Exception):
    """What a kill is to the code that it strikes."""


@pytest.mark.parametrize("written", ["safetensors", "receipt.json"])
def test_a_checkpoint_cut_in_its_upload_or_its_commit_is_not_used(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(toy_job(f"memory://{uuid.uuid4().hex}/run"))
    job = toy_job(f"memory://{uuid.uuid4().hex}/run")
    name = {"safetensors": "put_file", "receipt.json": "pipe_file"}[written]
    write = getattr(MemoryFileSystem, name)

    def cut(self: MemoryFileSystem, *arguments: object, **options: object) -> None:
        if any("step-000000003/" in str(argument) for argument in arguments):
            raise _Killed
        write(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, name, cut)
        with pytest.raises(_Killed):
            run(job)
    checkpoint = Checkpoints(job.store()).latest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.receipt.step == 1
    assert torch.equal(run(job)["weight"], expected["weight"])


def use_of_codes(job: StageJob) -> float:
    """Return the share of codes that occur, as TensorBoard shows it last."""
    events = EventAccumulator(f"{job.folder}/logs/tensorboard", {"scalars": 0})
    events.Reload()
    return events.Scalars("codes/toy/usage/depth_0")[-1].value


def test_each_of_three_workers_hands_over_its_part_and_one_goes_on(tmp_path: Path) -> None:
    jobs = [toy_job(tmp_path / kind, f"train.parallel={kind}", "train.steps=4") for kind in ("ddp", "fsdp2")]
    whole = toy_job(tmp_path / "whole", "train.steps=4")
    expected = run(whole)
    uneven = toy_job(tmp_path / "uneven", "train.steps=4")
    lossy = toy_job(tmp_path / "lossy", "train.steps=4", "train.log_every=2")
    measured = toy_job(tmp_path / "measured", "train.steps=2", "train.validate_every=1")
    further: list[GroupJob] = [(uneven, NotANumberOfFirst), (lossy, SlowData), (measured, Validated)]
    train_as_group([*((job, ToyTask) for job in jobs), *further], 3, tmp_path)
    alone = toy_job(tmp_path / "measured alone", "train.steps=2", "train.validate_every=1")
    run(alone, Validated)
    assert logged(measured)[-1]["validation_error"] == pytest.approx(logged(alone)[-1]["validation_error"])
    assert logged_steps(uneven) == [0, 1, 3]  # skipped by all: else they would wait for each other
    # Means over all workers, whose batch is that of one.
    losses = [line["loss"] for line in logged(whole)]
    assert [line["loss"] for line in logged(jobs[0])] == pytest.approx(losses, rel=1e-5)
    means = [losses[0], (losses[1] + losses[2]) / 2, losses[3]]
    assert [line["loss"] for line in logged(lossy)] == pytest.approx(means, rel=1e-5)
    assert logged(lossy)[-1]["num_lost"] == 3
    assert use_of_codes(lossy) == 0.75, "those of all three"
    for job in jobs:
        last = Path(job.folder) / "checkpoints" / "step-000000003"
        assert len(list(last.glob("*.safetensors"))) == 3
        found = load_trained(job, "model", torch.nn.Linear(4, 3), Path(f"{job.folder} copies"))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        (last / "receipt.json").unlink()
        torch.testing.assert_close(run(job), expected, rtol=1e-6, atol=1e-6)


def test_a_step_waits_for_the_copy_of_its_tensors_alone(tmp_path: Path) -> None:
    job = toy_job(tmp_path / "run", "train.steps=20", "train.checkpoint_every=10")
    train(job, SingleProcessContext(CPU), Slow)
    stall = read_metrics(job.store())[-1]["checkpoint_stall"]
    assert stall < 0.05


def test_a_line_has_the_means_over_the_steps_since_the_last_one(tmp_path: Path) -> None:
    each = toy_job(tmp_path / "each", "train.steps=9")
    run(each)
    losses = [line["loss"] for line in logged(each)]
    some = toy_job(tmp_path / "some", "train.steps=9", "train.log_every=4")
    run(some)
    assert logged_steps(some) == [0, 4, 8]
    means = [losses[0], statistics.mean(losses[1:5]), statistics.mean(losses[5:9])]
    assert [line["loss"] for line in logged(some)] == pytest.approx(means)
    # The last one has a line wherever it comes, of the steps that are left.
    last = toy_job(tmp_path / "last", "train.steps=7", "train.log_every=4")
    run(last)
    assert logged_steps(last) == [0, 4, 6]
    assert logged(last)[-1]["loss"] == pytest.approx(statistics.mean(losses[5:7]))
    assert [line["num_steps"] for line in logged(last)] == [1, 4, 2]


def test_bad_steps_enter_no_mean_and_are_counted(tmp_path: Path) -> None:
    each = toy_job(tmp_path / "each", "train.steps=6")
    run(each, NotANumber)
    losses = {line["step"]: line["loss"] for line in logged(each)}
    job = toy_job(tmp_path / "run", "train.steps=6", "train.log_every=3")
    run(job, NotANumber)
    # Due at step 3, a bad one.
    assert logged_steps(job) == [0, 4, 5]
    second = logged(job)[1]
    assert second["loss"] == pytest.approx((losses[1] + losses[4]) / 2)
    assert (second["num_steps"], second["num_bad_steps"]) == (4, 2)
    assert logged(job)[2]["num_bad_steps"] == 0


def test_a_line_says_how_long_steps_waited_for_data_and_what_was_lost(tmp_path: Path) -> None:
    waits = toy_job(tmp_path / "waits", "train.log_every=3")
    run(waits, SlowData)
    line = logged(waits)[-1]
    assert line["data_wait"] > 0.5
    assert line["num_lost"] == 1
    computes = toy_job(tmp_path / "computes", "train.log_every=3")
    run(computes, Slow)
    line = logged(computes)[-1]
    assert line["data_wait"] < 0.2
    assert "num_lost" not in line, "its reader does not say"


def test_the_progress_of_a_resumed_run_has_its_own_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics_log, "PROGRESS_INTERVAL", 0.0)
    job = toy_job(tmp_path / "run", "train.steps=9")
    train(job, AskedAtStep(CPU), ToyTask)
    capsys.readouterr()
    run(job, Slow)
    progress = capsys.readouterr().out.splitlines()[1:]  # the first says where it goes on
    assert re.fullmatch(r"train: step 4 of 9, loss \d\.\d+", progress[0]), "no pace after one step"
    found = re.fullmatch(
        r"train: step 5 of 9, loss [\d.]+, ([\d.]+) images/s, ([\d.]+) steps/s, ETA (\d+) s", progress[1]
    )
    assert found, progress[1]
    assert float(found[2]) <= 10, "a step takes 0.1 s"
    assert int(found[3]) == pytest.approx(4 / float(found[2]), abs=0.6)
    assert float(found[1]) == pytest.approx(12 * float(found[2]), rel=0.01)


def traced(job: StageJob, name: str) -> set[str]:
    """Return the names of the events in a trace."""
    trace = json.loads(gzip.decompress(job.store().read(f"logs/profile/{name}.json.gz")))
    return {event["name"] for event in trace["traceEvents"]}


def test_the_steps_that_the_recipe_names_are_profiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = run(toy_job(tmp_path / "plain", "train.steps=6"))
    job = toy_job(tmp_path / "run", "train.steps=6", "train.profile=2:4")
    assert torch.equal(run(job)["weight"], expected["weight"])
    assert "aten::addmm" in traced(job, "steps-2-3")
    path = f"{tmp_path}/run/logs/profile/steps-2-3.json.gz"
    assert f"a trace of steps 2 to 3 is in {path}: open it at" in capsys.readouterr().out

    # One that is stopped has those that it took, and one that resumes the others.
    job = toy_job(tmp_path / "stopped", "train.steps=6", "train.profile=1:9")
    train(job, AskedAtStep(CPU), ToyTask)
    assert "aten::addmm" in traced(job, "steps-1-1")
    run(job)
    assert sorted(path.name for path in (tmp_path / "stopped/logs/profile").iterdir()) == [
        "steps-1-1.json.gz",
        "steps-3-5.json.gz",
    ]


def test_a_training_is_validated_at_intervals_and_the_best_checkpoint_is_kept_by_it(tmp_path: Path) -> None:
    job = toy_job(
        tmp_path / "run",
        *("train.steps=7", "train.log_every=5", "train.validate_every=2", "train.checkpoint_every=2"),
        *("train.keep_checkpoints=1", "train.keep_best={metric: validation_error, mode: max}"),
    )
    run(job, Validated)
    errors = {line["step"]: line.get("validation_error") for line in logged(job)}
    assert [step for step, error in errors.items() if error is not None] == [1, 3, 5, 6]
    assert errors[0] is None
    found = [error for error in errors.values() if error is not None]
    assert found == sorted(found, reverse=True), "it learns"
    # The worst by the first of them, and the newest.
    assert job.store().folders("checkpoints") == [f"checkpoints/step-00000000{step}" for step in (1, 6)]
    receipt = json.loads(job.store().read("checkpoints/step-000000001/receipt.json"))
    assert receipt["metrics"]["validation_error"] == pytest.approx(errors[1])


def test_a_validation_is_no_part_of_a_training_that_names_none(tmp_path: Path) -> None:
    plain = toy_job(tmp_path / "plain", "train.steps=4")
    weights = run(plain, Validated)
    assert not any("validation_error" in line for line in logged(plain))
    validated = run(toy_job(tmp_path / "validated", "train.steps=4", "train.validate_every=1"), Validated)
    assert torch.equal(weights["weight"], validated["weight"])
