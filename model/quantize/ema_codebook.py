"""Codebooks moved by exponential moving averages (EMA) of the vectors that chose their codes.

Sources: VQ-VAE-2, arXiv 1906.00446; RQ-VAE, arXiv 2203.01941. G codebooks, K codes each, V channels, M
vectors that a codebook gets from one batch. The statistics follow the released DualToken code, except that
every depth contributes its own residual (there, all depths contribute the last one).
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from dualtoken.model.config.quantizer import CodebookConfig
from dualtoken.model.quantize.base import Quantized, Quantizer

_COUNT_EPSILON = 1e-5
"""Laplace smoothing of the counts, as in VQ-VAE-2's and RQ-VAE's code."""


ConfigT = TypeVar("ConfigT", bound=CodebookConfig)


class Assignments(NamedTuple):
    """The codes that each codebook's vectors of one batch were assigned to."""

    ids: Int[Tensor, "G M"]  # chosen code
    vectors: Float[Tensor, "G M V"]  # the vector that chose it


class CodebookQuantizer(Quantizer, Generic[ConfigT]):
    """A quantiser with codes learnt by EMA: one codebook, (K, V), or one per depth, (D, K, V)."""

    codes: Float[Tensor, "*G K V"]
    counts: Float[Tensor, "*G K"]  # EMA of a code's uses per step
    sums: Float[Tensor, "*G K V"]  # EMA of the sum of the vectors that chose a code

    def __init__(self, config: ConfigT, num_codebooks: int | None, *, width: int) -> None:
        """Make `num_codebooks` codebooks; None makes one, with buffers that lack the axis G."""
        super().__init__()
        groups = () if num_codebooks is None else (num_codebooks,)
        shape = (*groups, config.num_codes)
        self.register_buffer("codes", torch.empty(*shape, width))
        self.register_buffer("counts", torch.empty(shape))
        self.register_buffer("sums", torch.empty(*shape, width))
        self.config = config
        self._num_codebooks = math.prod(groups)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw normal codes.

        With restarts on, counts are 0, so that the first update takes the codes from its batch.
        """
        nn.init.normal_(self.codes)
        self.codes.copy_(self._project(self.codes))
        self.sums.copy_(self.codes)
        nn.init.constant_(self.counts, 1 if self.config.restart_below is None else 0)

    @abstractmethod
    def _assignments(self, quantized: Quantized) -> Assignments:
        """Return each codebook's chosen codes and the vectors that chose them."""

    def _project(self, codes: Float[Tensor, "*G K V"]) -> Float[Tensor, "*G K V"]:
        """Project codes onto the set that they must lie in, such as the unit sphere; here, all of space."""
        return codes

    @torch.no_grad()
    def update(self, quantized: Quantized | Sequence[Quantized], generator: torch.Generator) -> None:
        """Move the codebooks once, by all vectors of a step; all ranks end with the same codes.

        Micro-batches come in order; their gradients are not used. The CPU generator draws a seed of where
        unused codes restart, and must be in the same state on all ranks. Ranks must hold equally many tokens.
        One all-reduce where torch.distributed is initialised.
        """
        if isinstance(quantized, Quantized):
            quantized = [quantized]
        batches = [self._assignments(micro_batch) for micro_batch in quantized]
        counts, sums = self._summed(batches)
        statistics = [counts[..., None], sums]
        # Drawn in any case, so that what the generator draws next does not depend on the codes.
        seed = int(torch.randint(2**62, (), generator=generator))
        if self._may_restart():
            vectors = [batch.vectors for batch in batches]
            statistics.append(self._draw_restarts(vectors, seed))
        # Side by side in one tensor, so that one all-reduce serves all.
        joined = torch.cat(statistics, dim=2)
        if dist.is_initialized():
            dist.all_reduce(joined)
        parts = joined.split([part.shape[2] for part in statistics], dim=2)
        self._move(*[part.view(*self.codes.shape[:-1], -1).float() for part in parts])

    def _summed(self, batches: Sequence[Assignments]) -> tuple[Float[Tensor, "G K"], Float[Tensor, "G K V"]]:
        """Return each code's number of vectors and their sum, over this rank's batches."""
        # float64, so that sums differ less than float32 shows between one rank or batch and many.
        num_codes = self.config.num_codes
        width = self.codes.shape[-1]
        counts = self.codes.new_zeros((self._num_codebooks, num_codes), dtype=torch.float64)
        sums = self.codes.new_zeros((self._num_codebooks, num_codes, width), dtype=torch.float64)
        for ids, vectors in batches:
            # Codes are numbered through all codebooks, so that one call adds up all of them.
            first_ids = torch.arange(len(ids), device=ids.device)[:, None] * num_codes
            numbers = (ids + first_ids).flatten()
            # Not `bincount`, for which a GPU's caller waits.
            counts.view(-1).index_add_(0, numbers, counts.new_ones(()).expand(len(numbers)))
            sums.view(-1, width).index_add_(0, numbers, vectors.flatten(0, 1).double())
        return counts, sums

    def _move(
        self,
        counts: Float[Tensor, "*G K 1"],
        sums: Float[Tensor, "*G K V"],
        restarts: Float[Tensor, "*G K V"] | None = None,
    ) -> None:
        """Take a step of the moving averages, restart unused codes, and set codes to their averages."""
        decay = self.config.decay
        self.counts.mul_(decay).add_(counts[..., 0], alpha=1 - decay)
        self.sums.mul_(decay).add_(sums, alpha=1 - decay)
        restart_below = self.config.restart_below
        if restart_below is not None and restarts is not None:
            unused = self.counts < restart_below
            self.sums.copy_(torch.where(unused[..., None], restarts * restart_below, self.sums))
            self.counts.masked_fill_(unused, restart_below)

        total = self.counts.sum(dim=-1, keepdim=True)
        smoothed = total * (self.counts + _COUNT_EPSILON) / (total + self.config.num_codes * _COUNT_EPSILON)
        self.codes.copy_(self._project(self.sums / smoothed[..., None]))

    def _may_restart(self) -> bool:
        """Tell whether a code may be unused after this step, however few vectors choose it.

        All ranks find the same, since their counts are equal.
        """
        restart_below = self.config.restart_below
        if restart_below is None:
            return False
        return bool((self.counts * self.config.decay < restart_below).any())

    def _draw_restarts(self, batches: Sequence[Float[Tensor, "G _ V"]], seed: int) -> Float[Tensor, "G K V"]:
        """Draw one vector per code from all ranks' vectors.

        A rank fills in its own vectors and leaves zeros for the others', so that an all-reduce joins them.
        Vectors are numbered by rank, then micro-batch: the numbers that one process would give them that has
        the ranks' batches one after another. So several ranks draw what one would.
        """
        rank = 0
        num_ranks = 1
        if dist.is_initialized():
            rank = dist.get_rank()
            num_ranks = dist.get_world_size()
        num_codes = self.config.num_codes
        num_on_rank = sum(vectors.shape[1] for vectors in batches)
        num_vectors = num_ranks * num_on_rank
        shape = (self._num_codebooks, num_codes, self.codes.shape[-1])
        drawn = self.codes.new_zeros(shape, dtype=torch.float64)
        for codebook in range(self._num_codebooks):
            numbers = _distinct_numbers(num_codes, num_vectors, [seed, codebook])
            local = torch.from_numpy(numbers).to(drawn.device) - rank * num_on_rank
            for vectors in batches:
                # By number, since a selection by a mask makes a GPU's caller wait.
                last = vectors.shape[1] - 1
                in_batch = (local >= 0) & (local <= last)
                found = vectors[codebook, local.clamp(0, last)].double()
                drawn[codebook] += torch.where(in_batch[:, None], found, 0.0)
                local = local - vectors.shape[1]
        return drawn


def _distinct_numbers(count: int, total: int, seed: list[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Draw `count` numbers in [0, total); as few of them as possible are the same.

    Of many, they are drawn without a permutation of them all: Floyd's algorithm, Comm. ACM 30 (1987), p. 754.
    """
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    return generator.choice(max(total, count), count, replace=False) % total
