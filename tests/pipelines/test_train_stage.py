"""The train stage with every optional part on, and stage 2 from what it made."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.lpips import Lpips
from pipelines.config import Recipe
from pipelines.run import run_command
from pipelines.run_local import LocalExecutor
from tests.conftest import LoadTiny, planned


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, finished: Recipe) -> Path:
    return Path(shutil.copytree(finished.root, tmp_path_factory.mktemp("train") / "data"))


def train(recipe: Recipe) -> Path:
    run_command("train", recipe, LocalExecutor(), lambda _: None)
    job = planned(recipe, "train").job
    assert job is not None
    return Path(job.folder)


def test_every_part_of_training_runs_from_a_recipe_and_stage_2_goes_on_from_it(root: Path, load_tiny: LoadTiny) -> None:
    torch.manual_seed(0)
    weights = {name: tensor for name, tensor in Lpips().state_dict().items() if name.startswith("features.")}
    torch.save(weights, root / "vgg.pth")
    parts = ("train.gan={width: 32, start_step: 1}", "train.weight_ema={decay: 0.5}", "train.accumulate_steps=2")
    first = train(load_tiny(root, *parts, f"train.perceptual={{kind: lpips, backbone: {root / 'vgg.pth'}}}"))
    lines = [json.loads(line) for line in (first / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["perceptual"] > 0 for line in lines)
    assert ["balance" in line for line in lines] == [False, True, True, True]

    second = train(load_tiny(root, "train.stage=2", f"train.start_from={first}"))
    before, after = (load_file(folder / "model.safetensors") for folder in (first, second))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"tower", "reduce_semantic", "expand_semantic", "quantize_semantic"}
