"""A training's run in MLflow, by the package itself, in a database on disk."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dualtoken.pipelines.config.loggers import MlflowConfig
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.training import loggers
from dualtoken.pipelines.training.engine import train
from dualtoken.pipelines.training.logger_session import RunFacts
from dualtoken.pipelines.training.metrics_log import read_metrics
from tests.helpers.toy_training import ToyTask
from tests.helpers.training_groups import CPU
from tests.pipelines.training.test_engine import AskedAtStep, run, toy_job
from tests.pipelines.training.test_wandb_logger import Shown, history, offline_runs

pytest.importorskip("mlflow", reason="mlflow is missing: pip install 'dualtoken[mlflow]'")
from dualtoken.pipelines.training.mlflow_logger import MlflowSession

pytestmark = pytest.mark.filterwarnings("ignore")  # of its own packages, in its own thread


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a stopped training wait for its service on a busy machine too."""
    monkeypatch.setattr(loggers, "HURRIED_CLOSE_SECONDS", 60.0)


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)  # MLflow keeps files beside a database in the working folder
    return f"sqlite:///{tmp_path}/mlflow.db"


def mlflow_job(folder: Path, database: str, *overrides: str, more: str = "") -> StageJob:
    logger = f"train.loggers=[{{kind: mlflow, tracking_uri: '{database}', experiment: toys{more}}}]"
    return toy_job(folder, "train.steps=9", logger, *overrides)


def runs(database: str) -> list[Any]:
    from mlflow.tracking import MlflowClient  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    client = MlflowClient(tracking_uri=database)
    experiment = client.get_experiment_by_name("toys")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def losses(database: str, run_id: str) -> dict[int, float]:
    from mlflow.tracking import MlflowClient  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    history = MlflowClient(tracking_uri=database).get_metric_history(run_id, "loss")
    return {metric.step: metric.value for metric in history}


def test_a_run_has_each_line_and_a_resumed_training_goes_on_in_it(tmp_path: Path, database: str) -> None:
    job = mlflow_job(tmp_path / "run", database)
    train(job, AskedAtStep(CPU), ToyTask)
    [stopped] = runs(database)
    assert stopped.info.status == "KILLED"
    assert (stopped.info.run_name, stopped.data.params["steps"]) == ("tiny train", "9")
    # A setting of the machine that changes meanwhile.
    run(mlflow_job(tmp_path / "run", database, "train.cpus_per_worker=2"))
    [done] = runs(database)
    assert (done.info.run_id, done.info.status) == (stopped.info.run_id, "FINISHED")
    lines = {line["step"]: line["loss"] for line in read_metrics(job.store())}
    assert losses(database, done.info.run_id) == pytest.approx(lines)
    assert len(lines) == 9

    other = mlflow_job(tmp_path / "other", database)
    run(other)
    assert len(runs(database)) == 2, "another folder has another run"


def test_pictures_are_sent_where_the_recipe_wants_it(tmp_path: Path, database: str) -> None:
    run(mlflow_job(tmp_path / "plain", database), Shown)
    assert not list(tmp_path.rglob("mlruns/**/*.png"))
    run(mlflow_job(tmp_path / "run", database, more=", pictures: true"), Shown)
    [picture] = tmp_path.rglob("mlruns/**/*.png")
    with Image.open(picture) as image:
        assert image.size == (4, 2)
    assert re.match(r"shown\Wstep\W8\W", picture.name)


def test_each_setting_is_there_however_many_and_however_long_and_a_run_that_goes_on_is_said_to_run(
    tmp_path: Path, database: str
) -> None:
    config = MlflowConfig(kind="mlflow", tracking_uri=database, experiment="toys")
    settings = {f"key_{number}": number for number in range(250)} | {"long": "x" * 10_000}
    facts = RunFacts("one", "toy", settings, tmp_path)
    MlflowSession(config, facts).close("failed")
    [failed] = runs(database)
    assert failed.info.status == "FAILED"
    assert failed.data.params == {name: str(value)[:500] for name, value in settings.items()}
    MlflowSession(config, facts)
    [running] = runs(database)
    assert (running.info.run_id, running.info.status) == (failed.info.run_id, "RUNNING")


def test_two_services_get_the_same_lines(tmp_path: Path, database: str) -> None:
    pytest.importorskip("wandb", reason="wandb is missing: pip install 'dualtoken[wandb]'")
    both = f"[{{kind: wandb, mode: offline}}, {{kind: mlflow, tracking_uri: '{database}', experiment: toys}}]"
    job = toy_job(tmp_path / "run", f"train.loggers={both}")
    run(job, Shown)
    [file] = offline_runs(tmp_path / "run")
    [done] = runs(database)
    assert done.info.status == "FINISHED"
    told = {line["_step"]: line["loss"] for line in history(file) if "loss" in line}
    assert losses(database, done.info.run_id) == told
    assert list(told) == [0, 1, 2, 3]
    assert done.data.metrics["codes/toy/usage/depth_0"] == 0.5


class Broken(ToyTask):
    """The database is damaged while it trains."""

    def train_step(self, batch: torch.Tensor, check: Any) -> Any:
        if self.step == 5:
            for file in Path.cwd().glob("mlflow.db*"):
                file.write_bytes(b"no database" * 1000)
        return super().train_step(batch, check)


def test_a_service_that_fails_in_the_middle_costs_a_line_and_no_bit_of_the_training(
    tmp_path: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = run(toy_job(tmp_path / "plain", "train.steps=9"))
    job = mlflow_job(tmp_path / "run", database)
    assert torch.equal(run(job, Broken)["weight"], expected["weight"])
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train, mlflow:")]
    assert len(told) == 1
    assert "the log there lacks lines" in told[0]
    assert len(read_metrics(job.store())) == 9


def test_a_training_that_fails_says_so(tmp_path: Path, database: str) -> None:
    class Fails(ToyTask):
        def train_step(self, batch: torch.Tensor, check: Any) -> Any:
            if self.step == 2:
                raise ArithmeticError("two")
            return super().train_step(batch, check)

    with pytest.raises(ArithmeticError):
        run(mlflow_job(tmp_path / "run", database), Fails)
    assert [found.info.status for found in runs(database)] == ["FAILED"]
