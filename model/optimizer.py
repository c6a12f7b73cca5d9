"""Optimisers and the learning rate schedule, for all trainings alike."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn

from dualtoken.model.config.optimizer import AdamWConfig, MuonConfig
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


def build_optimizer(
    model: nn.Module,
    config: AdamWConfig | MuonConfig,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    rate_scales: Mapping[str, float] | None = None,
) -> AnyOptimizer:
    """Return an optimiser of the parameters that have gradients.

    Weight decay is on matrices and kernels, not on biases, norms, scales and learned tokens. `rate_scales`
    are factors of the learning rate, by parameter's name. `betas` are AdamW's.
    """
    groups = _Groups(model, rate_scales or {}, with_muon=isinstance(config, MuonConfig))
    adamw_groups = [
        {"params": groups.decayed, "weight_decay": weight_decay},
        {"params": groups.not_decayed, "weight_decay": 0.0},
    ]
    for scale, parameters in groups.scaled.items():
        adamw_groups.append({"params": parameters, "weight_decay": 0.0, "lr_scale": scale})
    adamw = torch.optim.AdamW(adamw_groups, lr=learning_rate, betas=betas, fused=True)
    if not isinstance(config, MuonConfig):
        return adamw
    matrix_rate = config.learning_rate or learning_rate
    muon = Muon(
        [{"params": groups.matrices, "lr_scale": matrix_rate / learning_rate}],
        lr=matrix_rate,
        weight_decay=weight_decay,
        momentum=config.momentum,
        ns_steps=config.num_iterations,
    )
    return Optimizers([adamw, muon])


class _Groups:
    """The parameters of a model that have gradients, by how they are to move."""

    def __init__(self, model: nn.Module, rate_scales: Mapping[str, float], *, with_muon: bool) -> None:
        self.decayed: list[nn.Parameter] = []
        """Matrices and kernels."""
        self.not_decayed: list[nn.Parameter] = []
        """Biases, norms, scales and learned tokens."""
        self.scaled: dict[float, list[nn.Parameter]] = {}
        """Parameters with a learning rate of their own, by its factor; not decayed either."""
        self.matrices: list[nn.Parameter] = []
        """Weights of linear layers, where Muon moves them."""
        embeddings = _embedding_weights(model)
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if name in rate_scales:
                self.scaled.setdefault(rate_scales[name], []).append(parameter)
            elif parameter.ndim < 2 or name.endswith(_LEARNED_TOKENS):
                self.not_decayed.append(parameter)
            elif with_muon and parameter.ndim == 2 and id(parameter) not in embeddings:
                self.matrices.append(parameter)
            else:
                self.decayed.append(parameter)


def _embedding_weights(model: nn.Module) -> set[int]:
    """Return the ids of tables that are looked up, which are no factors of products.

    By identity, for `==` compares tensors number by number.
    """
    return {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}


def learning_rate_at(step: int, *, peak: float, warmup_steps: int, steps: int, final: float = 0.0) -> float:
    """Return the learning rate of step number `step`, 0 the first.

    It rises linearly up to `peak`, then falls along a cosine to `final` at `steps`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: AnyOptimizer, learning_rate: float) -> None:
    """Set the learning rate of all groups, times a group's `lr_scale` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)
