"""Lays out documents in packed sequences, and marks what is to be predicted.

B sequences of T positions, V positions with codes among them, N documents, S segments.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dualtoken.pipelines.loader.document_kinds import DRAW, TEXT, Kinds
from dualtoken.pipelines.loader.documents import PackPlan
from dualtoken.pipelines.loader.packing import Pack
from dualtoken.pipelines.loader.quarantine import Mask
from dualtoken.pipelines.tokens.mapped_shards import Rows

Offsets = np.ndarray[Any, np.dtype[np.int32]]


class DocumentText(NamedTuple):
    """The text of a document, which is all before its image or all after it."""

    kind: int
    """Number of the document's kind."""
    ids: Rows
    """Ids with the markers of turns, without those of the document and the image."""
    targets: Mask | None = None
    """Which ids are predicted; None where all are or none is, as is usual for the kind."""
    turns: Rows | None = None
    """First id of each turn, by its place in `ids`; None for kinds without turns."""


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
    targets: Mask
    """(B, T), where the text's id is predicted."""
    visual_targets: Mask
    """(V,), whether the codes of an image's position are predicted."""
    kinds: Kinds
    """(N,), numbers of the documents' kinds."""
    turns: Rows
    """(M,), first position of each turn of documents that answer, among B * T positions."""


def lay_out_sequences(plan: PackPlan, packs: Sequence[Pack], texts: Sequence[DocumentText]) -> Layout:
    """Lay out documents in a sequence for each pack.

    `texts` are those of the packs' documents one after the other.
    """
    writer = _LayoutWriter(plan, len(packs))
    remaining_texts = iter(texts)
    for number, pack in enumerate(packs):
        position = number * plan.capacity
        for document in pack:
            writer.write(next(remaining_texts), position)
            position += document.length

    kinds = np.array([document.kind for document in texts], np.int8)
    image_kinds = kinds[kinds != TEXT]
    shape = (len(packs), plan.capacity)
    cu_seqlens, segments = _segments(packs, plan.capacity)
    return Layout(
        text=writer.text.reshape(shape),
        visual=writer.visual.reshape(shape),
        cu_seqlens=cu_seqlens,
        segments=segments,
        targets=writer.targets.reshape(shape),
        visual_targets=np.repeat(plan.image_target_kinds()[image_kinds], plan.image_positions),
        kinds=kinds,
        turns=np.array(writer.turns, np.int64),
    )


class _LayoutWriter:
    """Writes documents into B sequences, a slice for each of their parts.

    Index arrays for all documents at once took longer: the slices are long ones.
    """

    def __init__(self, plan: PackPlan, num_sequences: int) -> None:
        self.text = np.full(num_sequences * plan.capacity, plan.markers.padding, np.int64)
        self.visual = np.zeros(len(self.text), bool)
        self.targets = np.zeros(len(self.text), bool)
        self.turns: list[int] = []
        self._markers = plan.markers
        self._image_positions = plan.image_positions
        self._target_kinds = plan.target_kinds().tolist()

    def write(self, document: DocumentText, start: int) -> None:
        """Write a document from a position on, the positions of all sequences counted together."""
        markers = self._markers
        position = start
        if markers.start is not None:
            self.text[position] = markers.start
            position += 1
        if document.kind == DRAW:
            position = self._write_text(document, position)
            self.targets[position] = self._target_kinds[DRAW]  # that an image follows
            position = self._write_image(position)
        else:
            if document.kind != TEXT:
                position = self._write_image(position)
            position = self._write_text(document, position)
        if markers.end is not None:
            self.text[position] = markers.end
            self.targets[position] = self._target_kinds[document.kind]
        # Nothing stands before a document's first position to predict it from.
        self.targets[start] = False

    def _write_text(self, document: DocumentText, position: int) -> int:
        """Write a document's text, and return the position after it."""
        end = position + len(document.ids)
        self.text[position:end] = document.ids
        if document.targets is not None:
            self.targets[position:end] = document.targets
        elif self._target_kinds[document.kind]:
            self.targets[position:end] = True
        if document.turns is not None:
            self.turns += (position + document.turns).tolist()
        return end

    def _write_image(self, position: int) -> int:
        """Write an image's markers, mark the positions between them, and return the position after it."""
        image_end = position + 1 + self._image_positions
        self.text[position] = self._markers.image_start
        self.visual[position + 1 : image_end] = True
        self.text[image_end] = self._markers.image_end
        return image_end + 1


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
