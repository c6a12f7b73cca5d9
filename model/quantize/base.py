"""What every quantiser is: tokens to ids and back.

B images, N tokens, D depths (codes per token), W channels, V channels of one depth's input.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What a quantiser makes of a batch."""

    ids: Int[Tensor, "B N D"]  # chosen code per depth, in [0, num_codes)
    vectors: Float[
        Tensor, "B N W"
    ]  # what the ids say, to the bit `lookup`; its gradient passes straight to the tokens
    commitment: Float[
        Tensor, ""
    ]  # mean squared error, over depths, which pulls tokens to codes; 0 where codes are fixed
    residuals: Float[Tensor, "B N D V"]  # what each depth had to quantise, detached


class Quantizer(nn.Module, ABC):
    """Turns tokens to ids and ids to vectors, in float32 whatever autocast says; `forward` changes no state."""

    @abstractmethod
    def forward(self, tokens: Float[Tensor, "B N W"]) -> Quantized:
        """Quantise tokens; the same token gets the same ids whatever else is in the batch."""

    @abstractmethod
    def lookup(self, ids: Int[Tensor, "B N D"]) -> Float[Tensor, "B N W"]:
        """Return the vectors that ids say."""

    @torch.no_grad()
    def encode(self, tokens: Float[Tensor, "B N W"]) -> Int[Tensor, "B N D"]:
        """Return the ids to keep: those of `forward`, or better ones where the configuration asks for a longer search."""
        return self.forward(tokens).ids

    @abstractmethod
    def update(self, quantized: Quantized | Sequence[Quantized], generator: torch.Generator) -> None:
        """Move the codes once, by what one optimiser step saw: its batch, or all its micro-batches in order."""


def straight_through(value: Float[Tensor, "*S"], source: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """Return `value` to the bit, with the gradient of `source`."""
    # Adding an exact zero that carries the gradient, not source + (value - source).detach(), which rounds.
    return value.detach() + (source - source.detach())
