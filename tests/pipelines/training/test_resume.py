"""A training goes on where the recipe changed what may change, and nowhere else; the card tells of it."""

from pathlib import Path

import pytest

from dualtoken.pipelines.core.commit import write_stage_record
from dualtoken.pipelines.core.receipts import MANIFEST_FILE
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.training.checkpoints import Checkpoints, RunRecord
from dualtoken.pipelines.training.engine import train
from dualtoken.pipelines.training.metrics_log import read_metrics
from dualtoken.pipelines.training.resume import add_runs_to_card
from dualtoken.pipelines.training.train_context import SingleProcessContext
from tests.helpers.toy_training import ToyTask
from tests.helpers.training_groups import CPU
from tests.pipelines.training.test_engine import AskedAtStep, toy_job


def recorded_job(folder: Path, *overrides: str) -> StageJob:
    job = toy_job(folder, "train.checkpoint_every=100", *overrides)
    write_stage_record(job, {"settings": {"train": job.recipe.train.identity()}, "inputs": {}})
    return job


@pytest.fixture
def left(tmp_path: Path) -> StageJob:
    """A training of nine steps that was stopped after three."""
    job = recorded_job(tmp_path / "left", "train.steps=9")
    train(job, AskedAtStep(CPU), ToyTask)
    return job


def first_step(job: StageJob) -> int:
    """Train to the end, and return the first step that was taken."""
    train(job, SingleProcessContext(CPU), ToyTask)
    return read_metrics(job.store())[0]["step"]


def runs(job: StageJob, scratch: Path) -> list[RunRecord]:
    checkpoint = Checkpoints(job.store()).latest(scratch)
    assert checkpoint is not None
    return list(checkpoint.receipt.runs)


def test_steps_and_schedule_may_change_while_a_training_goes_on(
    left: StageJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = recorded_job(
        tmp_path / "longer",
        "train.steps=12",
        "train.warmup_steps=2",
        "train.compile=true",
        "train.parallel=fsdp2",
    )
    assert first_step(longer) == 3
    assert f"goes on after step 3 of {left.folder}, which other values" in capsys.readouterr().out
    before, after = runs(longer, tmp_path)
    assert (before.first_step, before.settings["steps"]) == (0, 9)
    assert (after.first_step, after.settings["steps"], after.num_workers) == (3, 12, 1)

    (tmp_path / "README.md").write_text("# A model\n")
    add_runs_to_card(tmp_path, (before, after))
    assert (tmp_path / "README.md").read_text().splitlines()[-1] == (
        "* from step 3 on: steps 9 → 12, warmup_steps 0 → 2, compile False → True, parallel ddp → fsdp2"
    )


def test_a_training_whose_settings_stay_is_one_run(left: StageJob, tmp_path: Path) -> None:
    train(left, SingleProcessContext(CPU), ToyTask)
    (run,) = runs(left, tmp_path)
    (tmp_path / "README.md").write_text("# A model\n")
    add_runs_to_card(tmp_path, (run,))
    assert (tmp_path / "README.md").read_text() == "# A model\n"


def test_a_training_of_other_mathematics_begins_anew(left: StageJob, tmp_path: Path) -> None:
    assert runs(left, tmp_path)
    assert first_step(recorded_job(tmp_path / "other", "train.steps=12", "train.seed=1")) == 0


def test_a_finished_training_keeps_its_checkpoints_to_itself(left: StageJob, tmp_path: Path) -> None:
    left.store().put_bytes(b"{}", MANIFEST_FILE)
    assert first_step(recorded_job(tmp_path / "longer", "train.steps=12")) == 0


def test_steps_that_are_done_already_are_not_gone_back_on(left: StageJob, tmp_path: Path) -> None:
    assert runs(left, tmp_path)
    assert first_step(recorded_job(tmp_path / "shorter", "train.steps=3")) == 0
    assert first_step(recorded_job(tmp_path / "as long", "train.steps=4")) == 3
