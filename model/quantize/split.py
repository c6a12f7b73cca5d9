"""Split multi-codebook quantisation (UniTok, arXiv 2502.20321): parts of the channels, each with its own codebook.

B images, N tokens, D parts, W channels, V = W / D channels of a part, K codes, M vectors. As in UniTok, parts and
codes have length one, so the nearest code is that of the least angle. Unlike there, moving averages move the codes, not
gradients: one `update` serves all quantisers.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dualtoken.model.config.quantizer import SplitQuantizerConfig
from dualtoken.model.precision import without_autocast
from dualtoken.model.quantize.base import Quantized, straight_through
from dualtoken.model.quantize.ema_codebook import CodebookQuantizer
from dualtoken.model.quantize.nearest import row_sums
from dualtoken.model.quantize.residual_search import part_codes

_SHORTEST = 1e-12
"""Norms are taken to be at least this, as in torch.nn.functional.normalize."""


class SplitQuantizer(CodebookQuantizer[SplitQuantizerConfig]):
    """Each depth takes the code nearest to its own part of the channels; the vectors are the parts' codes, side by side."""

    def __init__(self, config: SplitQuantizerConfig) -> None:
        super().__init__(config, config.depth, width=config.width // config.depth)

    def forward(self, tokens: Float[Tensor, "B N W"]) -> Quantized:
        """Quantise tokens, in float32; the same token gets the same ids whatever else is in the batch."""
        with without_autocast(tokens.device):
            parts = self._place(tokens.float().unflatten(2, (self.config.depth, -1)))
            ids = part_codes(
                parts.detach().flatten(0, 1).transpose(0, 1).contiguous(), self.codes
            ).T.unflatten(0, tokens.shape[:2])
            vectors, source = self.lookup(ids), parts.flatten(2)
            return Quantized(
                ids, straight_through(vectors, source), F.mse_loss(source, vectors), parts.detach()
            )

    def lookup(self, ids: Int[Tensor, "B N D"]) -> Float[Tensor, "B N W"]:
        """Return the parts' codes side by side: `vectors` of the `forward` that chose the ids, to the bit."""
        return torch.cat(
            [F.embedding(ids[..., depth], self.codes[depth]) for depth in range(self.config.depth)], dim=2
        )

    def _assigned(self, quantized: Quantized) -> tuple[Int[Tensor, "D M"], Float[Tensor, "D M V"]]:
        return quantized.ids.flatten(0, 1).T, quantized.residuals.flatten(0, 1).transpose(0, 1)

    def _place(self, codes: Float[Tensor, "*S V"]) -> Float[Tensor, "*S V"]:
        return unit_length(codes) if self.config.normalized else codes


def unit_length(vectors: Float[Tensor, "*S V"]) -> Float[Tensor, "*S V"]:
    """Return vectors of length one, each the same to the bit whatever the others are; a vector of zeros stays."""
    squares = row_sums(vectors.flatten(0, -2).double().square()).view(*vectors.shape[:-1], 1)
    return vectors / squares.sqrt().clamp(min=_SHORTEST).to(vectors.dtype)
