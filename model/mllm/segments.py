"""What is isolated among the positions of a batch: documents, and turns that share their image.

B sequences of T positions, D documents, M turns, S segments, K positions that are read.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor


class Segments(NamedTuple):
    """Bounds of documents, of parts of documents, and of padding, among B * T positions.

    A segment sees itself and, where it has a prefix, the whole of that other segment before it: questions
    about one image share its positions, and each is as if it were asked alone.
    """

    cu_seqlens: Int[Tensor, "S_and_1"]
    """First position of each segment, and the end; int32."""
    longest: int
    """Positions of the longest segment, its prefix included."""
    prefixes: Int[Tensor, "S"] | None = None
    """Number of each segment's prefix, which has none itself; -1 for none. None where no segment has one."""

    def to(self, device: torch.device) -> "Segments":
        """Return the segments with their tensors on a device."""
        prefixes = None if self.prefixes is None else self.prefixes.to(device, non_blocking=True)
        return Segments(self.cu_seqlens.to(device, non_blocking=True), self.longest, prefixes)

    def lengths(self) -> Int[Tensor, "S"]:
        """Return the positions of each segment, without its prefix."""
        return self.cu_seqlens.diff()

    def prefix_lengths(self) -> Int[Tensor, "S"]:
        """Return the positions of each segment's prefix, 0 where it has none."""
        lengths = self.lengths()
        if self.prefixes is None:
            return torch.zeros_like(lengths)
        return torch.where(self.prefixes < 0, 0, lengths[self.prefixes.clamp(min=0).long()])

    def between(self, begin: int, end: int) -> "Segments":
        """Return the segments between two positions, which are bounds of documents."""
        is_bound = (self.cu_seqlens >= begin) & (self.cu_seqlens <= end)
        bounds = self.cu_seqlens[is_bound] - begin
        if self.prefixes is None:
            return Segments(bounds, self.longest)
        first = int(is_bound.nonzero()[0])
        of_part = self.prefixes[first : first + len(bounds) - 1]
        if not bool((of_part >= 0).any()):
            return Segments(bounds, self.longest)
        return Segments(bounds, self.longest, torch.where(of_part < 0, of_part, of_part - first))

    def places(self) -> Int[Tensor, "B_times_T"]:
        """Return the place of each position in its own document: after its prefix, 0 the first."""
        lengths = self.lengths().long()
        total = int(self.cu_seqlens[-1])
        origins = self.cu_seqlens[:-1].long() - self.prefix_lengths().long()
        of_positions = origins.repeat_interleave(lengths, output_size=total)
        return torch.arange(total, device=lengths.device) - of_positions


def separate_turns(cu_seqlens: Int[Tensor, "D_and_1"], turns: Int[Tensor, "M"]) -> Segments:
    """Return the segments of documents whose turns see the image before them and not each other.

    `turns` are the first positions of the turns; the first one of a document ends what they all see. What
    stands after the last turn, such as the end of the document, belongs to it.
    """
    if not len(turns):
        return Segments(cu_seqlens, int(cu_seqlens.diff().max()))
    begins = cu_seqlens.long()
    assert not bool(torch.isin(turns, begins).any()), "a turn stands after its image"
    bounds = torch.cat([begins, turns]).unique()
    firsts = bounds[:-1]
    documents = torch.searchsorted(begins, firsts, right=True) - 1
    first_segments = torch.searchsorted(firsts, begins[documents])
    prefixes = torch.where(torch.isin(firsts, turns), first_segments, -1)
    segments = Segments(bounds.int(), 0, prefixes)
    longest = int((segments.lengths() + segments.prefix_lengths()).max())
    return segments._replace(longest=longest)


def key_positions(segments: Segments) -> tuple[Int[Tensor, "K"], Int[Tensor, "S_and_1"]]:
    """Return the positions that each segment reads, its prefix's and its own, and the bounds among them."""
    assert segments.prefixes is not None, "segments without prefixes read their own positions"
    starts = segments.cu_seqlens[:-1].long()
    prefix_lengths = segments.prefix_lengths().long()
    prefix_starts = starts[segments.prefixes.clamp(min=0).long()]
    lengths = segments.lengths().long() + prefix_lengths
    bounds = F.pad(lengths.cumsum(0), (1, 0))
    total = int(bounds[-1])

    def of_keys(by_segment: Int[Tensor, "S"]) -> Int[Tensor, "K"]:
        return by_segment.repeat_interleave(lengths, output_size=total)

    # The place of each position that is read among those of its segment.
    places = torch.arange(total, device=starts.device) - of_keys(bounds[:-1])
    after_prefix = places - of_keys(prefix_lengths)
    own = of_keys(starts) + after_prefix
    return torch.where(after_prefix < 0, of_keys(prefix_starts) + places, own), bounds.int()
