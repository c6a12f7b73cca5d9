"""Checkpoints are whole or not used, and a training goes on from them wherever it began."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.training.checkpoints import RECEIPT, Checkpoints
from dualtoken.pipelines.training.metrics_log import read_metrics
from dualtoken.pipelines.training.train import train_loop
from dualtoken.pipelines.training.train_context import SingleProcessContext
from tests.helpers.damage import flip_byte
from tests.helpers.tiny_run import LoadTiny, planned_job


def commit(checkpoints: Checkpoints, step: int, folder: Path) -> None:
    folder.mkdir()
    (folder / "state.pt").write_text(f"after step {step}")
    checkpoints.commit(step, folder)


def latest(checkpoints: Checkpoints, scratch: Path) -> str | None:
    folder = checkpoints.latest(scratch)
    if folder is None:
        return None
    return (folder / "state.pt").read_text()


def kept(store: Store) -> list[str]:
    folders = {name.rpartition("/")[0] for name, _ in store.files("checkpoints")}
    return sorted(folders)


@pytest.mark.parametrize("url", ["{folder}/run", "memory://checkpoints"])
def test_the_newest_whole_checkpoint_is_used_and_two_are_kept(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(url.format(folder=tmp_path))
    checkpoints = Checkpoints(store)
    assert latest(checkpoints, tmp_path / "none") is None
    for step in (9, 19, 29):
        commit(checkpoints, step, tmp_path / str(step))
    assert kept(store) == ["checkpoints/step-000000019", "checkpoints/step-000000029"]
    assert latest(checkpoints, tmp_path / "whole") == "after step 29"

    store.put_bytes(b"after step 92", "checkpoints/step-000000029/state.pt")
    with caplog.at_level(logging.WARNING):
        assert latest(checkpoints, tmp_path / "damaged") == "after step 19"
    assert "checkpoints/step-000000029: state.pt is not as it was written" in caplog.text

    store.remove(f"checkpoints/step-000000029/{RECEIPT}")
    assert latest(checkpoints, tmp_path / "cut") == "after step 19"
    commit(checkpoints, 24, tmp_path / "24")
    assert kept(store) == ["checkpoints/step-000000019", "checkpoints/step-000000024"]


def test_a_training_goes_on_from_its_checkpoints_to_the_bit(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    recipe = load_tiny(Path(shutil.copytree(finished.root, tmp_path / "run")))
    job = planned_job(recipe, "train")
    result = Path(job.folder) / "model.safetensors"
    expected = result.read_bytes()
    last = Path(job.folder) / "checkpoints" / "step-000000003"
    flip_byte(last / "state.pt", 100)
    train_loop({"job": job}, SingleProcessContext(torch.device("cpu")))
    assert (last / "model.safetensors").read_bytes() == expected
    assert [line["step"] for line in read_metrics(job.store())] == [0, 1, 2, 3]

    elsewhere = replace(job, folder=str(tmp_path / "anew"))
    train_loop({"job": elsewhere}, SingleProcessContext(torch.device("cpu")))
    assert (tmp_path / "anew/checkpoints/step-000000003/model.safetensors").read_bytes() == expected
