"""Residual vector quantisation (RQ-VAE, arXiv 2203.01941), with a codebook for all depths or one for each.

The paper has one for all. B images, N tokens, D depths, W channels, G codebooks, K codes, M vectors.
Distances are exact under any autocast (in the released DualToken code, bfloat16 changes 3 to 6 % of the
codes).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dualtoken.model.config.quantizer import QuantizerConfig
from dualtoken.model.precision import without_autocast
from dualtoken.model.quantize.base import Quantized, straight_through
from dualtoken.model.quantize.ema_codebook import Assignments, CodebookQuantizer
from dualtoken.model.quantize.residual_search import residual_codes


class ResidualQuantizer(CodebookQuantizer[QuantizerConfig]):
    """Each depth takes the code nearest to the residual of the depths before it."""

    def __init__(self, config: QuantizerConfig) -> None:
        num_codebooks = None if config.shared else config.depth
        super().__init__(config, num_codebooks, width=config.width)

    @property
    def codebooks(self) -> Float[Tensor, "G K W"]:
        """The codebooks: one, or one per depth."""
        return self.codes.view(-1, *self.codes.shape[-2:])

    def forward(self, tokens: Float[Tensor, "B N W"]) -> Quantized:
        """Quantise tokens, in float32; the same token gets the same ids whatever else is in the batch."""
        with without_autocast(tokens.device):
            tokens = tokens.float()
            ids = self._search(tokens, beam=1)
            residual = tokens.detach()
            total = torch.zeros_like(residual)
            commitment = tokens.new_zeros(())
            residuals = []
            for depth in range(self.config.depth):
                residuals.append(residual)
                vectors = self._vectors(ids, depth)
                residual = residual - vectors
                total = total + vectors
                commitment = commitment + F.mse_loss(tokens, total)
            return Quantized(
                ids=ids,
                vectors=straight_through(total, tokens),
                commitment=commitment / self.config.depth,
                residuals=torch.stack(residuals, -2),
            )

    @torch.no_grad()
    def encode(self, tokens: Float[Tensor, "B N W"]) -> Int[Tensor, "B N D"]:
        """Return the ids to store, found with the configured beam."""
        return self._search(tokens.float(), self.config.beam)

    def lookup(self, ids: Int[Tensor, "B N D"]) -> Float[Tensor, "B N W"]:
        """Return the codes' sum over depth: `vectors` of the `forward` that chose the ids, to the bit."""
        total = self.codes.new_zeros(*ids.shape[:2], self.config.width)
        for depth in range(ids.shape[-1]):
            total = total + self._vectors(ids, depth)
        return total

    def _vectors(self, ids: Int[Tensor, "B N D"], depth: int) -> Float[Tensor, "B N W"]:
        codebook = self.codes if self.config.shared else self.codes[depth]
        return F.embedding(ids[..., depth], codebook)

    def _search(self, tokens: Float[Tensor, "B N W"], beam: int) -> Int[Tensor, "B N D"]:
        one_stream = tokens.detach().flatten(0, 1)[None]
        ids = residual_codes(one_stream, self.codebooks[None], self.config.depth, beam)
        return ids[0].unflatten(0, tokens.shape[:2])

    def _assignments(self, quantized: Quantized) -> Assignments:
        if self.config.shared:
            return Assignments(quantized.ids.flatten()[None], quantized.residuals.flatten(0, 2)[None])
        return Assignments(quantized.ids.flatten(0, 1).T, quantized.residuals.flatten(0, 1).transpose(0, 1))
