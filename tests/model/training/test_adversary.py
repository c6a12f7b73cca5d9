"""The GAN: its networks and losses to the number, its schedule, exact resume, and ranks and parts that agree."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.config.training import GanConfig, WeightEmaConfig
from dualtoken.model.teacher.targets import TeacherTargets
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.training.adversary import Adversary
from dualtoken.model.training.discriminator import PatchDiscriminator, discriminator_loss, generator_loss
from dualtoken.model.training.state import TrainState
from dualtoken.model.training.step import train_step
from tests.model.training.steps import (
    assert_same_steps,
    batch,
    changed,
    data_parallel,
    fresh_state,
    run,
    snapshot,
    training,
)

GAN = GanConfig(width=32, learning_rate=1e-3, final_learning_rate=1e-4)
FULL = training(gan=GAN, weight_ema=WeightEmaConfig(decay=0.9))
PARTED = FULL.model_copy(update={"accumulate_steps": 2})


def test_the_discriminator_has_the_released_size_and_patches() -> None:
    with torch.device("meta"):
        discriminator = PatchDiscriminator()
        assert discriminator(torch.empty(2, 3, 384, 384)).shape == (2, 1, 48, 48)
        assert discriminator(torch.empty(2, 3, 256, 256)).shape == (2, 1, 32, 32)
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 1_729_409


def test_a_score_depends_on_its_own_image_only() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(32)
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(discriminator(images)[1:2], discriminator(images[1:2]))


def test_losses_are_the_leaky_hinge_and_the_mean_score() -> None:
    real = torch.tensor([2.0, 0.5]).view(2, 1, 1, 1)
    fake = torch.tensor([-3.0, 1.0]).view(2, 1, 1, 1)
    # Real: 1 - 2 = -1, which leaks to -0.01, and 0.5. Fake: 1 - 3 = -2, which leaks to -0.02, and 2.
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * ((-0.01 + 0.5) / 2 + (-0.02 + 2) / 2))
    assert generator_loss(fake).item() == pytest.approx(1.0)


def test_neither_side_reaches_the_other_s_gradients() -> None:
    adversary = Adversary(GAN, steps=9, seed=0, device=torch.device("cpu"))
    images = torch.randn(2, 3, 16, 16)
    pictures = torch.randn(2, 3, 16, 16, requires_grad=True)
    adversary.generator_loss(pictures).backward()
    assert pictures.grad is not None
    assert all(parameter.grad is None for parameter in adversary.discriminator.parameters())
    pictures.grad = None
    adversary.discriminator_loss(images, pictures).backward()
    assert pictures.grad is None
    assert all(parameter.grad is not None for parameter in adversary.discriminator.parameters())


def test_a_discriminator_learns_to_tell_and_a_generator_to_please() -> None:
    adversary = Adversary(GAN, steps=1000, seed=0, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(4, 3, 1, 1, generator=generator).expand(4, 3, 16, 16) * 2 - 1
    noise = torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1
    losses = []
    for step in range(30):
        adversary.optimizer.zero_grad()
        loss = adversary.discriminator_loss(smooth, noise)
        loss.backward()
        adversary.take_step(step)
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1, abs=0.1)
    assert losses[-1] < 0.2
    assert adversary.generator_loss(smooth) < adversary.generator_loss(noise)


class FirstStep(NamedTuple):
    adaptive_weight: Tensor
    total: Tensor


def by_hand(config: TokenizerConfig, gan: GanConfig) -> FirstStep:
    """The adaptive weight and the loss of a first step, from their definitions."""
    state = fresh_state(config, training(gan=gan))
    assert state.adversary is not None
    images, targets = batch(0, config)
    output = state.tokenizer(images)
    weight = state.tokenizer.decoder.conv_out.weight
    picture = (output.reconstruction - images).square().mean()
    generator = -state.adversary.discriminator(output.reconstruction).mean()
    picture_norm = torch.autograd.grad(picture, weight, retain_graph=True)[0].norm()
    generator_norm = torch.autograd.grad(generator, weight, retain_graph=True)[0].norm()
    ratio = picture_norm / (generator_norm + 1e-4)
    adaptive_weight = ratio.clamp(gan.min_adaptive_weight, gan.max_adaptive_weight)
    plain = train_step(fresh_state(config), images, targets).loss
    return FirstStep(adaptive_weight, plain + gan.weight * adaptive_weight * generator)


@pytest.mark.parametrize("bounds", [(1e-3, 1e3), (1e-3, 2e-3), (0.3, 10.0)])
def test_the_generator_counts_by_the_ratio_of_gradients_at_the_last_layer(
    config: TokenizerConfig, bounds: tuple[float, float]
) -> None:
    gan = GAN.model_copy(update={"min_adaptive_weight": bounds[0], "max_adaptive_weight": bounds[1]})
    metrics = run(fresh_state(config, training(gan=gan)), 1)[0]
    expected = by_hand(config, gan)
    assert metrics.adaptive_weight == pytest.approx(expected.adaptive_weight.item(), rel=1e-4)
    assert metrics.loss == pytest.approx(expected.total.item(), rel=1e-5)


def test_the_gan_starts_at_its_step(config: TokenizerConfig) -> None:
    late = fresh_state(config, training(gan=GAN.model_copy(update={"start_step": 2})))
    without = fresh_state(config)
    assert late.adversary is not None
    before = snapshot(late.adversary.discriminator)
    assert run(late, 2) == run(without, 2)
    assert changed(late.adversary.discriminator, before) == set()
    present = run(late, 1)[0].present()
    assert {"generator", "adaptive_weight", "discriminator", "discriminator_gradient_norm"} <= set(present)
    # Inside the hinge, what is real pushes the last bias as far as what is not pulls it.
    assert changed(late.adversary.discriminator, before) >= set(before) - {"conv_out.bias"}


def test_the_discriminator_s_rate_rises_from_its_start_and_ends_at_its_floor() -> None:
    gan = GanConfig(width=32, start_step=4, warmup_steps=2, learning_rate=2.0, final_learning_rate=0.5)
    adversary = Adversary(gan, steps=10, seed=0, device=torch.device("cpu"))
    rates = []
    for step in (4, 5, 6, 8, 10):
        adversary.take_step(step)
        rates.append(adversary.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1.0, 2.0, 2.0, 1.25, 0.5])


def test_a_resumed_run_with_gan_and_average_repeats_the_uninterrupted_one_to_the_bit(
    config: TokenizerConfig, tmp_path: Path
) -> None:
    whole = fresh_state(config, FULL)
    run(whole, 3)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    expected = run(whole, 3)
    torch.manual_seed(99)
    resumed = TrainState(DualTokenizer(config), FULL)
    assert resumed.adversary is not None
    assert whole.adversary is not None
    nn.init.ones_(resumed.adversary.discriminator.conv_in.weight)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert run(resumed, 3) == expected
    assert changed(resumed.tokenizer, whole.tokenizer.state_dict()) == set()
    assert changed(resumed.result, whole.result.state_dict()) == set()
    assert changed(resumed.adversary.discriminator, whole.adversary.discriminator.state_dict()) == set()


def test_a_discriminator_that_is_not_finite_stops_before_any_weight_changes(config: TokenizerConfig) -> None:
    state = fresh_state(config, FULL)
    assert state.adversary is not None
    with torch.no_grad():
        state.adversary.discriminator.get_parameter("conv_out.bias").fill_(torch.inf)
    tokenizer = snapshot(state.tokenizer)
    discriminator = snapshot(state.adversary.discriminator)
    with pytest.raises(FloatingPointError, match=r"step 0 has loss .*: lower train\.learning_rate"):
        run(state, 1)
    assert changed(state.tokenizer, tokenizer) == set()
    assert changed(state.adversary.discriminator, discriminator) == set()


def test_a_batch_in_parts_gives_the_step_of_the_whole(config: TokenizerConfig) -> None:
    whole = fresh_state(config, FULL)
    parted = fresh_state(config, PARTED)
    expected = run(whole, 2)
    found = run(parted, 2)
    assert found[0].present() == pytest.approx(expected[0].present(), rel=1e-4)
    assert_same_steps(parted, whole)


def assert_equal(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


RANKS = {"gan": FULL, "parts": PARTED}


def one_rank(rank: int, config: TokenizerConfig, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name, training_config in RANKS.items():
        state = fresh_state(config, training_config, wrap=data_parallel)
        for step in range(2):
            images, targets = batch(step, config)
            half = slice(rank * 2, rank * 2 + 2)
            train_step(state, images[half], TeacherTargets(targets.pooled[half], targets.dense[half]))
        torch.save(state.state_dict(), f"{folder}/{name}{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one(config: TokenizerConfig, tmp_path: Path) -> None:
    single = fresh_state(config, FULL)
    run(single, 2)
    start_processes(one_rank, args=(config, str(tmp_path)), nprocs=2, start_method="spawn")
    for name, training_config in RANKS.items():
        first = torch.load(tmp_path / f"{name}0.pt", weights_only=True)
        second = torch.load(tmp_path / f"{name}1.pt", weights_only=True)
        for part in ("model", "adversary", "average"):
            assert_equal(first[part], second[part])
        both = fresh_state(config, training_config)
        both.load_state_dict(first)
        assert_same_steps(both, single)
