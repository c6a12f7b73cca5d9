"""The published models, built without memory: sizes as measured on the released code, and a step of shapes alone."""

import pytest
import torch

from benchmarks.encode import count
from model.losses import Perceptual, TeacherTargets, tokenizer_loss
from model.lpips import Lpips
from model.quantize import ResidualQuantizer
from model.stages import freeze, trained_streams
from model.tokenizer import DualTokenizer
from pipelines.recipe import load_recipe

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
        model, images = DualTokenizer(recipe.tokenizer), torch.empty(2, 3, size, size)
        targets = TeacherTargets(torch.empty(2, 1152), torch.empty(2, grid**2, 1152))
        network = Lpips() if recipe.train.perceptual.kind == "lpips" else None
    freeze(model, recipe.train)
    output = model(images, **trained_streams(recipe.train)._asdict())
    assert output.semantic.ids.shape == (2, grid**2, depth)
    if recipe.train.stage < 2:
        assert output.reconstruction.shape == images.shape
        assert output.pixel.ids.shape == (2, grid**2, depth)
    # The fused optimiser of training has no kernel for shapes alone.
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.train.learning_rate, betas=recipe.train.betas)
    perceptual = Perceptual(network, 1.0) if network else None
    tokenizer_loss(output, images, targets, recipe.train.losses, stage=recipe.train.stage, perceptual=perceptual).total.backward()
    optimizer.step()
    assert [parameter.requires_grad for parameter in model.parameters()] == [parameter.grad is not None for parameter in model.parameters()]


def test_the_384_pixel_model_has_the_measured_sizes() -> None:
    with torch.device("meta"):
        model = DualTokenizer(load_recipe("paper-384").tokenizer)
    sizes = {name: sum(parameter.numel() for parameter in part.parameters()) / 1e6 for name, part in model.named_children()}
    assert {name: round(size, 2) for name, size in sizes.items() if size} == MILLIONS
    assert isinstance(model.quantize_pixel, ResidualQuantizer)
    assert round(model.quantize_pixel.codes.numel() / 1e6, 2) == 0.52


def test_encoding_takes_2_5_times_fewer_operations_than_a_full_forward() -> None:
    gflop = count(load_recipe("paper-384").tokenizer)
    assert gflop["encode"] == pytest.approx(679, abs=1)
    assert gflop["full"] / gflop["encode"] >= 2.5


@pytest.mark.parametrize("stage", [0, 2])
def test_the_other_stages_train_alike_at_both_sizes(stage: int) -> None:
    small, large = (load_recipe(f"paper-{size}-stage-{stage}").train for size in (256, 384))
    assert small == large
    assert small.stage == stage
