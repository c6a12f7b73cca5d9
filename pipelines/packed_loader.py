"""The packed loader: sequences full of whole documents, exact and elastic like the loader of single samples.

All ranks find the same sequences in the same order, since these follow from the captions' lengths in the order of samples; a step
of R ranks takes the next R * batch_size of them, rank r every R-th, worker w of W every W-th step. Codes are read for a rank's own
sequences only. A run resumes from the number of the next sample and the documents that wait for their sequence.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipelines.documents import PackPlan, lay_out
from pipelines.load_plan import Places, Samples, require_same_plan
from pipelines.loader import RankLoader
from pipelines.mapped_shards import Rows
from pipelines.packing import Document, Pack, Packer

STATE_VERSION = 1
BLOCK = 256
"""Samples whose captions are read together."""


class PackedBatch(NamedTuple):
    """A step's sequences on one rank: B of T positions, V of these with codes of D depths, N documents in S segments."""

    text: Tensor
    """(B, T), int64: ids of text and markers; padding elsewhere."""
    visual: Tensor
    """(B, T), bool: positions of images, in the order of `semantic` and `pixel`: `hidden[batch.visual] = embed(batch.semantic)`."""
    semantic: Tensor | None
    """(V, D), uint16; None where no dataset reads the stream."""
    pixel: Tensor | None
    cu_seqlens: Tensor
    """(S + 1,), int32: begins of segments, and the end, in B * T positions, as variable-length attention takes them."""
    segments: Tensor
    """(S,), int64: the number of the segment's sample in its run; -1 for the padding of a sequence."""
    keys: Tensor
    """(N, 16), uint8, of the documents in order."""
    source: Tensor
    """(N,), int64: which dataset."""
    image_first: Tensor
    """(N,), bool."""
    lost: int
    """Samples of this step and rank that are not here, since their shards are in quarantine."""
    position: int
    """Samples of the whole run that are in sequences, or wait for one, when this step is done."""
    waiting: bytes
    """Those that wait: (number, length) of each, int64."""


class PackedLoader(RankLoader[PackedBatch]):
    """Yields batches of packed sequences.

    Every batch has `batch_size` sequences, the last ones of a run empty where documents do not suffice, so that all ranks take
    the same number of steps.
    """

    def __init__(self, plan: PackPlan, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(plan.load, batch_size, rank, world_size)
        self.packing = plan
        self.position = 0
        self.waiting: tuple[Document, ...] = ()

    def state_dict(self, last: PackedBatch | None = None) -> dict[str, Any]:
        """Return what a run that goes on after `last` needs, as JSON values; the same on all ranks."""
        position, waiting = (self.position, self.waiting) if last is None else (last.position, _unpacked(last.waiting))
        return {
            "version": STATE_VERSION,
            "position": position,
            "waiting": [list(document) for document in waiting],
            "plan": self.packing.identity(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after a state, under any batch size, world size and number of workers.

        Raises ValueError where the state is of other data, weights, order, sequences or text tokenizer.
        """
        require_same_plan(state, STATE_VERSION, self.packing.identity())
        self.position = int(state["position"])
        self.waiting = tuple(Document(*document) for document in state["waiting"])

    def __iter__(self) -> Iterator[PackedBatch]:
        number, every = self.turn
        desk = _Desk(self.packing, self.position)
        packer = Packer(self.packing.capacity, self.packing.pool_size, waiting=list(self.waiting))
        packs = packer.packs(desk.documents())
        for step in itertools.count():
            taken = list(itertools.islice(packs, self.batch_size * self.world_size))
            lost = desk.lost[:]
            desk.lost.clear()
            if not taken:
                return
            if step % every == number:
                mine = taken[self.rank :: self.world_size]
                mine += [()] * (self.batch_size - len(mine))
                missing = sum(one % self.world_size == self.rank for one in lost)
                yield desk.batch(mine, missing, packer.waiting)
            desk.forget(taken)


class _Desk:
    """Where samples become documents, and packs become batches."""

    def __init__(self, plan: PackPlan, position: int) -> None:
        self.plan, self.position, self.samples = plan, position, Samples(plan.load)
        self.lost: list[int] = []
        """Numbers of samples whose captions are in quarantine, since last cleared."""
        self._texts: dict[int, Rows] = {}
        """Of documents that were tokenized here, and wait."""

    def documents(self) -> Iterator[Document]:
        """Yield samples as documents from `position` on, which moves along."""
        end = self.samples.order.samples
        while end is None or self.position < end:
            last = self.position + BLOCK if end is None else min(self.position + BLOCK, end)
            places = self.samples.find(np.arange(self.position, last))
            there = self.samples.readable(places, captions=True)
            texts = iter(self._tokenized(places.at(there)))
            for number, readable in zip(places.numbers.tolist(), there.tolist(), strict=True):
                self.position = number + 1
                if not readable:
                    self.lost.append(number)
                    continue
                self._texts[number] = text = next(texts)
                yield Document(number, self.plan.length(len(text)))

    def forget(self, packs: Sequence[Pack]) -> None:
        """Let go of the texts of documents that are done with."""
        for pack in packs:
            for document in pack:
                self._texts.pop(document.number, None)

    def batch(self, packs: Sequence[Pack], lost: int, waiting: Sequence[Document]) -> PackedBatch:
        """Read and lay out the documents of packs."""
        places = self.samples.find(np.array([document.number for pack in packs for document in pack], np.int64))
        there = self.samples.readable(places, captions=False) & self.samples.readable(places, captions=True)
        if not there.all():
            gone = set(places.numbers[~there].tolist())
            packs = [tuple(document for document in pack if document.number not in gone) for pack in packs]
            lost, places = lost + len(gone), places.at(there)
        texts = self._texts_of([document for pack in packs for document in pack], places)
        image_first, _ = self.plan.orders(places.numbers)
        keys, *codes = self.samples.read(places)
        layout = lay_out(self.plan, packs, texts, image_first)
        semantic, pixel = (None if stream is None else torch.from_numpy(stream.reshape(-1, stream.shape[-1])) for stream in codes)
        text, visual, cu_seqlens, segments = map(torch.from_numpy, layout)
        return PackedBatch(
            text, visual, semantic, pixel, cu_seqlens, segments, torch.from_numpy(keys), torch.from_numpy(places.source),
            torch.from_numpy(image_first), lost, self.position, np.array(waiting, np.int64).tobytes(),
        )  # fmt: skip

    def _tokenized(self, places: Places) -> list[Rows]:
        """Return the ids of samples' captions, none where they are dropped."""
        _, dropped = self.plan.orders(places.numbers)
        captions = self.samples.captions(places)
        return [
            np.zeros(0, np.int64) if drop or not caption else np.asarray(self.plan.tokenize(caption), np.int64)
            for drop, caption in zip(dropped.tolist(), captions, strict=True)
        ]

    def _texts_of(self, documents: Sequence[Document], places: Places) -> list[Rows]:
        """Return documents' texts, those that an earlier process tokenized once more."""
        again = np.array([document.number not in self._texts for document in documents], bool)
        texts = iter(self._tokenized(places.at(again)))
        found = [self._texts[document.number] if document.number in self._texts else next(texts) for document in documents]
        for document, text in zip(documents, found, strict=True):
            if (length := self.plan.length(len(text))) != document.length:
                raise ValueError(
                    f"sample {document.number} takes {length} positions, {document.length} when it was packed: "
                    "resume with the text tokenizer that the run began with"
                )
        return found


def _unpacked(waiting: bytes) -> tuple[Document, ...]:
    return tuple(Document(*row) for row in np.frombuffer(waiting, np.int64).reshape(-1, 2).tolist())
