"""Finite scalar quantisation (FSQ, arXiv 2309.15505): each channel rounded to a few levels; nothing to learn.

B images, N tokens, D depths, C channels of a code, W = D C channels. A channel is bounded by tanh and
rounded, as in the paper's appendix. Its level is found by comparing it with the values at which rounding
changes. So the last bit of tanh, which depends on the place in a batch, decides nothing.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualtoken.model.config.quantizer import ScalarQuantizerConfig
from dualtoken.model.device_constants import constant
from dualtoken.model.precision import without_autocast
from dualtoken.model.quantize.base import Quantized, Quantizer, straight_through

_MARGIN = 1e-3
"""Relative distance by which the bound exceeds the outermost levels, so that they can be reached."""


class ScalarQuantizer(Quantizer):
    """Each depth is a group of channels; an id is their levels in mixed radix.

    The first channel is the least significant digit.
    """

    def __init__(self, config: ScalarQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        radix: list[int] = []
        thresholds: list[tuple[float, ...]] = []
        max_levels = max(config.levels)
        for channel, levels in enumerate(config.levels):
            radix.append(math.prod(config.levels[:channel]))
            # Padded to one length by thresholds that nothing exceeds.
            padding = [math.inf] * (max_levels - levels)
            thresholds.append((*_thresholds(levels), *padding))
        self._radix = tuple(radix)
        self._thresholds = tuple(thresholds)
        self._halves = tuple(levels // 2 for levels in config.levels)
        self._bounds = tuple(_bound(levels) for levels in config.levels)

    def forward(self, tokens: Float[Tensor, "B N W"]) -> Quantized:
        """Quantise tokens, in float32; the same token gets the same ids whatever else is in the batch."""
        with without_autocast(tokens.device):
            ids = self.ids(tokens.detach())
            channels = self._channels(tokens)
            return Quantized(
                ids=ids,
                vectors=straight_through(self.lookup(ids), self._bounded(channels).flatten(2)),
                commitment=torch.zeros((), device=tokens.device),
                residuals=channels.detach(),
            )

    def ids(self, tokens: Float[Tensor, "B N W"]) -> Int[Tensor, "B N D"]:
        """Return the ids alone, by comparisons, which no autocast changes."""
        thresholds = constant(self._thresholds, tokens.device)
        levels = (self._channels(tokens)[..., None] > thresholds).sum(dim=-1)
        return (levels * constant(self._radix, tokens.device)).sum(dim=-1)

    def lookup(self, ids: Int[Tensor, "B N D"]) -> Float[Tensor, "B N W"]:
        """Return the levels, from -1 to 1: `vectors` of the `forward` that chose the ids, to the bit."""
        levels = constant(self.config.levels, ids.device)
        radix = constant(self._radix, ids.device)
        halves = levels // 2
        digits = ids[..., None] // radix % levels
        return ((digits - halves).float() / halves).flatten(2)

    def update(self, quantized: Quantized | Sequence[Quantized], generator: torch.Generator) -> None:
        """Do nothing: levels are fixed."""

    def _channels(self, tokens: Float[Tensor, "B N W"]) -> Float[Tensor, "B N D C"]:
        return tokens.float().unflatten(2, (self.config.depth, -1))

    def _bounded(self, channels: Float[Tensor, "B N D C"]) -> Float[Tensor, "B N D C"]:
        """Return the bounded channels before rounding, from -1 to 1: the source of the gradient."""
        halves = constant(self._halves, channels.device)
        bounds = constant(self._bounds, channels.device)
        scale, offset, shift = bounds.T
        return ((channels + shift).tanh() * scale - offset) / halves


class _Bound(NamedTuple):
    """Coefficients of FSQ's bound, tanh(z + shift) scale - offset."""

    scale: float
    offset: float
    shift: float


def _bound(levels: int) -> _Bound:
    """Return the bound that rounds to `levels` integers, and to 0 at z = 0."""
    scale = (levels - 1) * (1 + _MARGIN) / 2
    offset = 0.0 if levels % 2 else 0.5
    return _Bound(scale, offset, shift=math.atanh(offset / scale))


def _thresholds(levels: int) -> list[float]:
    """Return the z at which one level ends and the next begins, ascending."""
    bound = _bound(levels)
    thresholds = []
    for level in range(levels - 1):
        end_of_level = level + 0.5 - levels // 2
        thresholds.append(math.atanh((end_of_level + bound.offset) / bound.scale) - bound.shift)
    return thresholds
