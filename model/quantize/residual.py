"""Residual vector quantisation (RQ-VAE, arXiv 2203.01941) with one codebook for all depths, as in the paper, or one for each.

B images, N tokens, D depths, W channels, K codes, M vectors. Distances are exact under any autocast (in the released DualToken
code, bfloat16 changes 3 to 6 % of the codes).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dualtoken.model.config.quantizer import QuantizerConfig
from dualtoken.model.precision import without_autocast
from dualtoken.model.quantize.base import Quantized, straight_through
from dualtoken.model.quantize.ema_codebook import CodebookQuantizer
from dualtoken.model.quantize.residual_search import residual_codes


class ResidualQuantizer(CodebookQuantizer[QuantizerConfig]):
    """Each depth takes the code nearest to what the depths before it left over."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config, *(() if config.shared else (config.depth,)), width=config.width)

    @property
    def books(self) -> Float[Tensor, "G K W"]:
        """The codebooks: one, or one per depth."""
        return self.codes.view(-1, *self.codes.shape[-2:])

    def forward(self, tokens: Float[Tensor, "B N W"]) -> Quantized:
        """Quantise tokens, in float32; the same token gets the same ids whatever else is in the batch."""
        with without_autocast(tokens.device):
            tokens = tokens.float()
            ids = self._search(tokens, beam=1)
            residual, total, commitment = (
                tokens.detach(),
                torch.zeros_like(tokens.detach()),
                tokens.new_zeros(()),
            )
            residuals = []
            for depth in range(self.config.depth):
                residuals.append(residual)
                vectors = self._vectors(ids, depth)
                residual, total = residual - vectors, total + vectors
                commitment = commitment + F.mse_loss(tokens, total)
            passed = straight_through(total, tokens)
            return Quantized(ids, passed, commitment / self.config.depth, torch.stack(residuals, -2))

    @torch.no_grad()
    def encode(self, tokens: Float[Tensor, "B N W"]) -> Int[Tensor, "B N D"]:
        """Return the ids to keep, found with the configured beam."""
        return self._search(tokens.float(), self.config.beam)

    def lookup(self, ids: Int[Tensor, "B N D"]) -> Float[Tensor, "B N W"]:
        """Return the sum over depth of the codes: `vectors` of the `forward` that chose the ids, to the bit."""
        total = self.codes.new_zeros(*ids.shape[:2], self.config.width)
        for depth in range(ids.shape[-1]):
            total = total + self._vectors(ids, depth)
        return total

    def _vectors(self, ids: Int[Tensor, "B N D"], depth: int) -> Float[Tensor, "B N W"]:
        return F.embedding(ids[..., depth], self.codes if self.config.shared else self.codes[depth])

    def _search(self, tokens: Float[Tensor, "B N W"], beam: int) -> Int[Tensor, "B N D"]:
        vectors = tokens.detach().flatten(0, 1)[None]
        return residual_codes(vectors, self.books[None], self.config.depth, beam)[0].unflatten(
            0, tokens.shape[:2]
        )

    def _assigned(self, quantized: Quantized) -> tuple[Int[Tensor, "G M"], Float[Tensor, "G M W"]]:
        if self.config.shared:
            return quantized.ids.flatten()[None], quantized.residuals.flatten(0, 2)[None]
        return quantized.ids.flatten(0, 1).T, quantized.residuals.flatten(0, 1).transpose(0, 1)
