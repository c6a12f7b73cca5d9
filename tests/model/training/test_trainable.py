"""What the phases of training train, and what they leave as it was."""

import pytest
import torch
from torch import Tensor

from dualtoken.model.config.tokenizer import ShortcutConfig, TokenizerConfig
from dualtoken.model.config.training import LossConfig, TrainingConfig
from dualtoken.model.training.step import train_step
from tests.model.training.steps import TRAINING, batch, changed, fresh_state, run, snapshot, training

PHASE_0 = training(stage=0)
PHASE_2 = training(stage=2, start_from="a trained tokenizer")


@pytest.fixture
def deeper(config: TokenizerConfig) -> TokenizerConfig:
    """A block lies between shortcut and pixel tap, one between the taps, and one after."""
    tower = config.tower.model_copy(update={"depth": 6})
    return config.model_copy(
        update={"tower": tower, "shortcut": ShortcutConfig(block=1), "pixel_block": 3, "semantic_block": 5}
    )


def moved_by(training_config: TrainingConfig, config: TokenizerConfig) -> set[str]:
    state = fresh_state(config, training_config)
    before = snapshot(state.tokenizer)
    run(state, 2)
    for parameter in state.tokenizer.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad
    optimized = set()
    for group in state.optimizer.param_groups:
        optimized |= {id(parameter) for parameter in group["params"]}
    assert optimized == {
        id(parameter) for parameter in state.tokenizer.parameters() if parameter.requires_grad
    }
    return changed(state.tokenizer, before)


def blocks(names: set[str]) -> set[int]:
    return {int(name.split(".")[2]) + 1 for name in names if name.startswith("tower.blocks.")}


def starts(names: set[str]) -> set[str]:
    """Return the parts that names begin with; the tower's own parts in its place."""
    return {name.removeprefix("tower.").split(".")[0] for name in names}


NEW_PARTS = {
    "reduce_pixel",
    "reduce_shortcut",
    "reduce_semantic",
    "expand_pixel",
    "expand_semantic",
    "post_quant",
    "decoder",
}
CODEBOOKS = {"quantize_pixel", "quantize_semantic"}


def test_phase_0_trains_new_parts_and_what_follows_the_semantic_block(deeper: TokenizerConfig) -> None:
    moved = moved_by(PHASE_0, deeper)
    assert blocks(moved) == {6}
    assert starts(moved) == NEW_PARTS | CODEBOOKS | {"blocks", "norm", "attn_pool"}


def test_phase_1_trains_everything(deeper: TokenizerConfig) -> None:
    moved = moved_by(TRAINING, deeper)
    assert blocks(moved) == {1, 2, 3, 4, 5, 6}
    assert starts(moved) == NEW_PARTS | CODEBOOKS | {
        "blocks",
        "norm",
        "attn_pool",
        "patch_embed",
        "pos_embed",
    }


def test_phase_2_trains_the_semantic_stream_and_blocks_after_the_pixel_tap(deeper: TokenizerConfig) -> None:
    moved = moved_by(PHASE_2, deeper)
    assert blocks(moved) == {4, 5, 6}
    assert starts(moved) == {
        "reduce_semantic",
        "expand_semantic",
        "quantize_semantic",
        "blocks",
        "norm",
        "attn_pool",
    }


def test_phase_2_leaves_pixel_codes_and_pictures_to_the_bit(deeper: TokenizerConfig) -> None:
    state = fresh_state(deeper, PHASE_2)
    images, _ = batch(0, deeper)
    before = state.tokenizer.encode(images)
    picture = state.tokenizer.decode(before.pixel)
    run(state, 3)
    after = state.tokenizer.encode(images)
    assert torch.equal(after.pixel, before.pixel)
    assert torch.equal(state.tokenizer.decode(after.pixel), picture)
    assert not torch.equal(after.semantic, before.semantic)


def test_phase_2_runs_no_decoder_and_compares_tokens_by_angle(deeper: TokenizerConfig) -> None:
    state = fresh_state(deeper, PHASE_2)
    ran = []
    state.tokenizer.decoder.register_forward_hook(lambda *_: ran.append("decoder"))
    images, targets = batch(0, deeper)
    longer = targets._replace(dense=targets.dense * 7)
    metrics = train_step(state, images, targets)
    same_angles = train_step(fresh_state(deeper, PHASE_2), images, longer)
    assert ran == []
    assert metrics.reconstruction is None
    assert metrics.semantic == pytest.approx(same_angles.semantic, rel=1e-5)
    present = metrics.present()
    expected = present["semantic"] + 5 * present["pooled"] + 5 * present["commitment"]
    assert metrics.loss == pytest.approx(expected)


def test_a_frozen_tower_stays_in_every_phase(deeper: TokenizerConfig) -> None:
    for phase in (PHASE_0, TRAINING, PHASE_2):
        moved = moved_by(phase.model_copy(update={"freeze_tower": True}), deeper)
        assert starts(moved).isdisjoint({"blocks", "norm", "attn_pool", "patch_embed"})


def test_what_no_loss_reaches_is_frozen(deeper: TokenizerConfig) -> None:
    without_pool = moved_by(training(losses=LossConfig(pooled=0.0)), deeper)
    assert blocks(without_pool) == {1, 2, 3, 4, 5}
    assert starts(without_pool).isdisjoint({"norm", "attn_pool"})


def test_phase_2_of_one_shared_codebook_is_refused(config: TokenizerConfig) -> None:
    shared = config.model_copy(update={"pixel_block": 3, "shortcut": None, "shared_codebook": True})
    with pytest.raises(ValueError, match=r"train\.stage=2 .* shared_codebook=true"):
        fresh_state(shared, PHASE_2)


def test_a_run_without_losses_is_refused(config: TokenizerConfig) -> None:
    nothing = LossConfig(reconstruction=0.0, semantic=0.0, pooled=0.0)
    with pytest.raises(ValueError, match="no weight above 0"):
        fresh_state(config, TRAINING.model_copy(update={"losses": nothing}))


def test_a_stream_not_asked_for_is_not_computed(config: TokenizerConfig, images: Tensor) -> None:
    tokenizer = fresh_state(config).tokenizer
    both = tokenizer(images)
    pixel = tokenizer(images, semantic=False)
    semantic = tokenizer(images, pixel=False)
    assert torch.equal(pixel.reconstruction, both.reconstruction)
    assert (pixel.semantic, pixel.semantic_tokens, pixel.pooled) == (None, None, None)
    assert torch.equal(semantic.pooled, both.pooled)
    assert (semantic.pixel, semantic.reconstruction) == (None, None)
