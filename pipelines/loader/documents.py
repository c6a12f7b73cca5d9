"""Samples as documents of a language model: an image and its caption, in either order, laid out in packed sequences.

B sequences of T positions, V positions with codes among them, D depths, N documents, S segments. A document that begins with its
image is

    [start] image_start, the image's H * W positions in raster order, image_end, caption [end]

and one that begins with its text has the caption before image_start. Which order, and whether the caption is dropped, follows
from the seed and the sample's number, so a resumed run makes the same documents.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dualtoken.pipelines.loader.load_plan import Flags, LoadPlan
from dualtoken.pipelines.loader.packing import Pack
from dualtoken.pipelines.loader.permutation import chances
from dualtoken.pipelines.tokens.mapped_shards import Rows

Tokenize = Callable[[str], ArrayLike]
Lengths = Callable[[int, Rows], Rows]
_PROBE = "A photo of 2 dogs, un café — 你好."
"""Captions that tokenizers of text tell apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Markers:
    """Ids, of the text vocabulary, of what stands around images and documents."""

    image_start: int
    image_end: int
    start: int | None = None
    end: int | None = None
    padding: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PackPlan:
    """Which documents are made of a run's samples, and the sequences that they go into."""

    load: LoadPlan
    capacity: int
    """Positions of a sequence."""
    tokenize: Tokenize
    """The text tokenizer: a caption's ids, without markers."""
    markers: Markers
    pool_size: int = 512
    """Documents that wait for a sequence that they fill."""
    image_first: float = 0.5
    """Share of documents with the image before the text, to learn to understand; the others learn to generate."""
    caption_dropout: float = 0.0
    """Share of the text-first documents that come without their caption, for classifier-free guidance."""
    lengths: Lengths | None = None
    """Numbers of ids that `tokenize` makes of the captions of some rows of a dataset, which is given by its place in `load`. With it a
    process reads and tokenizes the captions of its own sequences only; without, those of the whole run."""

    def __post_init__(self) -> None:
        for name in ("image_first", "caption_dropout"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ValueError(f"{name}={share}: give a share from 0 to 1")
        if self.capacity < self.length(0):
            raise ValueError(
                f"capacity={self.capacity}: an image takes {self.length(0)} positions with its markers, and is never cut"
            )

    @property
    def image_positions(self) -> int:
        """Positions of an image, without markers."""
        height, width, _ = self.load.datasets[0].shape
        return height * width

    def length(self, text: int) -> int:
        """Return the positions of a document with a caption of `text` ids."""
        return (
            self.image_positions
            + 2
            + text
            + (self.markers.start is not None)
            + (self.markers.end is not None)
        )

    def orders(self, numbers: Rows) -> tuple[Flags, Flags]:
        """Return which samples come image first, and which come without their caption."""
        first = chances(self.load.seed, "image first", numbers) < self.image_first
        return first, ~first & (chances(self.load.seed, "caption dropout", numbers) < self.caption_dropout)

    def identity(self) -> dict[str, Any]:
        """Return what decides which documents share which sequence."""
        ids = np.asarray(self.tokenize(_PROBE), np.int64)
        own = {
            name: getattr(self, name) for name in ("capacity", "pool_size", "image_first", "caption_dropout")
        }
        return {
            **self.load.identity(),
            **own,
            "markers": asdict(self.markers),
            "tokenize": hashlib.sha256(ids.tobytes()).hexdigest()[:12],
        }


class Layout(NamedTuple):
    """Where everything lies in B sequences of T positions."""

    text: Rows
    """(B, T), ids of text and markers; padding where an image is, too."""
    visual: Flags
    """(B, T), where an image's positions are."""
    cu_seqlens: np.ndarray[Any, np.dtype[np.int32]]
    """(S + 1,) where segments begin, and the end, in B * T positions one after the other: documents, and each sequence's padding."""
    segments: Rows
    """(S,) the number of each segment's sample; -1 for padding."""


def lay_out_sequences(
    plan: PackPlan, packs: Sequence[Pack], texts: Sequence[Rows], image_first: Flags
) -> Layout:
    """Lay out documents, their texts and orders one after the other; a sequence for each pack."""
    lengths = np.array([document.length for pack in packs for document in pack], np.int64)
    begins = np.concatenate(
        [_begins(number * plan.capacity, pack) for number, pack in enumerate(packs)]
        or [np.zeros(0, np.int64)]
    )
    words = np.array([len(text) for text in texts], np.int64)
    flat = np.full(len(packs) * plan.capacity, plan.markers.padding, np.int64)
    visual = np.zeros(len(flat), bool)
    if plan.markers.start is not None:
        flat[begins] = plan.markers.start
    if plan.markers.end is not None:
        flat[begins + lengths - 1] = plan.markers.end
    inner = begins + (plan.markers.start is not None)
    image = inner + np.where(image_first, 0, words)
    flat[image] = plan.markers.image_start
    flat[image + plan.image_positions + 1] = plan.markers.image_end
    visual[(image[:, None] + 1 + np.arange(plan.image_positions)).reshape(-1)] = True
    text = inner + np.where(image_first, plan.image_positions + 2, 0)
    if words.sum():
        within = np.arange(words.sum()) - np.repeat(np.cumsum(words) - words, words)
        flat[np.repeat(text, words) + within] = np.concatenate(texts)
    shape = (len(packs), plan.capacity)
    return Layout(flat.reshape(shape), visual.reshape(shape), *_segments(packs, plan.capacity))


def _begins(first: int, pack: Pack) -> Rows:
    return first + np.cumsum([0, *(document.length for document in pack)], dtype=np.int64)[:-1]


def _segments(packs: Sequence[Pack], capacity: int) -> tuple[np.ndarray[Any, np.dtype[np.int32]], Rows]:
    lengths, numbers = [0], []
    for pack in packs:
        lengths += [document.length for document in pack]
        numbers += [document.number for document in pack]
        if padding := capacity - sum(document.length for document in pack):
            lengths.append(padding)
            numbers.append(-1)
    return np.cumsum(lengths, dtype=np.int32), np.array(numbers, np.int64)
