"""Steps of a tiny tokenizer, for the tests of training."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.config.training import TrainingConfig
from dualtoken.model.teacher.targets import TeacherTargets
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.training.state import TrainState
from dualtoken.model.training.step import TrainMetrics, train_step

TRAINING = TrainingConfig(steps=20, learning_rate=3e-3, betas=(0.9, 0.95), warmup_steps=3)


def training(**changes: Any) -> TrainingConfig:
    """Return the tests' training with some of its fields changed; they are validated."""
    return TrainingConfig.model_validate(TRAINING.model_dump(exclude_unset=True) | changes)


def fresh_state(
    config: TokenizerConfig,
    training_config: TrainingConfig = TRAINING,
    perceptual: nn.Module | None = None,
    *,
    wrap: Callable[[DualTokenizer], nn.Module] | None = None,
) -> TrainState:
    torch.manual_seed(0)
    return TrainState(DualTokenizer(config), training_config, perceptual, wrap=wrap)


def data_parallel(tokenizer: DualTokenizer) -> DistributedDataParallel:
    return DistributedDataParallel(tokenizer, forward_sync_buffers=False)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def batch(step: int, config: TokenizerConfig) -> tuple[Tensor, TeacherTargets]:
    generator = torch.Generator().manual_seed(100 + step)
    size = config.image_size
    width = config.tower.width
    # Smooth pictures, which a tiny model can learn in a few steps.
    images = torch.nn.functional.interpolate(
        torch.rand(4, 3, 3, 3, generator=generator) * 2 - 1, size=(size, size), mode="bilinear"
    )
    direction = torch.linspace(-1, 1, width)
    dense = images.mean((1, 2, 3))[:, None, None] + direction.expand(4, config.grid_size**2, width)
    return images, TeacherTargets(pooled=dense.mean(1), dense=dense)


def run(state: TrainState, steps: int) -> list[TrainMetrics]:
    return [train_step(state, *batch(state.step, state.tokenizer.config)) for _ in range(steps)]


def assert_same_steps(found: TrainState, expected: TrainState) -> None:
    """Both took the same steps but for the order of sums.

    Codebooks chose alike, gradients and weights are close.
    """
    for name in ("quantize_pixel", "quantize_semantic"):
        codebook = getattr(found.tokenizer, name)
        expected_codebook = getattr(expected.tokenizer, name)
        assert torch.equal(codebook.counts, expected_codebook.counts), name
        torch.testing.assert_close(codebook.codes, expected_codebook.codes, atol=2e-4, rtol=1e-3)
    assert isinstance(found.optimizer, torch.optim.Optimizer), "of AdamW's moments"
    assert isinstance(expected.optimizer, torch.optim.Optimizer)
    assert_same_weights(found.optimizer, expected.optimizer)
    if found.adversary and expected.adversary:
        assert_same_weights(found.adversary.optimizer, expected.adversary.optimizer)


def assert_same_weights(found: torch.optim.Optimizer, expected: torch.optim.Optimizer) -> None:
    # Adam divides a gradient by its size: where it is 0 but for rounding, as a key's bias has it, weights say
    # nothing.
    for index, moments in expected.state_dict()["state"].items():
        average = moments["exp_avg"]
        tolerance = 2e-3 * average.abs().max().item() + 1e-6
        found_average = found.state_dict()["state"][index]["exp_avg"]
        torch.testing.assert_close(found_average, average, rtol=2e-3, atol=tolerance)
    difference = all_weights(found) - all_weights(expected)
    assert difference.norm() < 1e-3 * all_weights(expected).norm()


def all_weights(optimizer: torch.optim.Optimizer) -> Tensor:
    flat = []
    for group in optimizer.param_groups:
        flat += [parameter.flatten() for parameter in group["params"]]
    return torch.cat(flat)
