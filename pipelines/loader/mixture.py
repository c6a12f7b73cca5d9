"""Which source each sample of a mixture comes from: a pure function of the sample's number, so a run resumes from a count.

Within a phase, a source of weight w has its j-th sample at time (j + 1/2) / w, and samples come in order of time: shares are
never more than one sample per source away from the weights, at any point and for any weights. Blocks of `BLOCK` samples are then
shuffled by the seed, so that no pattern is left to learn. How many samples of a source lie before a block follows from its
number alone, by arithmetic on whole numbers.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

BLOCK = 4096
"""Samples that are shuffled among themselves; phases of a schedule begin at multiples of it."""
_FINEST = 10**6
"""Weights are taken as fractions of at most this denominator, of the largest one where any is smaller than the least of these."""

Numbers = np.ndarray[Any, np.dtype[np.int64]]


class Phase(NamedTuple):
    """A part of a run in which the weights do not change."""

    first: int
    """Number of its first sample."""
    weights: tuple[float, ...]
    """By source; 0 leaves a source out."""


class Chosen(NamedTuple):
    """Where samples come from."""

    source: Numbers
    number: Numbers
    """Of the sample within its source, counted on over epochs."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """A sequence over sources, endless or of so many samples."""

    phases: tuple[Phase, ...]
    seed: int = 0
    samples: int | None = None

    def __post_init__(self) -> None:
        for one in self.phases:
            if min(one.weights) < 0 or not any(one.weights):
                raise ValueError(
                    f"weights={list(one.weights)} from sample {one.first}: give weights of at least 0, one of them more"
                )
            for weight, whole in zip(one.weights, _whole_weights(one.weights), strict=True):
                if weight and not whole:
                    raise ValueError(
                        f"weights={list(one.weights)} from sample {one.first}: {weight} is too small a share beside {max(one.weights)}, "
                        f"under half of 1/{_FINEST}: raise it, or give 0 to leave its source out"
                    )

    def choose(self, numbers: Numbers) -> Chosen:
        """Return where the samples of these numbers come from."""
        if len(self.phases[0].weights) == 1:
            return Chosen(np.zeros_like(numbers), numbers.copy())
        source, number = np.empty_like(numbers), np.empty_like(numbers)
        blocks, places = np.divmod(numbers, BLOCK)
        order = np.argsort(blocks, kind="stable")
        for here in np.split(order, np.flatnonzero(np.diff(blocks[order])) + 1) if len(order) else ():
            whole = _block(self, int(blocks[here[0]]))
            source[here], number[here] = (column[places[here]] for column in whole)
        return Chosen(source, number)

    def counts(self, samples: int) -> list[int]:
        """Return how many of the first `samples` samples each source gives, at the end of a block."""
        assert samples % BLOCK == 0 or samples == self.samples, samples
        total = [0] * len(self.phases[0].weights)
        for one, end in self._spans():
            if one.first < samples:
                part = _before(_whole_weights(one.weights), min(samples, end or samples) - one.first)
                total = [a + b for a, b in zip(total, part, strict=True)]
        return total

    def _spans(self) -> list[tuple[Phase, int | None]]:
        return [*zip(self.phases, [later.first for later in self.phases[1:]] + [None], strict=True)]


def mixture(schedule: Mapping[int, Sequence[float]], seed: int = 0) -> Mixture:
    """Build a mixture from weights by first sample; later starts are moved up to the next multiple of `BLOCK`.

    Raises ValueError where no weights begin at 0, or lengths differ.
    """
    if 0 not in schedule:
        raise ValueError(
            f"the schedule begins at sample {min(schedule, default=None)}: give the weights from 0 on"
        )
    if len({len(weights) for weights in schedule.values()}) > 1:
        raise ValueError(
            "the schedule has weights for different numbers of sources: give one weight per source each time"
        )
    return Mixture(
        tuple(Phase(-(-first // BLOCK) * BLOCK, tuple(schedule[first])) for first in sorted(schedule)), seed
    )


def whole_epochs(rows: Sequence[int], seed: int = 0) -> Mixture:
    """Mix sources so that each gives exactly so many samples, evenly over the run."""
    return Mixture((Phase(0, tuple(rows)),), seed, sum(rows))


@lru_cache(maxsize=256)
def _whole_weights(weights: tuple[float, ...]) -> tuple[int, ...]:
    largest = max(weights) if min(weight for weight in weights if weight) * _FINEST < 1 else 1
    parts = [(Fraction(weight) / Fraction(largest)).limit_denominator(_FINEST) for weight in weights]
    common = np.lcm.reduce([part.denominator for part in parts], dtype=object)
    return tuple(int(part * common) for part in parts)


def _before(weights: tuple[int, ...], samples: int) -> list[int]:
    """Return how many of a phase's first samples come from each source."""
    total = sum(weights)
    # All that lie before the time at which shares add up to `early` samples: by rounding, at most half of one more per source.
    early = max(0, samples - len(weights))
    counts = [max(0, -((total - 2 * weight * early) // (2 * total))) for weight in weights]
    queue = [(Fraction(2 * counts[i] + 1, weight), i) for i, weight in enumerate(weights) if weight]
    heapq.heapify(queue)
    for _ in range(samples - sum(counts)):
        _, i = queue[0]
        counts[i] += 1
        heapq.heapreplace(queue, (Fraction(2 * counts[i] + 1, weights[i]), i))
    return counts


@lru_cache(maxsize=16)
def _block(mixture: Mixture, block: int) -> tuple[Numbers, Numbers]:
    first, end = BLOCK * block, min(BLOCK * (block + 1), mixture.samples or BLOCK * (block + 1))
    before, after = mixture.counts(first), mixture.counts(end)
    sources = np.repeat(np.arange(len(before)), np.subtract(after, before))
    order = np.random.Generator(np.random.Philox(key=[mixture.seed, block])).permutation(end - first)
    shuffled = sources[order]
    numbers = np.empty(end - first, np.int64)
    for source, start in enumerate(before):
        mine = shuffled == source
        numbers[mine] = start + np.arange(mine.sum())
    return shuffled, numbers
