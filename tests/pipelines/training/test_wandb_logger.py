"""A training's run at W&B, by the package itself, offline."""

import json
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dualtoken.pipelines.config.loggers import WandbConfig
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.training import loggers, validation_tasks
from dualtoken.pipelines.training.engine import train
from dualtoken.pipelines.training.logger_session import RunFacts
from dualtoken.pipelines.training.metrics_log import read_metrics
from tests.helpers.toy_training import ToyTask, Validated
from tests.helpers.training_groups import CPU
from tests.helpers.waiting import wait_until
from tests.pipelines.training.test_engine import AskedAtStep, run, toy_job
from tests.pipelines.training.test_validation_tasks import Tasks, validations

pytest.importorskip("wandb", reason="wandb is missing: pip install 'dualtoken[wandb]'")
from dualtoken.pipelines.training.wandb_logger import WandbSession

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
OFFLINE = WandbConfig(kind="wandb", mode="offline")
_BLOCK = 32768
"""Bytes of a block of LevelDB's log format, in which W&B keeps records."""


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a stopped training wait for its service on a busy machine too."""
    monkeypatch.setattr(loggers, "HURRIED_CLOSE_SECONDS", 60.0)


class Shown(ToyTask):
    """A task with a picture and codes."""

    def pictures(self) -> Mapping[str, Tensor]:
        return {"shown": torch.full((3, 2, 4), 7, dtype=torch.uint8)}

    def code_counts(self) -> Mapping[str, Tensor]:
        return {"toy": torch.tensor([[3, 1, 0, 0]])}


def records(file: Path) -> Iterator[Any]:
    """Yield the records of an offline run: after a header of 7 bytes, blocks of pieces of records."""
    from wandb.proto import wandb_internal_pb2  # noqa: PLC0415

    data = file.read_bytes()
    place = 7
    record = b""
    while place + 7 <= len(data):
        if _BLOCK - place % _BLOCK < 7:
            place += _BLOCK - place % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            # Its types are made at run time.
            yield wandb_internal_pb2.Record.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
            record = b""


def history(file: Path) -> list[dict[str, Any]]:
    """Return the values of each step."""
    steps: list[dict[str, Any]] = []
    for record in records(file):
        if record.WhichOneof("record_type") == "history":
            values: dict[str, Any] = {}
            for item in record.history.item:
                values[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
            steps.append(values)
    return steps


def offline_runs(folder: Path) -> list[Path]:
    return sorted(folder.glob("logs/wandb/offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime)


def test_a_run_has_each_line_and_a_resumed_training_goes_on_in_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["dualtoken", "--set", "train.start_from=https://me:secret@host/x"])
    wandb_key = "train.loggers=[{kind: wandb, project: toys, mode: offline}]"
    job = toy_job(tmp_path / "run", "train.steps=9", wandb_key, "train.start_from=https://me:secret@host/x")
    train(job, AskedAtStep(CPU), Shown)
    run(job, Shown)
    lines = {line["step"]: line["loss"] for line in read_metrics(job.store())}
    first, second = offline_runs(tmp_path / "run")
    assert first.name == second.name, "one id"
    told: dict[int, float] = {}
    for file, steps in ((first, range(3)), (second, range(3, 9))):
        values = history(file)
        assert [line["_step"] for line in values] == list(steps)
        told |= {line["_step"]: line["loss"] for line in values}
        assert not any("shown._type" in line for line in values), (
            "pictures are sent only where the recipe says so"
        )
    assert told == lines

    [described] = [record.run for record in records(first) if record.WhichOneof("record_type") == "run"]
    assert (described.project, described.display_name) == ("toys", "tiny train")
    settings = {item.key: json.loads(item.value_json) for item in described.config.update}
    assert settings["steps"] == 9
    for file in (tmp_path / "run").rglob("*"):
        assert not file.is_file() or b"secret" not in file.read_bytes()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("poll_seconds", [0.0, 1.0])  # with others between them, and all at the end
def test_a_validation_that_comes_late_is_plotted_over_the_step_that_it_is_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poll_seconds: float
) -> None:
    monkeypatch.setattr(validation_tasks, "POLL_SECONDS", poll_seconds)
    wandb_key = "train.loggers=[{kind: wandb, mode: offline}]"
    apart = ("train.validate_in=task", "train.validate_every=2", "train.checkpoint_every=3")
    job = toy_job(tmp_path / "run", "train.steps=8", wandb_key, *apart)
    train(job, Tasks(job), Validated)
    [file] = offline_runs(tmp_path / "run")
    told = history(file)
    steps = [line["_step"] for line in told]
    assert steps == sorted(set(steps))
    losses = {line["_step"]: line["loss"] for line in told if "loss" in line}
    assert list(losses) == list(range(8))
    assert losses == {line["step"]: line["loss"] for line in read_metrics(job.store()) if "loss" in line}
    errors = {line["validated_step"]: line["validation_error"] for line in told if "validated_step" in line}
    assert errors == {step: metrics["validation_error"] for step, metrics in validations(job).items()}
    assert list(errors) == [1, 3, 5, 7]
    metrics = [record.metric for record in records(file) if record.WhichOneof("record_type") == "metric"]
    assert [metric.step_metric for metric in metrics if metric.glob_name == "validation_*"] == [
        "validated_step"
    ]


def test_a_validation_of_the_workers_stands_in_the_line_of_its_step(tmp_path: Path) -> None:
    job = toy_job(tmp_path / "run", "train.loggers=[{kind: wandb, mode: offline}]", "train.validate_every=2")
    run(job, Validated)
    [file] = offline_runs(tmp_path / "run")
    validated = [line for line in history(file) if "validation_error" in line]
    assert [(line["_step"], line["validated_step"]) for line in validated] == [(1, 1), (3, 3)]


def test_pictures_are_sent_where_the_recipe_wants_it(tmp_path: Path) -> None:
    job = toy_job(tmp_path / "run", "train.loggers=[{kind: wandb, mode: offline, pictures: true}]")
    run(job, Shown)
    [file] = offline_runs(tmp_path / "run")
    last = history(file)[-1]
    assert last["shown._type"] == "image-file"
    assert (last["shown.width"], last["shown.height"]) == (4, 2)


def test_the_use_of_codes_is_sent(tmp_path: Path) -> None:
    job = toy_job(tmp_path / "run", "train.loggers=[{kind: wandb, mode: offline}]")
    run(job, Shown)
    [file] = offline_runs(tmp_path / "run")
    usage = [line["codes/toy/usage/depth_0"] for line in history(file) if "codes/toy/usage/depth_0" in line]
    assert usage == [0.5]


def test_validations_that_come_together_are_taken_in_turn_by_one_line_each(tmp_path: Path) -> None:
    """As after a step that took long; a further value of a line that has taken one makes no room."""
    session = WandbSession(OFFLINE, RunFacts("one", "toy", {}, tmp_path))
    session.write(0, {"loss": 1.0})
    for step in range(3):
        session.write(step, {"validation_error": float(step)})
        session.write(0, {"codes/toy/usage/depth_0": 0.5})
    session.write(1, {"loss": 1.0})
    session.write(2, {"loss": 1.0})
    session.close("failed")
    [file] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    # Its last record may come after the end.
    wait_until(
        lambda: any(record.WhichOneof("record_type") == "exit" for record in records(file)), seconds=60
    )
    validated = [line for line in history(file) if "validated_step" in line]
    assert [(line["_step"], line["validated_step"], line["validation_error"]) for line in validated] == [
        (0, 0, 0.0),
        (1, 1, 1.0),
        (2, 2, 2.0),
    ]
    [end] = [record.exit.exit_code for record in records(file) if record.WhichOneof("record_type") == "exit"]
    assert end == 1
    metrics = [record.metric for record in records(file) if record.WhichOneof("record_type") == "metric"]
    assert [metric.name for metric in metrics if metric.options.hidden] == ["validated_step"]


def test_an_online_run_without_a_key_is_told_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    with pytest.raises(
        UserError, match=r"^train\.loggers\[0\]: wandb has no API key here: run `wandb login`"
    ):
        run(toy_job(tmp_path / "run", "train.loggers=[wandb]"))
    assert not (tmp_path / "run/logs").exists()
