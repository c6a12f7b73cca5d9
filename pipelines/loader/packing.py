"""Packs documents into sequences of one length: best fit from a pool, nothing cut, nothing lost, resumed exactly.

Which documents share a sequence is a pure function of the documents' lengths in their order, so every rank finds the same
sequences and reads the codes of its own only. A pool of waiting documents makes the fit: the oldest one always goes, so that none
waits for ever, and with it those that fill the sequence best of all choices from the pool, the oldest of equally good ones.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Document(NamedTuple):
    """Something that goes into a sequence whole."""

    number: int
    """Of the sample in its run."""
    length: int
    """Positions that it takes."""


Pack = tuple[Document, ...]
"""The documents of one sequence, in order."""


@dataclass(slots=True)
class Packer:
    """Fills sequences of `capacity` positions from a pool of `pool_size` documents."""

    capacity: int
    pool_size: int = 512
    waiting: list[Document] = field(default_factory=list)
    """In order of arrival: with the number of the next document, all that a resumed run needs."""

    def __post_init__(self) -> None:
        if self.capacity < 1 or self.pool_size < 1:
            raise ValueError(f"capacity={self.capacity}, pool_size={self.pool_size}: give at least 1 each")

    def packs(self, documents: Iterable[Document]) -> Iterator[Pack]:
        """Yield full sequences as documents come, and the rest when they end.

        Raises ValueError for a document that no sequence can hold: images are never cut.
        """
        for document in documents:
            if document.length > self.capacity:
                raise ValueError(
                    f"sample {document.number} takes {document.length} positions, a sequence has {self.capacity}: "
                    "raise the sequence length, or shorten captions"
                )
            self.waiting.append(document)
            if len(self.waiting) >= self.pool_size:
                yield self._fill()
        while self.waiting:
            yield self._fill()

    def _fill(self) -> Pack:
        first, room = self.waiting[0], self.capacity - self.waiting[0].length
        # Bit n of the last word says whether some of the documents so far take n positions together (subset sums).
        reached, within = [1], (1 << (room + 1)) - 1
        for document in self.waiting[1:]:
            reached.append((reached[-1] | reached[-1] << document.length) & within)
            if reached[-1] >> room:
                break  # full already: later documents would be left out
        left, taken = reached[-1].bit_length() - 1, {0}
        # From the newest back, leaving out whatever can be left out: the oldest go first.
        for place in range(len(reached) - 1, 0, -1):
            if not reached[place - 1] >> left & 1:
                taken.add(place)
                left -= self.waiting[place].length
        chosen = (first, *(self.waiting[place] for place in sorted(taken - {0})))
        self.waiting = [document for place, document in enumerate(self.waiting) if place not in taken]
        return chosen


def fill(packs: Sequence[Pack], capacity: int) -> float:
    """Return the share of positions that documents take."""
    return (
        sum(document.length for pack in packs for document in pack) / (capacity * len(packs))
        if packs
        else 0.0
    )
