"""Plan of packing: which documents of a language model a run's samples become.

N documents. The kinds of documents, and how each is laid out, stand in `document_kinds.py`. Which kind a
sample has, whether its caption is dropped, and which of its turns are asked follow from the seed and the
sample's index, so a resumed run makes the same documents.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.loader.document_kinds import (
    ANSWER,
    DESCRIBE,
    DRAW,
    KINDS,
    TEXT,
    DocumentKind,
    Kinds,
)
from dualtoken.pipelines.loader.permutation import seeded_uniform
from dualtoken.pipelines.loader.plan import LoadPlan
from dualtoken.pipelines.loader.quarantine import Mask
from dualtoken.pipelines.tokens.mapped_shards import Rows

Tokenize = Callable[[str], ArrayLike]
"""A text tokenizer: from a caption, a question or an answer to its ids, without markers."""
CaptionLengths = Callable[[int, Rows], Rows]
"""Function from a dataset's number and some of its rows to the lengths of their captions, in ids."""
_PROBE = "A photo of 2 dogs, un café — 你好."
"""Caption that text tokenizers are told apart by: its ids are part of a plan's identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Markers:
    """Special ids of the text vocabulary that stand around images, turns and documents."""

    image_start: int
    image_end: int
    start: int | None = None
    end: int | None = None
    padding: int = 0
    user: tuple[int, ...] = ()
    """Ids before a user's turn, such as a question."""
    assistant: tuple[int, ...] = ()
    """Ids before an assistant's turn: an answer, or the description of an image."""
    turn_end: tuple[int, ...] = ()
    """Ids after an assistant's turn."""


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
    """Share of documents that describe an image, where `documents` is None; the others draw it."""
    caption_dropout: float = 0.0
    """Share of the documents that draw which come without their caption, for classifier-free guidance."""
    lengths: CaptionLengths | None = None
    """Lengths of captions, counted before with `tokenize`, for datasets by their number in `load`.

    With it a process reads and tokenizes the captions of its own sequences only; without, those of the whole
    run.
    """
    documents: Mapping[DocumentKind, float] | None = None
    """Shares of documents by kind, in any unit; kinds that it does not name have none."""
    questions_column: str | None = None
    """Column of `meta/` with the turns that are asked in `answer` documents, as JSON (`turns.py`).

    A sample without turns becomes a `describe` document.
    """
    max_turns: int | None = None
    """Most turns of a document; by default all that the sample has."""
    prompt_targets: bool = False
    """Whether the text of documents that draw is predicted, too: caption, image_start and end."""
    image_targets_of_describe: bool = False
    """Whether the codes of images in `describe` and `answer` documents are predicted, too."""

    def __post_init__(self) -> None:
        _require_share("image_first", self.image_first)
        _require_share("caption_dropout", self.caption_dropout)
        if self.documents is not None:
            self._require_usable_documents(self.documents)
        self._require_room()

    def _require_usable_documents(self, documents: Mapping[DocumentKind, float]) -> None:
        if self.image_first != 0.5:
            raise UserError(
                f"image_first={self.image_first} and documents are both given: documents has all shares"
            )
        _require_shares(documents)
        if self.max_turns is not None and self.max_turns < 1:
            raise UserError(f"max_turns={self.max_turns}: give at least 1, or leave it out for all")
        if self.asks_questions:
            if self.questions_column is None:
                raise UserError(
                    "documents has answer, and questions_column is missing: name the column with the turns"
                )
            if self.lengths is not None:
                raise UserError(
                    "documents has answer, and lengths are given, which are those of captions: "
                    "leave lengths out, or answer"
                )
        no_markers = self.markers.start is None and self.markers.end is None
        if self.shares[DocumentKind.TEXT] and no_markers:
            raise UserError(
                "documents has text, and markers have neither start nor end: "
                "give one, or a sample without a caption takes no position"
            )

    def _require_room(self) -> None:
        for kind, share in self.shares.items():
            shortest = self.length(self._num_turn_markers(kind), kind)
            if share and self.capacity < shortest and kind != DocumentKind.TEXT:
                raise UserError(
                    f"capacity={self.capacity}: an image takes {shortest} positions with its markers, "
                    "and is never cut"
                )

    @property
    def shares(self) -> dict[DocumentKind, float]:
        """Shares of documents by kind, all kinds in order; they add up to 1."""
        documents = self.documents
        if documents is None:
            documents = {DocumentKind.DRAW: 1 - self.image_first, DocumentKind.DESCRIBE: self.image_first}
        total = math.fsum(documents.values())
        return {kind: documents.get(kind, 0.0) / total for kind in KINDS}

    @property
    def asks_questions(self) -> bool:
        """Whether some documents have turns."""
        return self.shares[DocumentKind.ANSWER] > 0

    @property
    def turns_column(self) -> str:
        """Column with the turns, of a plan that asks questions."""
        assert self.questions_column is not None
        return self.questions_column

    @property
    def image_positions(self) -> int:
        """Positions of an image, without markers."""
        height, width, _ = self.load.datasets[0].shape
        return height * width

    def length(self, text_length: int, kind: DocumentKind = DocumentKind.DRAW) -> int:
        """Return the positions of a document whose text has so many ids, with the markers of its turns."""
        kinds = np.array([KINDS.index(kind)], np.int8)
        return int(self.document_lengths(kinds, np.array([text_length]))[0])

    def document_lengths(self, kinds: Kinds, text_lengths: Rows) -> Rows:
        """Return the positions of documents, as `length`."""
        image_markers = 2
        document_markers = (self.markers.start is not None) + (self.markers.end is not None)
        image_lengths = np.where(kinds == TEXT, 0, self.image_positions + image_markers)
        return text_lengths + image_lengths + document_markers

    def caption_document_lengths(self, samples: Rows, caption_lengths: Rows) -> Rows:
        """Return the positions of samples' documents, none of kind `answer`, by their captions' lengths."""
        kinds = self.document_kinds(samples)
        text_lengths = np.where(self.captions_dropped(samples, kinds), 0, caption_lengths)
        text_lengths[kinds == DESCRIBE] += self._num_turn_markers(DocumentKind.DESCRIBE)
        return self.document_lengths(kinds, text_lengths)

    def _num_turn_markers(self, kind: DocumentKind) -> int:
        """Return the ids around an assistant's turn: one that answers may come to describe."""
        if kind in (DocumentKind.DESCRIBE, DocumentKind.ANSWER):
            return len(self.markers.assistant) + len(self.markers.turn_end)
        return 0

    def document_kinds(self, samples: Rows) -> Kinds:
        """Return the kinds of the documents of samples, (N,), by their indices in the run.

        One that answers describes instead where its sample has no turns.
        """
        seed = self.load.seed
        if self.documents is None:
            image_first = seeded_uniform(seed, "image first", samples) < self.image_first
            return np.where(image_first, DESCRIBE, DRAW).astype(np.int8)
        ends = np.cumsum(list(self.shares.values()))
        # Rounding may leave the last sum a little under 1.
        ends[ends == ends[-1]] = 1.0
        return np.searchsorted(ends, seeded_uniform(seed, "document kind", samples), "right").astype(np.int8)

    def captions_dropped(self, samples: Rows, kinds: Kinds) -> Mask:
        """Return which samples' captions are left out, (N,)."""
        is_drawn = seeded_uniform(self.load.seed, "caption dropout", samples) < self.caption_dropout
        return (kinds == DRAW) & is_drawn

    def target_kinds(self) -> Mask:
        """Return of which kinds the text is predicted, by number of kind."""
        is_target = np.ones(len(KINDS), bool)
        is_target[DRAW] = self.prompt_targets
        return is_target

    def image_target_kinds(self) -> Mask:
        """Return of which kinds the image's codes are predicted, by number of kind."""
        is_target = np.zeros(len(KINDS), bool)
        is_target[DRAW] = True
        is_target[[DESCRIBE, ANSWER]] = self.image_targets_of_describe
        return is_target

    def identity(self) -> dict[str, Any]:
        """Return what decides which documents share which sequence, and their targets, as JSON values.

        Fields that came later are left out at their defaults, so that states from before are still of this
        plan.
        """
        probe_ids = np.asarray(self.tokenize(_PROBE), np.int64)
        return {
            **self.load.identity(),
            "capacity": self.capacity,
            "pool_size": self.pool_size,
            "image_first": self.image_first,
            "caption_dropout": self.caption_dropout,
            "markers": self._markers_identity(),
            "tokenize": hashlib.sha256(probe_ids.tobytes()).hexdigest()[:12],
            **self._later_identity(),
        }

    def _markers_identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = {}
        for name, ids in asdict(self.markers).items():
            if isinstance(ids, int | None):
                identity[name] = ids
            elif ids:
                identity[name] = list(ids)
        return identity

    def _later_identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = {}
        if self.documents is not None:
            identity["documents"] = {kind.value: share for kind, share in self.shares.items() if share}
        if self.asks_questions:
            identity["questions_column"] = self.questions_column
            identity["max_turns"] = self.max_turns
        if self.prompt_targets:
            identity["prompt_targets"] = True
        if self.image_targets_of_describe:
            identity["image_targets_of_describe"] = True
        return identity


def _require_shares(documents: Mapping[DocumentKind, float]) -> None:
    for kind, share in documents.items():
        if kind not in KINDS:
            raise UserError(f"documents has {str(kind)!r}: use some of {', '.join(KINDS)}")
        if not 0 <= share < math.inf:
            raise UserError(f"documents has {kind}={share}: give a share of 0 or more")
    if not sum(documents.values()):
        raise UserError("documents has no share above 0: give one")


def _require_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{name}={share}: give a share from 0 to 1")
