"""Linear probe: logistic regression on frozen features. N and B samples, C classes, E channels.

Multinomial logistic regression with an L2 penalty on the weights, as in CLIP's evaluation (arXiv 2103.00020,
section A.3), on features brought to mean 0 and variance 1. The objective is convex and has one minimum, which
L-BFGS on all samples at once reaches from zero in float64: there is no seed and no learning rate.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from dualtoken.model.metrics.classification import is_in_top

_TOLERANCE = 1e-7
"""Largest entry of the gradient at which the minimum counts as reached."""


class LinearProbe(NamedTuple):
    """A fitted probe; scores are of the raw features."""

    weights: Float64[Tensor, "E C"]
    bias: Float64[Tensor, " C"]
    loss: float
    """Mean cross-entropy of the training samples in nats, with the penalty."""

    def scores(self, features: Float[Tensor, "B E"]) -> Float64[Tensor, "B C"]:
        """Return the logits of each class."""
        return features.double() @ self.weights + self.bias


def fit_linear_probe(
    features: Float[Tensor, "N E"],
    labels: Int[Tensor, " N"],
    num_classes: int,
    l2: float = 1e-3,
    max_steps: int = 1000,
) -> LinearProbe:
    """Fit a probe: mean cross-entropy plus `l2 / 2` times the squared weights of the standardised features.

    scikit-learn's C is 1 / (l2 N). A constant channel has weight 0. Raises ValueError if the minimum is not
    reached in `max_steps`.
    """
    if l2 <= 0:
        raise ValueError(f"l2={l2}: without a penalty separable classes have no minimum; set it above 0")
    raw = features.double()
    mean = raw.mean(dim=0)
    # A constant channel's deviation is rounding alone.
    deviation = raw.std(dim=0, correction=0)
    is_constant = deviation <= 1e-12 * raw.abs().amax(dim=0)
    scale = torch.where(is_constant, 0.0, 1 / deviation)
    inputs = (raw - mean) * scale
    weights = torch.zeros(raw.shape[1], num_classes, dtype=torch.float64, device=raw.device)
    bias = weights.new_zeros(num_classes)
    loss = _minimise(inputs, labels.long(), weights, bias, l2, max_steps)
    weights = weights.detach() * scale[:, None]
    return LinearProbe(weights=weights, bias=bias.detach() - mean @ weights, loss=loss)


def is_probed_class(
    probe: LinearProbe, features: Float[Tensor, "B E"], labels: Int[Tensor, " B"], k: int = 1
) -> Bool[Tensor, " B"]:
    """Return whether the right class of each sample is among the probe's k highest scores."""
    return is_in_top(probe.scores(features), labels, k)


def _minimise(
    inputs: Float64[Tensor, "N E"],
    labels: Int[Tensor, " N"],
    weights: Float64[Tensor, "E C"],
    bias: Float64[Tensor, " C"],
    l2: float,
    max_steps: int,
) -> float:
    """Move weights and bias to the minimum, and return the loss there."""
    weights.requires_grad_()
    bias.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights, bias],
        max_iter=max_steps,
        max_eval=2 * max_steps,
        tolerance_grad=_TOLERANCE,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss_with_gradient() -> float:
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = F.cross_entropy(inputs @ weights + bias, labels) + l2 / 2 * weights.square().sum()
            loss.backward()
        return loss.item()

    optimizer.step(loss_with_gradient)
    loss = loss_with_gradient()
    steepest = max(
        gradient.abs().max().item() for gradient in (weights.grad, bias.grad) if gradient is not None
    )
    if not steepest <= _TOLERANCE:
        raise ValueError(
            f"the linear probe still has a gradient of {steepest:.1e} after {max_steps} steps with l2={l2}: "
            "raise l2 or max_steps, or look for features that are not finite"
        )
    return loss
