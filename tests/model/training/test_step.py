"""Training steps: exact resume, refused steps, and a loss that must not move."""

from pathlib import Path

import pytest
import torch

from dualtoken.model.config.optimizer import AdamWConfig
from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.config.training import LossConfig, WeightEmaConfig
from dualtoken.model.optimizer import build_optimizer
from dualtoken.model.quantize import ResidualQuantizer
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.training.state import TrainState
from dualtoken.model.training.step import train_step
from tests.model.training.steps import (
    TRAINING,
    assert_same_steps,
    batch,
    changed,
    fresh_state,
    run,
    snapshot,
    training,
)


def test_twenty_steps_give_the_pinned_loss(config: TokenizerConfig) -> None:
    losses = [metrics.loss for metrics in run(fresh_state(config), 20)]
    # Kernels of other CPUs round otherwise; a change of the mathematics moves far more than this.
    assert losses[0] == pytest.approx(18.67218, rel=1e-3)
    assert losses[-1] == pytest.approx(2.71276, rel=2e-2)


def test_a_resumed_run_repeats_the_uninterrupted_one_to_the_bit(
    config: TokenizerConfig, tmp_path: Path
) -> None:
    whole = fresh_state(config)
    run(whole, 4)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    expected = run(whole, 3)
    torch.manual_seed(99)
    resumed = TrainState(DualTokenizer(config), TRAINING)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert run(resumed, 3) == expected
    assert changed(resumed.tokenizer, whole.tokenizer.state_dict()) == set()


def test_a_loss_that_is_not_finite_stops_before_any_weight_changes(config: TokenizerConfig) -> None:
    state = fresh_state(config)
    before = snapshot(state.tokenizer)
    images, targets = batch(0, config)
    with pytest.raises(FloatingPointError, match=r"step 0 has loss nan .*: lower train\.learning_rate"):
        train_step(state, images, targets._replace(pooled=targets.pooled * torch.nan))
    assert changed(state.tokenizer, before) == set()


def test_bfloat16_trains_the_trunk_and_keeps_codebooks_in_float32(config: TokenizerConfig) -> None:
    state = fresh_state(config, training(precision="bfloat16"))
    metrics = run(state, 3)
    assert metrics[0].loss == pytest.approx(run(fresh_state(config), 1)[0].loss, rel=0.02)
    assert metrics[0].loss != run(fresh_state(config), 1)[0].loss
    assert state.tokenizer.quantize_pixel.codes.dtype == torch.float32


def test_each_term_counts_by_its_weight(config: TokenizerConfig) -> None:
    metrics = run(fresh_state(config), 1)[0]
    figures = metrics.present()
    assert set(figures) == {
        "loss",
        "reconstruction",
        "semantic",
        "pooled",
        "commitment",
        "gradient_norm",
        "learning_rate",
    }
    total = 0.0
    for name, weight in LossConfig().model_dump().items():
        total += weight * figures[name]
    assert metrics.loss == pytest.approx(total)


def test_weight_decay_spares_biases_norms_and_learned_tokens(config: TokenizerConfig) -> None:
    tokenizer = DualTokenizer(config)
    # As beside a tower with a class token.
    tokenizer.prefix = torch.nn.Parameter(torch.zeros(1, 1, config.tower.width))
    optimizer = build_optimizer(
        tokenizer, AdamWConfig(), learning_rate=1.0, betas=(0.9, 0.9), weight_decay=0.1
    )
    groups = [group for group in optimizer.param_groups if group["weight_decay"]]
    decayed = {id(parameter) for group in groups for parameter in group["params"]}
    spared = {name for name, parameter in tokenizer.named_parameters() if id(parameter) not in decayed}
    assert {
        "tower.pos_embed",
        "tower.attn_pool.latent",
        "prefix",
        "tower.blocks.0.attn.qkv.bias",
        "decoder.norm_out.weight",
    } <= spared
    assert "decoder.conv_in.weight" not in spared
    assert "tower.blocks.0.attn.qkv.weight" not in spared


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_gives_the_step_of_the_whole(config: TokenizerConfig, parts: int) -> None:
    whole = fresh_state(config)
    parted = fresh_state(config, training(accumulate_steps=parts))
    expected = run(whole, 2)
    found = run(parted, 2)
    assert found[0].present() == pytest.approx(expected[0].present(), rel=1e-4)
    assert_same_steps(parted, whole)


def test_parts_that_do_not_divide_a_batch_are_refused(config: TokenizerConfig) -> None:
    with pytest.raises(ValueError, match="accumulate_steps=3 does not divide the 4 images of a rank"):
        run(fresh_state(config, training(accumulate_steps=3)), 1)


def test_a_codebook_moves_once_per_step_however_many_parts(config: TokenizerConfig) -> None:
    state = fresh_state(config, training(accumulate_steps=4))
    codebook = state.tokenizer.quantize_pixel
    assert isinstance(codebook, ResidualQuantizer)
    run(state, 1)
    # From 0 uses: a step adds a hundredth of its 108 codes, and unused codes restart at 1.
    uses = 4 * config.grid_size**2 * config.pixel.depth
    assert codebook.counts.max() <= (1 - codebook.config.decay) * uses + 1


def test_long_gradients_are_shortened_and_short_ones_are_not(config: TokenizerConfig) -> None:
    norms = []
    for limit in (None, 0.5, 1e6):
        state = fresh_state(config, training(max_gradient_norm=limit))
        assert run(state, 1)[0].gradient_norm > 10
        gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
    free, clipped, loose = norms
    assert clipped == pytest.approx(0.5, rel=1e-4)
    assert free == loose > 10


def test_the_average_follows_the_weights_and_takes_the_codebooks_as_they_are(config: TokenizerConfig) -> None:
    state = fresh_state(config, training(weight_ema=WeightEmaConfig(decay=0.9)))
    steps = []
    for _ in range(3):
        run(state, 1)
        steps.append(snapshot(state.tokenizer))
    assert state.result is not state.tokenizer
    averaged = state.result.state_dict()
    for name in ("decoder.conv_out.weight", "tower.blocks.0.attn.qkv.weight"):
        # The first step's weights are where the average starts.
        first, second, third = (step[name] for step in steps)
        expected = 0.9 * (0.9 * first + 0.1 * second) + 0.1 * third
        torch.testing.assert_close(averaged[name], expected)
    assert torch.equal(averaged["quantize_pixel.codes"], steps[-1]["quantize_pixel.codes"])


def test_without_an_average_the_result_is_the_model(config: TokenizerConfig) -> None:
    state = fresh_state(config)
    assert state.result is state.tokenizer
