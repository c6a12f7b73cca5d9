"""Services beside a training's own log: what they get, and that none of them stands in its way."""

import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import Tensor

from dualtoken.pipelines.config.loggers import MlflowConfig, WandbConfig
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.training import loggers
from dualtoken.pipelines.training.logger_session import End
from dualtoken.pipelines.training.loggers import BackgroundLogger, require_loggers, run_facts
from tests.helpers.tiny_run import PROJECT
from tests.pipelines.training.test_engine import run, toy_job


class Session:
    """Keeps what it is given; its step 1 fails, as a network does."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.pictures: list[str] = []
        self.ends: list[End] = []

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if step in (1, 3):
            raise ConnectionError(f"no route to http://user:secret@host/{step} for {values['loss']}")
        self.steps.append(step)

    def write_pictures(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        assert step == 0
        self.pictures += pictures

    def close(self, end: End) -> None:
        self.ends.append(end)


@pytest.mark.parametrize("wanted", [True, False])
def test_what_a_service_does_not_take_is_one_line_without_secrets_and_the_rest_arrives(
    wanted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session()
    logger = BackgroundLogger("train, toy", lambda: session, pictures=wanted)
    logger.write_pictures(0, {"shown": torch.zeros(3, 1, 1, dtype=torch.uint8)})
    for step in range(5):
        logger.write(step, {"loss": 2.0})
    logger.close("stopped")
    assert (session.steps, session.ends) == ([0, 2, 4], ["stopped"])
    assert session.pictures == (["shown"] if wanted else [])
    assert capsys.readouterr().err == (
        "train, toy: the log there lacks lines (ConnectionError: no route to http://host/1 for 2.0); "
        "logs/metrics.jsonl has them\n"
    )


def test_a_service_gets_a_line_as_it_was_written_and_no_empty_pictures() -> None:
    session = Calls()
    answers = Event()

    def open_at_last() -> Calls:
        answers.wait()
        return session

    logger = BackgroundLogger("train, toy", open_at_last, pictures=True)
    values = {"loss": 2.0}
    logger.write_pictures(0, {})
    logger.write(0, values)
    values["loss"] = 3.0
    answers.set()
    logger.close("done")
    assert session.all == [(0, {"loss": 2.0}), ("done",)]


class Calls:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.all: list[tuple[object, ...]] = []

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.all.append((step, values))

    def write_pictures(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        self.all.append((step, pictures))

    def close(self, end: End) -> None:
        self.all.append((end,))


def test_a_service_that_cannot_be_opened_is_tried_again_with_the_next_line() -> None:
    session = Session()
    attempts: list[int] = []

    def open_at_last() -> Session:
        attempts.append(1)
        if len(attempts) < 3:
            raise OSError("nobody there")
        return session

    logger = BackgroundLogger("train, toy", open_at_last, pictures=False)
    for step in (0, 2, 4, 6):
        logger.write(step, {"loss": 2.0})
    logger.close("done")
    assert session.steps == [4, 6]
    assert len(attempts) == 3, "once open it stays so"


@pytest.mark.parametrize(("end", "name"), [("failed", "HURRIED_CLOSE_SECONDS"), ("done", "CLOSE_SECONDS")])
def test_a_service_that_hangs_keeps_neither_a_line_nor_the_end_waiting(
    end: End, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loggers, name, 0.05)
    monkeypatch.setattr(loggers, "MOST_WAITING", 3)
    answers = Event()

    def hang() -> Session:
        answers.wait()
        return Session()

    logger = BackgroundLogger("train, toy", hang, pictures=False)
    logger.write(0, {"loss": 2.0})
    logger.close(end)
    assert "it did not take the last lines within 0.05 s" in capsys.readouterr().err
    answers.set()

    full = Event()

    def wait() -> Session:
        full.wait()
        return Session()

    blocked = BackgroundLogger("train, toy", wait, pictures=False)
    for step in range(9):
        blocked.write(step, {"loss": 2.0})
    assert "(3 lines wait for it)" in capsys.readouterr().err
    full.set()


def test_a_logger_that_is_not_installed_is_told_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = toy_job(tmp_path / "run", "train.loggers=[mlflow]")
    monkeypatch.setattr(loggers, "find_spec", lambda name: None if name == "mlflow" else find_spec("json"))
    second = toy_job(tmp_path / "run", "train.loggers=[{kind: wandb, mode: offline}, mlflow]")
    with pytest.raises(UserError, match=r"^train\.loggers\[1\]: kind=mlflow"):
        run(second)
    with pytest.raises(
        UserError,
        match=r"^train\.loggers\[0\]: kind=mlflow needs a package that is not installed here: "
        r"pip install 'dualtoken\[mlflow\]', or take the logger out$",
    ):
        run(job)
    assert not (tmp_path / "run/logs").exists()


def test_a_folder_of_a_packages_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with pytest.raises(UserError, match="kind=mlflow needs a package"):
        require_loggers(toy_job(tmp_path / "run", "train.loggers=[mlflow]"))


MISTAKES = {
    "train.loggers=[aim]": "train.loggers.0.kind='aim': set it to one of 'wandb', 'mlflow'",
    "train.loggers=[{kind: mlflow, mode: offline}]": (
        "train.loggers.0.mode='offline' is no key of a recipe: it belongs to another kind of train.loggers.0"
    ),
    "train.loggers=[{kind: wandb, mode: off}]": "train.loggers.0.mode='off': should be 'online' or 'offline'",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_an_unknown_service_or_key_is_refused_in_one_line(override: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe("scenes", [override])
    assert MISTAKES[override] in str(error.value)
    assert "\n" not in str(error.value)


def test_services_are_no_part_of_a_fingerprint_and_a_recipe_gives_them_in_a_row() -> None:
    plain = load_recipe("scenes").train
    named = load_recipe(
        "scenes", ["train.loggers=[{kind: wandb, project: p, mode: offline}, {kind: mlflow, experiment: e}]"]
    ).train
    assert named.loggers == (
        WandbConfig(kind="wandb", project="p", mode="offline"),
        MlflowConfig(kind="mlflow", experiment="e"),
    )
    assert named.identity() == plain.identity()


def facts_id(job: StageJob) -> str:
    return run_facts(job, Path("logs")).id


def test_a_run_is_one_for_its_folder_and_no_secret_of_a_url_is_told(tmp_path: Path) -> None:
    override = "train.loggers=[{kind: mlflow, tracking_uri: 'http://me:secret@host:5000'}]"
    job = toy_job(tmp_path / "one", override)
    again = toy_job(tmp_path / "one")
    other = toy_job(tmp_path / "other")
    facts = run_facts(job, tmp_path)
    assert facts_id(again) == facts.id
    assert facts.id.startswith(f"train-{job.fingerprint}-")
    assert facts_id(other) != facts.id, "two roots of one recipe"
    assert facts.name == "tiny train"
    assert facts.settings["loggers"][0]["tracking_uri"] == "http://host:5000"
    assert facts.settings["steps"] == 4
    assert "secret" not in str(facts)


def test_no_service_is_imported_where_no_recipe_names_one(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; "
        "from tests.pipelines.training.test_engine import run, toy_job; "
        f"run(toy_job(Path({str(tmp_path)!r}))); "
        "print(sorted({'wandb', 'mlflow'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    assert found.stdout.splitlines()[-1] == "[]"
