"""The interface of every quantiser: tokens to ids and back.

B images, N tokens, D depths (codes per token), W channels of a token, V channels of one depth's input.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Quantized(NamedTuple):
    """Output of a quantiser for a batch of tokens."""

    ids: Int[Tensor, "B N D"]  # chosen code per depth, in [0, num_codes)
    vectors: Float[
        Tensor, "B N W"
    ]  # equal to `lookup(ids)` to the bit; straight-through gradient to the tokens
    commitment: Float[Tensor, ""]  # commitment loss: mean squared error over depths; 0 where codes are fixed
    residuals: Float[Tensor, "B N D V"]  # input of each depth's nearest-code search, detached


class Quantizer(nn.Module, ABC):
    """Turns tokens to ids and ids to vectors, in float32 whatever autocast says.

    `forward` changes no state: a training step moves the codes by calling `update`.
    """

    @abstractmethod
    def forward(self, tokens: Float[Tensor, "B N W"]) -> Quantized:
        """Quantise tokens; the same token gets the same ids whatever else is in the batch."""

    @abstractmethod
    def lookup(self, ids: Int[Tensor, "B N D"]) -> Float[Tensor, "B N W"]:
        """Return the vectors that ids stand for."""

    @torch.no_grad()
    def encode(self, tokens: Float[Tensor, "B N W"]) -> Int[Tensor, "B N D"]:
        """Return the ids to store: those of `forward`, or better ones if a beam search is configured."""
        return self.forward(tokens).ids

    @abstractmethod
    def update(self, quantized: Quantized | Sequence[Quantized], generator: torch.Generator) -> None:
        """Move the codes once per optimiser step, from its batch or from all its micro-batches in order."""


def straight_through(value: Float[Tensor, "*S"], source: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """Straight-through estimator: return `value` to the bit, with the gradient of `source`."""
    # The usual source + (value - source).detach() rounds. Here the gradient comes with an exact zero.
    return value.detach() + (source - source.detach())
