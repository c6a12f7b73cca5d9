"""Mixture of sources: which source each sample comes from, as a pure function of the sample's index.

Within a phase, a source of weight w has its j-th sample at time (j + 1/2) / w, and samples come in order of time.
Shares are never more than one sample per source away from the weights, at any point and for any weights. Blocks of
`BLOCK` samples are then shuffled by the seed, so that no pattern is left to learn. How many samples of a source lie
before a block follows from the block's number alone, by arithmetic on whole numbers, so a run resumes from a count.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

BLOCK = 4096
"""Samples that are shuffled among themselves; phases of a schedule begin at multiples of it."""
_MAX_DENOMINATOR = 10**6
"""Precision of weights: they are rounded to fractions of at most this denominator.

They are first divided by the largest weight where the smallest is under 1 / `_MAX_DENOMINATOR`.
"""

Indices = np.ndarray[Any, np.dtype[np.int64]]


class Phase(NamedTuple):
    """A part of a run in which the weights do not change."""

    first_sample: int
    weights: tuple[float, ...]
    """Weight of each source; 0 leaves a source out."""


class SourceAssignment(NamedTuple):
    """Where samples come from."""

    sources: Indices
    """Number of each sample's source."""
    indices: Indices
    """Index of each sample within its source, counted on over epochs."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """A sequence of samples drawn from several sources."""

    phases: tuple[Phase, ...]
    seed: int = 0
    num_samples: int | None = None
    """Length of the sequence; None where it is endless."""

    def __post_init__(self) -> None:
        for phase in self.phases:
            _require_usable_weights(phase)

    def assign(self, samples: Indices) -> SourceAssignment:
        """Return where the samples of these indices come from."""
        if len(self.phases[0].weights) == 1:
            return SourceAssignment(np.zeros_like(samples), samples.copy())

        sources = np.empty_like(samples)
        indices = np.empty_like(samples)
        blocks, offsets = np.divmod(samples, BLOCK)
        for block, positions in _group_by_block(blocks):
            assignment = _block_assignment(self, block)
            offsets_in_block = offsets[positions]
            sources[positions] = assignment.sources[offsets_in_block]
            indices[positions] = assignment.indices[offsets_in_block]
        return SourceAssignment(sources, indices)

    def prefix_counts(self, num_samples: int) -> list[int]:
        """Return how many of the first samples each source gives; `num_samples` must be at the end of a block."""
        assert num_samples % BLOCK == 0 or num_samples == self.num_samples, num_samples
        totals = [0] * len(self.phases[0].weights)
        for phase, end in self._phases_with_ends(num_samples):
            samples_in_phase = min(num_samples, end) - phase.first_sample
            if samples_in_phase <= 0:
                continue
            counts = _earliest_counts(_whole_weights(phase.weights), samples_in_phase)
            for source, count in enumerate(counts):
                totals[source] += count
        return totals

    def _phases_with_ends(self, run_end: int) -> Iterator[tuple[Phase, int]]:
        """Yield each phase with the first sample of the next one, or the end of the run."""
        later_starts = [phase.first_sample for phase in self.phases[1:]]
        yield from zip(self.phases, [*later_starts, run_end], strict=True)


def scheduled_mixture(schedule: Mapping[int, Sequence[float]], seed: int = 0) -> Mixture:
    """Build an endless mixture from weights by first sample; later starts move up to the next multiple of `BLOCK`.

    Raises ValueError where no weights begin at 0, or lengths differ.
    """
    if 0 not in schedule:
        raise ValueError(
            f"the schedule begins at sample {min(schedule, default=None)}: give the weights from 0 on"
        )
    num_sources = len(schedule[0])
    phases: list[Phase] = []
    for first_sample, weights in sorted(schedule.items(), key=lambda item: item[0]):
        if len(weights) != num_sources:
            raise ValueError(
                "the schedule has weights for different numbers of sources: give one weight per source each time"
            )
        first_block = -(-first_sample // BLOCK)
        phases.append(Phase(first_block * BLOCK, tuple(weights)))
    return Mixture(tuple(phases), seed)


def mixture_of_epochs(samples_per_source: Sequence[int], seed: int = 0) -> Mixture:
    """Mix sources so that each gives exactly so many samples, evenly over the run."""
    return Mixture((Phase(0, tuple(samples_per_source)),), seed, sum(samples_per_source))


def _require_usable_weights(phase: Phase) -> None:
    weights = phase.weights
    if min(weights) < 0 or not any(weights):
        raise ValueError(
            f"weights={list(weights)} from sample {phase.first_sample}: give weights of at least 0, "
            "one of them more"
        )
    for weight, whole_weight in zip(weights, _whole_weights(weights), strict=True):
        if weight and not whole_weight:
            raise ValueError(
                f"weights={list(weights)} from sample {phase.first_sample}: {weight} is too small a share "
                f"beside {max(weights)}, under half of 1/{_MAX_DENOMINATOR}: raise it, or give 0 to leave its "
                "source out"
            )


def _group_by_block(blocks: Indices) -> Iterator[tuple[int, Indices]]:
    """Yield each block with the positions at which it stands in `blocks`."""
    if not len(blocks):
        return
    order = np.argsort(blocks, kind="stable")
    group_starts = np.flatnonzero(np.diff(blocks[order])) + 1
    for positions in np.split(order, group_starts):
        yield int(blocks[positions[0]]), positions


@lru_cache(maxsize=256)
def _whole_weights(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Return whole numbers in the proportions of the weights."""
    smallest = min(weight for weight in weights if weight)
    is_too_fine = smallest * _MAX_DENOMINATOR < 1
    unit = Fraction(max(weights)) if is_too_fine else Fraction(1)

    fractions = [(Fraction(weight) / unit).limit_denominator(_MAX_DENOMINATOR) for weight in weights]
    common_denominator = np.lcm.reduce([fraction.denominator for fraction in fractions], dtype=object)
    return tuple(int(fraction * common_denominator) for fraction in fractions)


def _earliest_counts(weights: tuple[int, ...], num_samples: int) -> list[int]:
    """Return how many of a phase's first samples come from each source."""
    total_weight = sum(weights)
    # First all samples before the time at which the sources' shares add up to `num_early`, by a formula. Rounding
    # gives at most half a sample more per source, so these are never too many.
    num_early = max(0, num_samples - len(weights))
    counts: list[int] = []
    for weight in weights:
        early = -((total_weight - 2 * weight * num_early) // (2 * total_weight))
        counts.append(max(0, early))

    # The few that are left come one by one, in order of time.
    queue: list[tuple[Fraction, int]] = []
    for source, weight in enumerate(weights):
        if weight:
            queue.append((_sample_time(counts[source], weight), source))
    heapq.heapify(queue)
    for _ in range(num_samples - sum(counts)):
        _, source = queue[0]
        counts[source] += 1
        heapq.heapreplace(queue, (_sample_time(counts[source], weights[source]), source))
    return counts


def _sample_time(index: int, weight: int) -> Fraction:
    """Return twice the time of a source's sample, which orders samples alike."""
    return Fraction(2 * index + 1, weight)


@lru_cache(maxsize=16)
def _block_assignment(mixture: Mixture, block: int) -> SourceAssignment:
    """Return where the samples of a block come from, in the block's shuffled order."""
    first = BLOCK * block
    end = first + BLOCK
    if mixture.num_samples is not None:
        end = min(end, mixture.num_samples)
    counts_before = mixture.prefix_counts(first)
    counts_after = mixture.prefix_counts(end)

    in_order = np.repeat(np.arange(len(counts_before)), np.subtract(counts_after, counts_before))
    generator = np.random.Generator(np.random.Philox(key=[mixture.seed, block]))
    sources = in_order[generator.permutation(end - first)]

    indices = np.empty(end - first, np.int64)
    for source, count_before in enumerate(counts_before):
        of_source = sources == source
        indices[of_source] = count_before + np.arange(of_source.sum())
    return SourceAssignment(sources, indices)
