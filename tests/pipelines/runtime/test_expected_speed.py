"""What a plan expects follows from the counts, and names what does not fit."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dualtoken.jobs.cli import app
from dualtoken.model.config.step_costs import teacher
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.runtime.expected_speed import (
    DEVICES,
    REACHED,
    ExpectedStage,
    chosen_mode,
    expected_stages,
    expected_targets,
)
from tests.helpers.tiny_run import TINY, LoadTiny


def stages(recipe: Recipe, device: str = "H100") -> dict[str, ExpectedStage]:
    found = list(expected_stages(recipe, DEVICES[device]))
    assert not [problem for problem in found if isinstance(problem, str)]
    return {stage.stage: stage for stage in found if isinstance(stage, ExpectedStage)}


def test_a_part_bound_by_products_takes_its_operations_at_the_rate_that_is_reached() -> None:
    recipe = load_recipe("paper-384")
    (part,) = stages(recipe)["targets"].parts
    seconds = teacher(recipe.tokenizer).flop / (67e12 * REACHED)
    assert part.milliseconds == pytest.approx(1000 * seconds)
    assert stages(recipe)["targets"].images_per_second == pytest.approx(1 / seconds)


def test_bfloat16_a_faster_card_and_checkpoints_change_what_they_should() -> None:
    recipe = load_recipe("paper-384")
    half = load_recipe("paper-384", ["pretokenize.precision=bfloat16"])
    assert stages(half)["pretokenize"].images_per_second > 5 * stages(recipe)["pretokenize"].images_per_second
    assert stages(recipe, "H200")["train"].images_per_second > stages(recipe)["train"].images_per_second
    stored = load_recipe("paper-384", ["targets.precision=bfloat16"])
    assert stages(stored)["targets"].images_per_second > 5 * stages(recipe)["targets"].images_per_second
    kept = load_recipe("paper-384", ["train.checkpoint_tower=false"])
    assert stages(kept)["train"].memory_gb > stages(recipe)["train"].memory_gb + 10
    assert stages(kept)["train"].images_per_second > stages(recipe)["train"].images_per_second
    parts = {part.part for part in stages(recipe)["train"].parts}
    assert parts == {"tokenizer", "code searches", "LPIPS", "GAN", "teacher"}


def test_what_is_not_counted_is_said_and_the_rest_is_told() -> None:
    found = list(expected_stages(load_recipe("paper-384-stage-2"), DEVICES["H100"]))
    assert [stage if isinstance(stage, str) else stage.stage for stage in found] == [
        "targets",
        "train: only phase 1 of a tokenizer without pixel_encoder or freeze_tower is counted",
        "pretokenize",
    ]


def test_the_mode_that_is_advised_keeps_to_the_budget_and_the_losses(
    tmp_path: Path, load_tiny: LoadTiny
) -> None:
    def advised(samples: int, *overrides: str) -> str:
        recipe = load_tiny(tmp_path, "train.steps=1000000", *overrides)
        return chosen_mode(list(expected_targets(recipe, DEVICES["core"], [samples]))).mode

    bytes_int8 = 16 * (32 + 4) + 3 * 32 * 4 + 20
    bytes_float16 = 16 * 32 * 2 + 3 * 32 * 4 + 20
    room = "targets.dense_budget_gb={}"
    assert advised(1000, room.format(bytes_float16 * 1e-6)) == "dense_float16"
    assert advised(1000, room.format(bytes_float16 * 0.99e-6)) == "dense_int8"
    assert advised(1000, room.format(bytes_int8 * 0.99e-6)) == "online"
    assert advised(1000, room.format(1e-9), "train.losses.semantic=0") == "pooled"
    crops = ("targets.mode=online", "train.random_crop={}")
    assert advised(1000, *crops) == "online"


def test_a_plan_tells_speed_memory_and_targets_and_refuses_unknown_devices(
    finished: Recipe,
) -> None:
    command = ["plan", TINY, "--root", finished.root, "--device"]
    told = CliRunner().invoke(app, [*command, "L4"]).output
    assert "images/s, one L4" in told
    assert all(mode in told for mode in ("online", "pooled", "dense_int8", "dense_float16"))
    refused = CliRunner().invoke(app, [*command, "B7"])
    assert "--device B7 is unknown: name one of H200, H100, A100, L4, core" in str(refused.exception)
