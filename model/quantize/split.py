"""Split multi-codebook quantisation (UniTok, arXiv 2502.20321): a codebook for each part of the channels.

B images, N tokens, D parts, W channels, V = W / D channels of a part, K codes, M vectors. As in UniTok, parts
and codes have length one, so the nearest code is the one at the least angle. Unlike there, moving averages
move the codes, not gradients: one `update` serves all quantisers.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dualtoken.model.config.quantizer import SplitQuantizerConfig
from dualtoken.model.precision import without_autocast
from dualtoken.model.quantize.base import Quantized, straight_through
from dualtoken.model.quantize.ema_codebook import Assignments, CodebookQuantizer
from dualtoken.model.quantize.nearest import row_sums
from dualtoken.model.quantize.residual_search import part_codes

_MIN_NORM = 1e-12
"""Lower bound of a norm before a division by it, as in torch.nn.functional.normalize."""


class SplitQuantizer(CodebookQuantizer[SplitQuantizerConfig]):
    """Each depth takes the code nearest to its part of the channels; the parts' codes are concatenated."""

    def __init__(self, config: SplitQuantizerConfig) -> None:
        super().__init__(config, config.depth, width=config.width // config.depth)

    def forward(self, tokens: Float[Tensor, "B N W"]) -> Quantized:
        """Quantise tokens, in float32; the same token gets the same ids whatever else is in the batch."""
        with without_autocast(tokens.device):
            parts = self._project(tokens.float().unflatten(2, (self.config.depth, -1)))
            by_depth = parts.detach().flatten(0, 1).transpose(0, 1).contiguous()
            ids = part_codes(by_depth, self.codes).T.unflatten(0, tokens.shape[:2])
            vectors = self.lookup(ids)
            source = parts.flatten(2)
            return Quantized(
                ids=ids,
                vectors=straight_through(vectors, source),
                commitment=F.mse_loss(source, vectors),
                residuals=parts.detach(),
            )

    def lookup(self, ids: Int[Tensor, "B N D"]) -> Float[Tensor, "B N W"]:
        """Return the parts' codes side by side: `vectors` of the `forward` that chose the ids, to the bit."""
        depths = range(self.config.depth)
        return torch.cat([F.embedding(ids[..., depth], self.codes[depth]) for depth in depths], dim=2)

    def _assignments(self, quantized: Quantized) -> Assignments:
        return Assignments(quantized.ids.flatten(0, 1).T, quantized.residuals.flatten(0, 1).transpose(0, 1))

    def _project(self, codes: Float[Tensor, "*S V"]) -> Float[Tensor, "*S V"]:
        return unit_length(codes) if self.config.normalized else codes


def unit_length(vectors: Float[Tensor, "*S V"]) -> Float[Tensor, "*S V"]:
    """Return vectors of length one, the same to the bit whatever the others are; zeros stay zeros."""
    squares = row_sums(vectors.flatten(0, -2).double().square()).view(*vectors.shape[:-1], 1)
    norms = squares.sqrt().clamp(min=_MIN_NORM)
    return vectors / norms.to(vectors.dtype)
