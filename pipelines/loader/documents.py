"""Samples as documents of a language model: an image and its caption, laid out in packed sequences.

B sequences of T positions, V positions with codes among them, D depths, N documents, S segments. A document
that begins with its image is

    [start] image_start, the image's H * W positions in raster order, image_end, caption [end]

and one that begins with its text has the caption before image_start. Which comes first, and whether the
caption is dropped, follows from the seed and the sample's index, so a resumed run makes the same documents.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dualtoken.pipelines.loader.packing import Pack
from dualtoken.pipelines.loader.permutation import seeded_uniform
from dualtoken.pipelines.loader.plan import LoadPlan
from dualtoken.pipelines.loader.quarantine import Mask
from dualtoken.pipelines.tokens.mapped_shards import Rows

Offsets = np.ndarray[Any, np.dtype[np.int32]]
Tokenize = Callable[[str], ArrayLike]
"""A text tokenizer: from a caption to its ids, without markers."""
CaptionLengths = Callable[[int, Rows], Rows]
"""Function from a dataset's number and some of its rows to the lengths of their captions, in ids."""
_PROBE = "A photo of 2 dogs, un café — 你好."
"""Caption that text tokenizers are told apart by: its ids are part of a plan's identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Markers:
    """Special ids of the text vocabulary that stand around images and documents."""

    image_start: int
    image_end: int
    start: int | None = None
    end: int | None = None
    padding: int = 0


class DocumentOrders(NamedTuple):
    """The form of some samples' documents."""

    image_first: Mask
    """(N,), whether the image comes before the caption."""
    caption_dropped: Mask
    """(N,), whether the caption is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackPlan:
    """Plan of packing: the documents made of a run's samples, and the sequences that they go into."""

    load: LoadPlan
    capacity: int
    """Positions of a sequence."""
    tokenize: Tokenize
    """The text tokenizer."""
    markers: Markers
    pool_size: int = 512
    """Documents that wait for a sequence that they fill."""
    image_first: float = 0.5
    """Share of documents with the image before the text: they teach to understand, the others to generate."""
    caption_dropout: float = 0.0
    """Share of the text-first documents that come without their caption, for classifier-free guidance."""
    lengths: CaptionLengths | None = None
    """Lengths of captions, counted before with `tokenize`, for datasets by their number in `load`.

    With it a process reads and tokenizes the captions of its own sequences only; without, those of the whole
    run.
    """

    def __post_init__(self) -> None:
        _require_share("image_first", self.image_first)
        _require_share("caption_dropout", self.caption_dropout)
        if self.capacity < self.length(0):
            raise ValueError(
                f"capacity={self.capacity}: an image takes {self.length(0)} positions with its markers, "
                "and is never cut"
            )

    @property
    def image_positions(self) -> int:
        """Positions of an image, without markers."""
        height, width, _ = self.load.datasets[0].shape
        return height * width

    def length(self, caption_length: int) -> int:
        """Return the positions of a document with a caption of so many ids."""
        image_markers = 2
        document_markers = (self.markers.start is not None) + (self.markers.end is not None)
        return self.image_positions + image_markers + caption_length + document_markers

    def document_orders(self, samples: Rows) -> DocumentOrders:
        """Return the form of the documents of samples, by their indices in the run."""
        image_first = seeded_uniform(self.load.seed, "image first", samples) < self.image_first
        is_drawn = seeded_uniform(self.load.seed, "caption dropout", samples) < self.caption_dropout
        return DocumentOrders(image_first, caption_dropped=~image_first & is_drawn)

    def identity(self) -> dict[str, Any]:
        """Return what decides which documents share which sequence, as JSON values."""
        probe_ids = np.asarray(self.tokenize(_PROBE), np.int64)
        return {
            **self.load.identity(),
            "capacity": self.capacity,
            "pool_size": self.pool_size,
            "image_first": self.image_first,
            "caption_dropout": self.caption_dropout,
            "markers": asdict(self.markers),
            "tokenize": hashlib.sha256(probe_ids.tobytes()).hexdigest()[:12],
        }


def _require_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{name}={share}: give a share from 0 to 1")


class Layout(NamedTuple):
    """B sequences of T positions, without the images' codes."""

    text: Rows
    """(B, T), ids of text and markers; padding elsewhere, so where an image is, too."""
    visual: Mask
    """(B, T), where an image's positions are."""
    cu_seqlens: Offsets
    """(S + 1,), first position of each segment, and the end, among B * T positions: documents, and the
    padding of each sequence."""
    segments: Rows
    """(S,), index of each segment's sample in the run; -1 for padding."""


def lay_out_sequences(
    plan: PackPlan, packs: Sequence[Pack], captions: Sequence[Rows], image_first: Mask
) -> Layout:
    """Lay out documents in a sequence for each pack.

    `captions`, as ids, and `image_first` are those of the packs' documents one after the other.
    """
    markers = plan.markers
    text = np.full(len(packs) * plan.capacity, markers.padding, np.int64)
    visual = np.zeros(len(text), bool)
    spans = _document_spans(packs, plan.capacity)
    caption_lengths = np.array([len(caption) for caption in captions], np.int64)

    content_starts = spans.starts
    if markers.start is not None:
        text[spans.starts] = markers.start
        content_starts = spans.starts + 1
    if markers.end is not None:
        text[spans.ends - 1] = markers.end

    image_starts = content_starts + np.where(image_first, 0, caption_lengths)
    text[image_starts] = markers.image_start
    text[image_starts + 1 + plan.image_positions] = markers.image_end
    image_positions = image_starts[:, None] + 1 + np.arange(plan.image_positions)
    visual[image_positions.reshape(-1)] = True

    if caption_lengths.sum():
        caption_starts = content_starts + np.where(image_first, plan.image_positions + 2, 0)
        text[_ranges(caption_starts, caption_lengths)] = np.concatenate(captions)

    shape = (len(packs), plan.capacity)
    return Layout(text.reshape(shape), visual.reshape(shape), *_segments(packs, plan.capacity))


class _DocumentSpans(NamedTuple):
    """Positions of documents among those of all sequences, one after the other."""

    starts: Rows
    ends: Rows


def _document_spans(packs: Sequence[Pack], capacity: int) -> _DocumentSpans:
    starts: list[int] = []
    ends: list[int] = []
    for number, pack in enumerate(packs):
        position = number * capacity
        for document in pack:
            starts.append(position)
            position += document.length
            ends.append(position)
    return _DocumentSpans(np.array(starts, np.int64), np.array(ends, np.int64))


def _ranges(starts: Rows, lengths: Rows) -> Rows:
    """Return the numbers of several ranges, one range after the other."""
    begins = np.cumsum(lengths) - lengths
    offsets = np.arange(lengths.sum()) - np.repeat(begins, lengths)
    return np.repeat(starts, lengths) + offsets


def _segments(packs: Sequence[Pack], capacity: int) -> tuple[Offsets, Rows]:
    """Return `cu_seqlens` and `segments` of a layout."""
    lengths = [0]
    samples: list[int] = []
    for pack in packs:
        free = capacity
        for document in pack:
            lengths.append(document.length)
            samples.append(document.sample)
            free -= document.length
        if free:
            lengths.append(free)
            samples.append(-1)
    return np.cumsum(lengths, dtype=np.int32), np.array(samples, np.int64)
