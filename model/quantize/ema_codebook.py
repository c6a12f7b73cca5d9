"""Codebooks that moving averages of their vectors move (VQ-VAE-2, arXiv 1906.00446; RQ-VAE, 2203.01941).

G codebooks, K codes each, V channels, M vectors a codebook gets from one batch. The statistics follow the released DualToken code,
but that every depth contributes its own residual (there, all depths see the last one).
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from dualtoken.model.config.quantizer import CodebookConfig
from dualtoken.model.quantize.base import Quantized, Quantizer

_COUNT_EPSILON = 1e-5
"""Laplace smoothing of the counts, as in VQ-VAE-2's and RQ-VAE's code."""


ConfigT = TypeVar("ConfigT", bound=CodebookConfig)


class CodebookQuantizer(Quantizer, Generic[ConfigT]):
    """A quantiser with learnt codes: one codebook, (K, V), or one per depth, (D, K, V)."""

    codes: Float[Tensor, "*G K V"]
    counts: Float[Tensor, "*G K"]
    sums: Float[Tensor, "*G K V"]

    def __init__(self, config: ConfigT, *groups: int, width: int) -> None:
        super().__init__()
        shape = (*groups, config.num_codes)
        self.register_buffer("codes", torch.empty(*shape, width))
        self.register_buffer("counts", torch.empty(shape))
        self.register_buffer("sums", torch.empty(*shape, width))
        self.config, self._groups = config, groups[0] if groups else 1
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw normal codes. With restarts on they have no uses, so that the first update takes the codes from its batch."""
        nn.init.normal_(self.codes)
        self.codes.copy_(self._place(self.codes))
        self.sums.copy_(self.codes)
        nn.init.constant_(self.counts, 1 if self.config.restart_below is None else 0)

    @abstractmethod
    def _assigned(self, quantized: Quantized) -> tuple[Int[Tensor, "G M"], Float[Tensor, "G M V"]]:
        """Return each codebook's chosen codes and the vectors that chose them."""

    def _place(self, codes: Float[Tensor, "*G K V"]) -> Float[Tensor, "*G K V"]:
        """Return codes where they may lie."""
        return codes

    @torch.no_grad()
    def update(self, quantized: Quantized | Sequence[Quantized], generator: torch.Generator) -> None:
        """Move the codebooks once, by all vectors of a step; all ranks end with the same codes.

        Micro-batches come in order; what they hold of gradients is not used. The CPU generator draws where unused codes restart
        and must be in the same state on all ranks; ranks must hold equally many tokens. One all-reduce where torch.distributed
        is initialised.
        """
        batches = [
            self._assigned(each) for each in ([quantized] if isinstance(quantized, Quantized) else quantized)
        ]
        # float64, so that sums differ less than float32 shows between one rank or batch and many.
        shape = (self._groups, self.config.num_codes, self.codes.shape[-1])
        counts, sums = (
            self.codes.new_zeros(shape[:2], dtype=torch.float64),
            self.codes.new_zeros(shape, dtype=torch.float64),
        )
        for ids, vectors in batches:
            places = (ids + torch.arange(len(ids), device=ids.device)[:, None] * shape[1]).flatten()
            counts += torch.bincount(places, minlength=counts.numel()).view_as(counts)
            sums.view(-1, shape[2]).index_add_(0, places, vectors.flatten(0, 1).double())
        parts = [counts[..., None], sums]
        if self.config.restart_below is not None:
            parts.append(self._drawn([vectors for _, vectors in batches], generator))
        statistics = torch.cat(parts, dim=2)
        if dist.is_initialized():
            dist.all_reduce(statistics)
        self._move(
            *(
                part.view(*self.codes.shape[:-1], -1).float()
                for part in statistics.split([part.shape[2] for part in parts], dim=2)
            )
        )

    def _move(
        self,
        counts: Float[Tensor, "*G K 1"],
        sums: Float[Tensor, "*G K V"],
        drawn: Float[Tensor, "*G K V"] | None = None,
    ) -> None:
        decay, least = self.config.decay, self.config.restart_below
        self.counts.mul_(decay).add_(counts[..., 0], alpha=1 - decay)
        self.sums.mul_(decay).add_(sums, alpha=1 - decay)
        if least is not None and drawn is not None:
            unused = self.counts < least
            self.sums.copy_(torch.where(unused[..., None], drawn * least, self.sums))
            self.counts.masked_fill_(unused, least)
        total = self.counts.sum(dim=-1, keepdim=True)
        smoothed = total * (self.counts + _COUNT_EPSILON) / (total + self.config.num_codes * _COUNT_EPSILON)
        self.codes.copy_(self._place(self.sums / smoothed[..., None]))

    def _drawn(
        self, batches: Sequence[Float[Tensor, "G _ V"]], generator: torch.Generator
    ) -> Float[Tensor, "G K V"]:
        """Draw one vector per code from all ranks' vectors; a rank fills in its own and leaves zeros for the others'.

        Vectors are numbered by rank, then micro-batch: as one process numbers them that has the ranks' batches one after another.
        """
        ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        mine_in_all, num_codes = sum(vectors.shape[1] for vectors in batches), self.config.num_codes
        everywhere = ranks * mine_in_all
        drawn = self.codes.new_zeros((self._groups, num_codes, self.codes.shape[-1]), dtype=torch.float64)
        for group in range(self._groups):
            # A permutation, not independent draws: as few codes as possible restart at the same place.
            numbers = torch.randperm(max(everywhere, num_codes), generator=generator)[:num_codes] % everywhere
            local = numbers.to(drawn.device) - rank * mine_in_all
            for vectors in batches:
                mine = (local >= 0) & (local < vectors.shape[1])
                drawn[group, mine] = vectors[group, local[mine]].double()
                local = local - vectors.shape[1]
        return drawn
