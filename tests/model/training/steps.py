"""Steps of a tiny tokenizer, for the tests of training."""

from typing import Any

import torch
from torch import Tensor, nn

from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.config.training import TrainingConfig
from dualtoken.model.teacher.targets import TeacherTargets
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.training.state import TrainState
from dualtoken.model.training.step import TrainMetrics, train_step
from dualtoken.model.training.trainable import freeze

TRAINING = TrainingConfig(steps=20, learning_rate=3e-3, betas=(0.9, 0.95), warmup_steps=3)


def training(**changes: Any) -> TrainingConfig:
    """Return the tests' training with some of its fields changed; they are validated."""
    return TrainingConfig.model_validate(TRAINING.model_dump(exclude_unset=True) | changes)


def fresh_tokenizer(config: TokenizerConfig, settings: TrainingConfig) -> DualTokenizer:
    torch.manual_seed(0)
    tokenizer = DualTokenizer(config)
    freeze(tokenizer, settings)
    return tokenizer


def fresh_state(
    config: TokenizerConfig, settings: TrainingConfig = TRAINING, perceptual: nn.Module | None = None
) -> TrainState:
    return TrainState(fresh_tokenizer(config, settings), settings, perceptual)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def batch(step: int, config: TokenizerConfig) -> tuple[Tensor, TeacherTargets]:
    generator = torch.Generator().manual_seed(100 + step)
    size, width = config.image_size, config.tower.width
    # Smooth pictures, which a tiny model can learn in a few steps.
    images = torch.nn.functional.interpolate(
        torch.rand(4, 3, 3, 3, generator=generator) * 2 - 1, size=(size, size), mode="bilinear"
    )
    direction = torch.linspace(-1, 1, width)
    dense = images.mean((1, 2, 3))[:, None, None] + direction.expand(4, config.grid_size**2, width)
    return images, TeacherTargets(pooled=dense.mean(1), dense=dense)


def run(state: TrainState, steps: int) -> list[TrainMetrics]:
    return [train_step(state, *batch(state.step, state.tokenizer.config)) for _ in range(steps)]


def assert_same_steps(ours: TrainState, theirs: TrainState) -> None:
    """Both took the same steps but for the order of sums: codebooks chose alike, gradients and weights are close."""
    for codebook in ("quantize_pixel", "quantize_semantic"):
        one, other = (getattr(state.tokenizer, codebook) for state in (ours, theirs))
        assert torch.equal(one.counts, other.counts), codebook
        torch.testing.assert_close(one.codes, other.codes, atol=2e-4, rtol=1e-3)
    for one, other in _learners(ours, theirs):
        # Adam divides a gradient by its size: where it is 0 but for rounding, as a key's bias has it, weights say nothing.
        for index, moments in other.state_dict()["state"].items():
            found, expected = one.state_dict()["state"][index]["exp_avg"], moments["exp_avg"]
            torch.testing.assert_close(
                found, expected, rtol=2e-3, atol=2e-3 * expected.abs().max().item() + 1e-6
            )
        found, expected = (
            torch.cat([p.flatten() for group in learner.param_groups for p in group["params"]])
            for learner in (one, other)
        )
        assert (found - expected).norm() < 1e-3 * expected.norm()


def _learners(
    ours: TrainState, theirs: TrainState
) -> list[tuple[torch.optim.Optimizer, torch.optim.Optimizer]]:
    pairs: list[tuple[torch.optim.Optimizer, torch.optim.Optimizer]] = [(ours.optimizer, theirs.optimizer)]
    if ours.adversary and theirs.adversary:
        pairs.append((ours.adversary.optimizer, theirs.adversary.optimizer))
    return pairs
