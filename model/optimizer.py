"""Optimisers and the learning rate schedule, for all trainings alike."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import nn

from dualtoken.model.config.optimizer import (
    AdamWConfig,
    ConstantSchedule,
    CosineSchedule,
    MuonConfig,
    ParameterGroup,
    WsdSchedule,
    group_of,
)
from dualtoken.model.muon import Muon

_LEARNED_TOKENS = ("pos_embed", "positional_embedding", "latent", "prefix", "cls_token", "reg_token")
"""Endings of the names of learned tokens: positions, and vectors that stand among tokens.

They are matrices by their shape alone: they are added, and are no factor of a product.
"""


class Optimizers:
    """Several optimisers, each with its own weights, that take their steps together.

    It has what training calls of one `torch.optim.Optimizer`.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = tuple(parts)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts: what is set in one is set in its optimiser."""
        return list(chain.from_iterable(part.param_groups for part in self.parts))

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        """Let each part take its step."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the parts, in their order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        for part, part_state in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(part_state)


AnyOptimizer = torch.optim.Optimizer | Optimizers
Schedule = CosineSchedule | WsdSchedule | ConstantSchedule
StepCheck = Callable[[float, str], None]
"""Judges a step before it changes anything, by the norm of its gradient and by what is not finite in it, in
words that are empty where all is. It raises an error against the step; several ranks may agree on it."""


def require_finite(_gradient_norm: float, problem: str) -> None:
    """Raise FloatingPointError for a step that is not finite: the check of a single rank."""
    if problem:
        raise FloatingPointError(problem)


def build_optimizer(
    model: nn.Module,
    config: AdamWConfig | MuonConfig,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    groups: Sequence[ParameterGroup] = (),
) -> AnyOptimizer:
    """Return an optimiser of the parameters that have gradients; there must be some.

    Weight decay is on matrices and kernels, not on biases, norms, scales and learned tokens, unless a group
    sets its own. `betas` are AdamW's.
    """
    use_muon = isinstance(config, MuonConfig)
    adamw: dict[_Movement, list[nn.Parameter]] = {}
    matrices: dict[_Movement, list[nn.Parameter]] = {}
    embeddings = _embedding_weights(model)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_weight = parameter.ndim >= 2 and not name.endswith(_LEARNED_TOKENS)
        is_matrix = is_weight and parameter.ndim == 2 and id(parameter) not in embeddings
        moved = matrices if use_muon and is_matrix else adamw
        movement = _movement(group_of(name, groups), weight_decay if is_weight else 0.0)
        moved.setdefault(movement, []).append(parameter)

    parts: list[torch.optim.Optimizer] = []
    if adamw:
        groups_of_rest = [movement.group(parameters) for movement, parameters in adamw.items()]
        parts.append(torch.optim.AdamW(groups_of_rest, lr=learning_rate, betas=betas, fused=True))
    if isinstance(config, MuonConfig) and matrices:
        parts.append(_muon(matrices, config, learning_rate, weight_decay))
    return parts[0] if len(parts) == 1 else Optimizers(parts)


def _muon(
    matrices: Mapping["_Movement", list[nn.Parameter]],
    config: MuonConfig,
    learning_rate: float,
    weight_decay: float,
) -> Muon:
    """Return Muon for matrices; `learning_rate` is that of the other weights."""
    matrix_rate = config.learning_rate or learning_rate
    over_rest = matrix_rate / learning_rate
    return Muon(
        [movement.group(parameters, over_rest) for movement, parameters in matrices.items()],
        lr=matrix_rate,
        weight_decay=weight_decay,
        momentum=config.momentum,
        ns_steps=config.num_iterations,
    )


class _Movement(NamedTuple):
    """How parameters move that one group of an optimiser holds."""

    rate: float
    """Factor of the learning rate."""
    weight_decay: float

    def group(self, parameters: list[nn.Parameter], rate: float = 1.0) -> dict[str, Any]:
        """Return the optimiser's group of parameters, with one more factor of the learning rate."""
        return {"params": parameters, "weight_decay": self.weight_decay, "lr_scale": self.rate * rate}


def _movement(group: ParameterGroup | None, weight_decay: float) -> _Movement:
    if group is None:
        return _Movement(1.0, weight_decay)
    return _Movement(group.rate, weight_decay if group.weight_decay is None else group.weight_decay)


def freeze_groups(model: nn.Module, groups: Sequence[ParameterGroup]) -> None:
    """Take the gradients from the parameters of frozen groups.

    Raises ValueError, naming the pattern, for a group that no parameter belongs to, and where none is left to
    train.
    """
    matched: set[int] = set()
    for name, parameter in model.named_parameters():
        group = group_of(name, groups)
        if group is None:
            continue
        matched.add(groups.index(group))
        if group.freeze:
            parameter.requires_grad_(False)
    for number, group in enumerate(groups):
        if number not in matched:
            raise ValueError(
                f"parameters[{number}].pattern={group.pattern!r} matches no parameter that an earlier pattern"
                f" has left; one is called {_some_name(model)}: correct it, or take it out"
            )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("parameters freezes all that there is to train: narrow its patterns")


def _some_name(model: nn.Module) -> str:
    return next(name for name, _ in model.named_parameters())


def _embedding_weights(model: nn.Module) -> set[int]:
    """Return the ids of tables that are looked up, which are no factors of products.

    By identity, for `==` compares tensors number by number.
    """
    return {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}


def learning_rate_at(
    step: int, *, peak: float, warmup_steps: int, steps: int, schedule: Schedule | None = None
) -> float:
    """Return the learning rate of step number `step`, 0 the first.

    It rises linearly up to `peak`, then goes by the schedule up to `steps`: by default along a cosine to 0.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    match schedule:
        case ConstantSchedule():
            return peak
        case WsdSchedule(decay=decay, final=final):
            num_decaying = max(1, round(decay * steps))
            left = max(0.0, min(1.0, (steps - step) / num_decaying))
            return peak * (final + (1 - final) * left)
        case _:
            final = peak * schedule.final if schedule else 0.0
            return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: AnyOptimizer, learning_rate: float) -> None:
    """Set the learning rate of all groups, times a group's `lr_scale` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)
