"""Residual vector quantisation with one codebook for all depths (RQ-VAE, arXiv 2203.01941), moved by moving averages.

B images, N tokens, D depths, W channels, K codes, M vectors. The statistics follow the released DualToken code, with two
differences: every depth contributes its own residual (there, all depths see the last one), and distances are exact under
any autocast (there, bfloat16 changes 3 to 6 % of the codes).
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from model.config import QuantizerConfig

_MAX_DISTANCES = 2**22
"""Distances held at once; float32, so 16 MiB."""
_COUNT_EPSILON = 1e-5
"""Laplace smoothing of the counts, as in VQ-VAE-2's and RQ-VAE's code."""


class Quantized(NamedTuple):
    """What one codebook makes of a batch."""

    ids: Int[Tensor, "B N D"]  # chosen code per depth, in [0, K)
    vectors: Float[Tensor, "B N W"]  # sum over depth of the codes; its gradient passes straight to the tokens
    commitment: Float[Tensor, ""]  # mean over depths of the squared error left, which pulls tokens to codes
    residuals: Float[Tensor, "B N D W"]  # what each depth had to quantise, detached


class ResidualQuantizer(nn.Module):
    """Each depth takes the code nearest to what the depths before it left over."""

    codes: Float[Tensor, "K W"]
    counts: Float[Tensor, " K"]
    sums: Float[Tensor, "K W"]

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("codes", torch.empty(config.num_codes, config.width))
        self.register_buffer("counts", torch.empty(config.num_codes))
        self.register_buffer("sums", torch.empty(config.num_codes, config.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw normal codes with no uses, so that, with restarts on, the first update takes the codes from its batch."""
        nn.init.normal_(self.codes)
        self.sums.copy_(self.codes)
        nn.init.zeros_(self.counts)

    def forward(self, tokens: Float[Tensor, "B N W"]) -> Quantized:
        """Quantise tokens, in float32; the same token gets the same ids whatever else is in the batch."""
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = tokens.float()
            residual, total, commitment = tokens.detach(), torch.zeros_like(tokens.detach()), tokens.new_zeros(())
            ids, residuals = [], []
            for _ in range(self.config.depth):
                chosen = torch.ops.dualtoken.nearest_codes(residual.flatten(0, 1), self.codes).view(residual.shape[:2])
                ids.append(chosen)
                residuals.append(residual)
                vectors = F.embedding(chosen, self.codes)
                residual, total = residual - vectors, total + vectors
                commitment = commitment + F.mse_loss(tokens, total)
            # Adding an exact zero that carries the gradient, not total - tokens: the value is the codes' sum to the bit.
            passed = total + (tokens - tokens.detach())
            return Quantized(torch.stack(ids, -1), passed, commitment / self.config.depth, torch.stack(residuals, -2))

    def lookup(self, ids: Int[Tensor, "B N D"]) -> Float[Tensor, "B N W"]:
        """Return the sum over depth of the codes: `vectors` of the `forward` that chose the ids, to the bit."""
        total = self.codes.new_zeros(*ids.shape[:2], self.config.width)
        for depth in range(ids.shape[-1]):
            total = total + F.embedding(ids[..., depth], self.codes)
        return total

    @torch.no_grad()
    def update(self, quantized: Quantized, generator: torch.Generator) -> None:
        """Move the codebook once, by all depths' vectors of a step; all ranks end with the same codebook.

        The CPU generator draws where unused codes restart and must be in the same state on all ranks; ranks must hold
        equally many tokens. One all-reduce where torch.distributed is initialised.
        """
        ids, vectors = quantized.ids.flatten(), quantized.residuals.flatten(0, 2)
        counts = torch.bincount(ids, minlength=self.config.num_codes)[:, None]
        # float64, so that sums differ less than float32 shows between one rank and many.
        sums = torch.zeros_like(self.sums, dtype=torch.float64).index_add_(0, ids, vectors.double())
        statistics = torch.cat((counts.double(), sums, self._candidates(vectors, generator)), dim=1)
        if dist.is_initialized():
            dist.all_reduce(statistics)
        counts, sums, candidates = statistics.split((1, self.config.width, self.config.width), dim=1)
        decay = self.config.decay
        self.counts.mul_(decay).add_(counts[:, 0].to(self.counts.dtype), alpha=1 - decay)
        self.sums.mul_(decay).add_(sums.to(self.sums.dtype), alpha=1 - decay)
        if (least := self.config.restart_below) is not None:
            unused = self.counts < least
            self.sums.copy_(torch.where(unused[:, None], candidates.to(self.sums.dtype) * least, self.sums))
            self.counts.masked_fill_(unused, least)
        total = self.counts.sum()
        smoothed = total * (self.counts + _COUNT_EPSILON) / (total + self.config.num_codes * _COUNT_EPSILON)
        self.codes.copy_(self.sums / smoothed[:, None])

    def _candidates(self, vectors: Float[Tensor, "M W"], generator: torch.Generator) -> Float[Tensor, "K W"]:
        """Draw one vector per code from all ranks' vectors; a rank fills in its own and leaves zeros for the others'."""
        ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        everywhere, num_codes = ranks * len(vectors), self.config.num_codes
        # A permutation, not independent draws: as few codes as possible restart at the same place.
        drawn = torch.randperm(max(everywhere, num_codes), generator=generator)[:num_codes].to(vectors.device) % everywhere
        mine = (drawn // len(vectors) == rank)[:, None]
        return vectors[drawn % len(vectors)].double() * mine


@torch.no_grad()
def nearest_codes(vectors: Float[Tensor, "M W"], codes: Float[Tensor, "K W"]) -> Int[Tensor, " M"]:
    """Return the index of the code with the least squared distance, ties to the lowest; float32 inputs, exact.

    A matrix product finds the nearest but for rounding, which depends on the batch. Vectors whose next code is nearer than
    that rounding could be are decided again from the differences in float64, so the answer depends on the vector alone.
    """
    ids = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    norms = codes.square().sum(dim=1)
    rounding = 4 * codes.shape[1] * torch.finfo(torch.float32).eps
    for start in range(0, len(vectors), rows := max(1, _MAX_DISTANCES // len(codes))):
        chunk = vectors[start : start + rows]
        distances = torch.addmm(norms, chunk, codes.T, alpha=-2)
        least, chosen = distances.min(dim=1)
        slack = rounding * (chunk.square().sum(dim=1) + norms.max())
        unclear = ((distances <= (least + slack)[:, None]).sum(dim=1) > 1).nonzero()[:, 0]
        chosen[unclear] = _nearest_by_differences(chunk[unclear], codes)
        ids[start : start + rows] = chosen
    return ids


def _nearest_by_differences(vectors: Float[Tensor, "M W"], codes: Float[Tensor, "K W"]) -> Int[Tensor, " M"]:
    codes, rows = codes.double(), max(1, _MAX_DISTANCES // codes.numel())
    # argmin gives the first of equal values.
    chosen = [(codes - chunk[:, None]).square().sum(dim=2).argmin(dim=1) for chunk in vectors.double().split(rows)]
    return torch.cat(chosen)


# An operator of its own, since how many vectors are decided again depends on the data: torch.compile keeps the call whole.
_operator = torch.library.custom_op(
    "dualtoken::nearest_codes", nearest_codes, mutates_args=(), schema="(Tensor vectors, Tensor codes) -> Tensor"
)


@_operator.register_fake
def _nearest_codes_shape(vectors: Tensor, codes: Tensor) -> Tensor:
    del codes
    return vectors.new_empty(len(vectors), dtype=torch.int64)
