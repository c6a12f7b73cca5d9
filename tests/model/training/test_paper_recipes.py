"""The published models on `meta`: sizes as measured on the released code, and a step of shapes alone."""

from typing import Any

import pytest
import torch

from benchmarks.encode import count
from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.quantize import ResidualQuantizer
from dualtoken.model.teacher.targets import TeacherTargets
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.training.losses import Perceptual, tokenizer_loss
from dualtoken.model.training.lpips import Lpips
from dualtoken.model.training.trainable import freeze, streams_in_training
from dualtoken.pipelines.config.parse import load_recipe

MILLIONS = {
    "tower": 428.23,
    "reduce_pixel": 4.03,
    "reduce_shortcut": 4.03,
    "reduce_semantic": 4.03,
    "expand_pixel": 9.45,
    "expand_semantic": 9.45,
    "post_quant": 11.80,
    "decoder": 168.45,
}


@pytest.mark.parametrize(
    ("name", "grid", "depth"),
    [
        ("paper-384", 27, 8),
        ("paper-256", 16, 4),
        ("paper-384-stage-0", 27, 8),
        ("paper-384-stage-2", 27, 8),
        ("paper-256-stage-0", 16, 4),
        ("paper-256-stage-2", 16, 4),
    ],
)
def test_a_published_model_builds_and_takes_a_step(name: str, grid: int, depth: int) -> None:
    recipe = load_recipe(name)
    size = recipe.tokenizer.image_size
    with torch.device("meta"):
        model = DualTokenizer(recipe.tokenizer)
        images = torch.empty(2, 3, size, size)
        targets = TeacherTargets(torch.empty(2, 1152), torch.empty(2, grid**2, 1152))
        network = Lpips() if recipe.train.perceptual.kind == "lpips" else None
    freeze(model, recipe.train)
    output = model(images, **streams_in_training(recipe.train)._asdict())
    assert output.semantic.ids.shape == (2, grid**2, depth)
    if recipe.train.stage < 2:
        assert output.reconstruction.shape == images.shape
        assert output.pixel.ids.shape == (2, grid**2, depth)
    # The fused optimiser of training has no kernel for shapes alone.
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.train.learning_rate, betas=recipe.train.betas)
    perceptual = Perceptual(network, 1.0) if network else None
    loss = tokenizer_loss(
        output, images, targets, recipe.train.losses, phase=recipe.train.stage, perceptual=perceptual
    )
    loss.total.backward()
    optimizer.step()
    for parameter in model.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad


def test_the_384_pixel_model_has_the_measured_sizes() -> None:
    with torch.device("meta"):
        model = DualTokenizer(load_recipe("paper-384").tokenizer)
    millions = {}
    for name, part in model.named_children():
        num_parameters = sum(parameter.numel() for parameter in part.parameters())
        if num_parameters:
            millions[name] = round(num_parameters / 1e6, 2)
    assert millions == MILLIONS
    assert isinstance(model.quantize_pixel, ResidualQuantizer)
    assert round(model.quantize_pixel.codes.numel() / 1e6, 2) == 0.52


def test_encoding_takes_2_5_times_fewer_operations_than_a_full_forward() -> None:
    gflop = count(load_recipe("paper-384").tokenizer)
    assert {name: round(number, 1) for name, number in gflop.items()} == {"encode": 679.0, "full": 1737.2}
    assert gflop["full"] / gflop["encode"] >= 2.5


SEARCH = 2 * 64 * 256 * 16 * 4 / 1e9
"""GFLOP of all products of 64 tokens of 16 channels with 256 codes, at 4 depths."""


def scalar(width: int) -> dict[str, Any]:
    """Return a quantiser that searches for nothing."""
    return {"kind": "scalar", "levels": [2] * (width // 4), "depth": 4}


def encoding(**changes: object) -> float:
    """Return GFLOP of encoding an image of 64 pixels."""
    config = TokenizerConfig.model_validate(load_recipe("scenes").tokenizer.model_dump() | changes)
    return count(config)["encode"]


@pytest.mark.parametrize(
    ("quantizer", "searches"),
    [
        ({"width": 16}, 1),
        ({"width": 16, "shared": False}, 1),
        ({"width": 32}, 2),
        ({"width": 16, "beam": 4}, 13 / 4),  # a sum at first, four at each further depth
        ({"width": 16, "kind": "split"}, 1 / 4),  # a part of four channels at each depth
    ],
)
def test_a_code_search_counts_as_what_it_multiplies(quantizer: dict[str, Any], searches: float) -> None:
    searched = encoding(pixel={"num_codes": 256, "depth": 4} | quantizer, semantic=scalar(16))
    without_search = encoding(pixel=scalar(quantizer["width"]), semantic=scalar(16))
    assert searched - without_search == pytest.approx(searches * SEARCH, rel=1e-6)


def test_the_search_in_a_shared_codebook_counts_once() -> None:
    shared = {"pixel_block": 3, "shared_codebook": True}
    codebook = {"num_codes": 256, "depth": 4, "width": 16}
    levels = scalar(16)
    searched = encoding(pixel=codebook, semantic=codebook, **shared)
    without_search = encoding(pixel=levels, semantic=levels, **shared)
    assert searched - without_search == pytest.approx(SEARCH, rel=1e-6)


@pytest.mark.parametrize("phase", [0, 2])
def test_the_other_phases_train_alike_at_both_sizes(phase: int) -> None:
    small = load_recipe(f"paper-256-stage-{phase}").train
    large = load_recipe(f"paper-384-stage-{phase}").train
    assert small == large
    assert small.stage == phase
