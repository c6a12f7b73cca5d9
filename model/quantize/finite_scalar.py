"""Finite scalar quantisation (FSQ, arXiv 2309.15505): each channel rounded to a few levels; nothing to learn.

B images, N tokens, D depths, C channels of a code, W = D C channels. A channel is bounded by tanh and rounded, as in the
paper's appendix. Its level is found by comparing it with the values at which rounding changes, so that the last bit of tanh,
which depends on the place in a batch, decides nothing.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualtoken.model.config.quantizer import ScalarQuantizerConfig
from dualtoken.model.precision import without_autocast
from dualtoken.model.quantize.base import Quantized, Quantizer, straight_through

_MARGIN = 1e-3
"""The bound reaches this much further than the outermost levels, so that they can be reached."""


class ScalarQuantizer(Quantizer):
    """Each depth is a group of channels; an id is their levels in mixed radix, the first channel least."""

    def __init__(self, config: ScalarQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self._radix = [math.prod(config.levels[:place]) for place in range(len(config.levels))]
        most = max(config.levels)
        self._thresholds = [_thresholds(levels) + [math.inf] * (most - levels) for levels in config.levels]

    def forward(self, tokens: Float[Tensor, "B N W"]) -> Quantized:
        """Quantise tokens, in float32; the same token gets the same ids whatever else is in the batch."""
        with without_autocast(tokens.device):
            ids, channels = self.ids(tokens.detach()), self._channels(tokens)
            vectors = straight_through(self.lookup(ids), self._bounded(channels).flatten(2))
            return Quantized(ids, vectors, torch.zeros((), device=tokens.device), channels.detach())

    def ids(self, tokens: Float[Tensor, "B N W"]) -> Int[Tensor, "B N D"]:
        """Return the ids alone, by comparisons, which no autocast changes."""
        thresholds = torch.tensor(self._thresholds, device=tokens.device)
        levels = (self._channels(tokens)[..., None] > thresholds).sum(dim=-1)
        return (levels * torch.tensor(self._radix, device=tokens.device)).sum(dim=-1)

    def lookup(self, ids: Int[Tensor, "B N D"]) -> Float[Tensor, "B N W"]:
        """Return the levels, from -1 to 1: `vectors` of the `forward` that chose the ids, to the bit."""
        levels = torch.tensor(self.config.levels, device=ids.device)
        halves = levels // 2
        digits = ids[..., None] // torch.tensor(self._radix, device=ids.device) % levels
        return ((digits - halves).float() / halves).flatten(2)

    def update(self, quantized: Quantized | Sequence[Quantized], generator: torch.Generator) -> None:
        """Do nothing: levels are fixed."""

    def _channels(self, tokens: Float[Tensor, "B N W"]) -> Float[Tensor, "B N D C"]:
        return tokens.float().unflatten(2, (self.config.depth, -1))

    def _bounded(self, channels: Float[Tensor, "B N D C"]) -> Float[Tensor, "B N D C"]:
        """Return what rounding would turn into levels, over the same half: its gradient is the levels'."""
        halves = torch.tensor([levels // 2 for levels in self.config.levels], device=channels.device)
        reach, offset, shift = torch.tensor(
            [_bound(levels) for levels in self.config.levels], device=channels.device
        ).T
        return ((channels + shift).tanh() * reach - offset) / halves


def _bound(levels: int) -> tuple[float, float, float]:
    """Return reach, offset and shift: tanh(z + shift) reach - offset rounds to `levels` integers, and to 0 at z = 0."""
    reach, offset = (levels - 1) * (1 + _MARGIN) / 2, 0.0 if levels % 2 else 0.5
    return reach, offset, math.atanh(offset / reach)


def _thresholds(levels: int) -> list[float]:
    """Return the z at which one level ends and the next begins, ascending."""
    reach, offset, shift = _bound(levels)
    return [math.atanh((place + 0.5 - levels // 2 + offset) / reach) - shift for place in range(levels - 1)]
