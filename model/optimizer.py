"""AdamW and its learning rate schedule, for teacher and tokenizer alike."""

import math

import torch
from torch import nn

_LEARNED_TOKENS = ("pos_embed", "positional_embedding", "latent", "prefix", "cls_token", "reg_token")
"""Endings of the names of learned tokens: positions, and vectors that stand among tokens.

They are matrices by their shape alone: they are added, and are no factor of a product.
"""


def build_optimizer(
    model: nn.Module, *, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """Return AdamW over the parameters that have gradients.

    Weight decay is on matrices and kernels, not on biases, norms, scales and learned tokens.
    """
    decayed: list[nn.Parameter] = []
    not_decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or name.endswith(_LEARNED_TOKENS):
            not_decayed.append(parameter)
        else:
            decayed.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": not_decayed, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def learning_rate_at(step: int, *, peak: float, warmup_steps: int, steps: int, final: float = 0.0) -> float:
    """Return the learning rate of step number `step`, 0 the first.

    It rises linearly up to `peak`, then falls along a cosine to `final` at `steps`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of all groups, times a group's `lr_scale` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)
