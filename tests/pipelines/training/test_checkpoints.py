"""Checkpoints are whole or not used, and a training goes on from them wherever it began."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.engine import BestConfig
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.commit import upload
from dualtoken.pipelines.core.receipts import CHECKPOINT_RECEIPT
from dualtoken.pipelines.training.checkpoints import CheckpointReceipt, Checkpoints
from dualtoken.pipelines.training.engine import train
from dualtoken.pipelines.training.metrics_log import read_metrics
from dualtoken.pipelines.training.train import TokenizerTask, trained_model
from dualtoken.pipelines.training.train_context import SingleProcessContext
from tests.helpers.damage import flip_byte
from tests.helpers.tiny_run import LoadTiny, planned_job
from tests.helpers.training_groups import CPU

SHARD = "shard-00001-model-00001-of-00001.safetensors"


def commit(checkpoints: Checkpoints, step: int, folder: Path, **metrics: float) -> None:
    folder.mkdir()
    (folder / "state.safetensors").write_text(f"after step {step}")
    store = checkpoints.begin(step)
    file = upload(store, folder, "state.safetensors")
    checkpoints.commit(CheckpointReceipt(step=step, files=(file,), metrics=metrics))


def latest(checkpoints: Checkpoints, scratch: Path) -> str | None:
    checkpoint = checkpoints.latest(scratch)
    if checkpoint is None:
        return None
    return (checkpoint.local_folder(scratch) / "state.safetensors").read_text()


def kept(store: Store) -> list[str]:
    folders = {name.rpartition("/")[0] for name, _ in store.files("checkpoints")}
    return sorted(folder.removeprefix("checkpoints/step-0000000") for folder in folders)


@pytest.mark.parametrize("url", ["{folder}/run", "memory://checkpoints"])
def test_the_newest_whole_checkpoint_is_used_and_two_are_kept(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(url.format(folder=tmp_path))
    checkpoints = Checkpoints(store)
    assert latest(checkpoints, tmp_path / "none") is None
    for step in (9, 19, 29):
        commit(checkpoints, step, tmp_path / str(step))
    assert kept(store) == ["19", "29"]
    assert latest(checkpoints, tmp_path / "whole") == "after step 29"

    store.put_bytes(b"after step 92", "checkpoints/step-000000029/state.safetensors")
    with caplog.at_level(logging.WARNING):
        assert latest(checkpoints, tmp_path / "damaged") == "after step 19"
    assert "checkpoints/step-000000029: state.safetensors is not as it was written" in caplog.text

    store.put_bytes(b'{"step": 29, "fil', f"checkpoints/step-000000029/{CHECKPOINT_RECEIPT}")
    with caplog.at_level(logging.WARNING):
        assert latest(checkpoints, tmp_path / "cut receipt") == "after step 19"
    assert f"checkpoints/step-000000029: {CHECKPOINT_RECEIPT} is not as it was written" in caplog.text

    store.remove(f"checkpoints/step-000000029/{CHECKPOINT_RECEIPT}")
    assert latest(checkpoints, tmp_path / "cut") == "after step 19"
    commit(checkpoints, 24, tmp_path / "24")
    assert kept(store) == ["19", "24"]


def test_a_part_of_an_attempt_that_was_killed_is_not_taken_for_a_part_of_the_next(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    checkpoints = Checkpoints(store)
    checkpoints.begin(9).put_bytes(b"of three workers", "shard-00003-model-00001-of-00001.safetensors")
    commit(checkpoints, 9, tmp_path / "9")
    assert [name.rpartition("/")[2] for name, _ in store.files("checkpoints")] == [
        CHECKPOINT_RECEIPT,
        "state.safetensors",
    ]
    store.put_bytes(b"late", "checkpoints/step-000000009/shard-00002-model-00001-of-00001.safetensors")
    assert latest(checkpoints, tmp_path / "strange") is None


def test_as_many_are_kept_as_the_recipe_says_and_the_best_by_a_metric(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    checkpoints = Checkpoints(store, keep=1, keep_best=BestConfig(metric="loss"))
    for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 4.0)):
        commit(checkpoints, step, tmp_path / str(step), loss=loss)
    assert kept(store) == ["20", "40"]
    checkpoints = Checkpoints(store, keep=1, keep_best=BestConfig(metric="loss", mode="max"))
    commit(checkpoints, 50, tmp_path / "50", loss=3.5)
    assert kept(store) == ["40", "50"]


def train_alone(folder: Path, recipe: Recipe) -> bytes:
    """Train in a folder, from its last checkpoint on, and return the weights that come out."""
    job = replace(planned_job(recipe, "train"), folder=str(folder))
    train(job, SingleProcessContext(CPU), TokenizerTask)
    scratch = folder.with_name(f"{folder.name} result")
    scratch.mkdir(exist_ok=True)
    trained_model(job, scratch)
    return (scratch / "model.safetensors").read_bytes()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_training_goes_on_from_its_checkpoints_to_the_bit(
    optimizer: str, tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    parts = (f"train.optimizer={optimizer}", "train.weight_ema={decay: 0.5}", "train.gan={width: 32}")
    recipe = load_tiny(Path(finished.root), *parts)
    folder = tmp_path / "run"
    expected = train_alone(folder, recipe)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "step-000000001",
        "step-000000003",
    ]
    flip_byte(folder / "checkpoints" / "step-000000003" / SHARD, 100)
    assert train_alone(folder, recipe) == expected
    assert [line["step"] for line in read_metrics(Store(str(folder)))] == [0, 1, 2, 3]

    shutil.rmtree(folder / "checkpoints" / "step-000000003")
    assert train_alone(folder, recipe) == expected


def test_weights_stand_in_a_checkpoint_once(tmp_path: Path, finished: Recipe, load_tiny: LoadTiny) -> None:
    folder = tmp_path / "run"
    result = len(train_alone(folder, load_tiny(Path(finished.root))))
    checkpoint = folder / "checkpoints" / "step-000000003"
    num_bytes = sum(path.stat().st_size for path in checkpoint.iterdir())
    # The weights and AdamW's two averages of them.
    assert num_bytes < 3.5 * result
