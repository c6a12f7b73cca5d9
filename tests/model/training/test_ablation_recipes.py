"""Each ablation arm trains what it says, and has what sets it apart."""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dualtoken.model.teacher.targets import TeacherTargets
from dualtoken.model.tokenizer.dual_tokenizer import Codes, DualTokenizer
from dualtoken.model.training.state import TrainState
from dualtoken.model.training.step import train_step
from dualtoken.pipelines.config.parse import load_recipe, shipped_recipes
from dualtoken.pipelines.config.recipe import Recipe
from tests.model.training.steps import changed, snapshot

ARMS = [name for name in shipped_recipes() if name.startswith("arm-")]
TINY = (
    "teacher.tower={patch_size: 4, width: 32, depth: 4, num_heads: 2, mlp_width: 32}",
    "tokenizer.tower={patch_size: 4, width: 32, depth: 4, num_heads: 2, mlp_width: 32}",
    "teacher.image_size=16",
    "tokenizer.image_size=16",
    "tokenizer.decoder={kind: transformer, latent_size: 4, patch_size: 4, width: 16}",
    "tokenizer.decoder.depth=1",
    "tokenizer.decoder.num_heads=2",
    "tokenizer.decoder.mlp_width=32",
    "tokenizer.pixel.num_codes=16",
    "tokenizer.semantic.num_codes=16",
)
ENCODER = "tokenizer.pixel_encoder={width: 8, multipliers: [1, 2, 2], num_res_blocks: 1, norm_groups: 4}"


class Run(NamedTuple):
    recipe: Recipe
    tokenizer: DualTokenizer
    """Tokenizer after two steps."""
    moved: set[str]
    """Parts of the state that two steps changed, the tower's by block."""
    frozen: set[str]
    """Parts without a gradient."""
    metrics: Mapping[str, float]
    """Metrics of the second step."""
    codes: Codes
    """Codes of the training images."""


@cache
def run(arm: str) -> Run:
    torch.set_num_threads(1)
    overrides = [*TINY]
    if arm == "arm-separate":
        overrides.append(ENCODER)
    recipe = load_recipe(arm, overrides)
    torch.manual_seed(0)
    state = TrainState(DualTokenizer(recipe.tokenizer), recipe.train)
    before = snapshot(state.tokenizer)
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    targets = TeacherTargets(torch.randn(4, 32), torch.randn(4, 16, 32))
    train_step(state, images, targets)
    metrics = train_step(state, images, targets).present()

    moved = {part(name) for name in changed(state.tokenizer, before)}
    frozen = {part(name) for name, parameter in state.tokenizer.named_parameters() if parameter.grad is None}
    optimized = set()
    for group in state.optimizer.param_groups:
        optimized |= {id(parameter) for parameter in group["params"]}
    for parameter in state.tokenizer.parameters():
        assert (id(parameter) in optimized) == parameter.requires_grad
        assert (parameter.grad is not None) == parameter.requires_grad
    return Run(recipe, state.tokenizer, moved, frozen, metrics, state.tokenizer.encode(images))


def part(name: str) -> str:
    """Return the part of the tokenizer, or of its tower, that a tensor belongs to."""
    first, *rest = name.split(".")
    if first != "tower":
        return first
    if rest[0] == "blocks":
        return f"block {int(rest[1]) + 1}"
    if rest[0] in ("patch_embed", "pos_embed"):
        return "patches"
    return "pool"


def same(codes: Codes) -> bool:
    return torch.equal(codes.pixel, codes.semantic)


TOWER = {"patches", "pool", *(f"block {number}" for number in range(1, 5))}
SEMANTIC_PATH = {"reduce_semantic", "expand_semantic", "quantize_semantic"}
PIXEL_PATH = {"reduce_pixel", "expand_pixel", "quantize_pixel", "decoder"}


def test_the_arms_are_those_of_the_comparison() -> None:
    names = "both-deep dual reconstruction semantic separate shared shared-8 shortcut"
    assert [f"arm-{name}" for name in names.split()] == ARMS


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_trains_on_the_default_run_s_data_and_teacher(arm: str) -> None:
    recipe = load_recipe(arm)
    default = load_recipe("scenes")
    assert recipe.name == arm
    for key in ("corpora", "heldout", "download", "teacher", "filter", "targets"):
        assert getattr(recipe, key) == getattr(default, key)
    assert recipe.train.steps == default.train.steps
    assert recipe.tokenizer.semantic_block == default.tokenizer.semantic_block


@pytest.mark.parametrize("arm", ["arm-both-deep", "arm-dual", "arm-shortcut"])
def test_two_vocabularies_train_everything(arm: str) -> None:
    trained = run(arm)
    everything = TOWER | PIXEL_PATH | SEMANTIC_PATH
    if arm == "arm-shortcut":
        everything |= {"reduce_shortcut"}
    assert trained.frozen == set()
    assert trained.moved == everything
    assert not same(trained.codes)


def test_only_the_shallow_arms_take_pixels_before_the_deep_block() -> None:
    arms = [arm for arm in ARMS if arm not in ("arm-semantic", "arm-separate")]
    assert {arm: run(arm).recipe.tokenizer.pixel_block for arm in arms} == {
        "arm-both-deep": 3,
        "arm-dual": 2,
        "arm-reconstruction": 3,
        "arm-shared": 3,
        "arm-shared-8": 3,
        "arm-shortcut": 2,
    }


def test_reconstruction_alone_leaves_meaning_untouched() -> None:
    trained = run("arm-reconstruction")
    assert trained.moved == TOWER - {"pool", "block 4"} | PIXEL_PATH
    assert trained.frozen == {"pool", "block 4", "reduce_semantic", "expand_semantic"}
    assert "reconstruction" in trained.metrics
    assert not {"semantic", "pooled"} & set(trained.metrics)


def test_meaning_alone_leaves_pixels_untouched() -> None:
    trained = run("arm-semantic")
    assert trained.moved == TOWER | SEMANTIC_PATH
    assert trained.frozen == PIXEL_PATH - {"quantize_pixel"}
    assert "reconstruction" not in trained.metrics


@pytest.mark.parametrize(("arm", "depth"), [("arm-shared", 4), ("arm-shared-8", 8)])
def test_one_codebook_gives_both_streams_the_same_codes(arm: str, depth: int) -> None:
    trained = run(arm)
    assert same(trained.codes)
    assert trained.codes.pixel.shape == (4, 4, 4, depth)
    assert trained.frozen == set()
    assert trained.moved == TOWER | SEMANTIC_PATH | PIXEL_PATH - {"reduce_pixel", "quantize_pixel"}


def test_equal_bits_are_those_of_the_two_vocabularies() -> None:
    dual = load_recipe("arm-dual").tokenizer
    shared = load_recipe("arm-shared-8").tokenizer
    assert shared.pixel.depth == dual.pixel.depth + dual.semantic.depth
    assert shared.pixel.num_codes == dual.pixel.num_codes == dual.semantic.num_codes


def test_two_encoders_leave_the_teacher_s_tower_as_it_is() -> None:
    trained = run("arm-separate")
    assert trained.frozen == TOWER
    assert trained.moved == SEMANTIC_PATH | PIXEL_PATH - {"reduce_pixel"} | {"pixel_encoder"}


def test_an_encoder_of_its_own_reads_pixels_without_the_tower() -> None:
    tokenizer = run("arm-separate").tokenizer
    images: Tensor = torch.rand(2, 3, 16, 16)
    before = tokenizer.encode(images)
    with torch.no_grad():
        tokenizer.tower.get_parameter("blocks.0.mlp.fc2.bias").add_(torch.randn(32) * 100)
    after = tokenizer.encode(images)
    assert torch.equal(before.pixel, after.pixel)
    assert not torch.equal(before.semantic, after.semantic)
