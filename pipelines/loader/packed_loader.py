"""The packed loader: sequences full of whole documents, exact and elastic like the loader of single samples.

All ranks find the same sequences in the same order, since these follow from the captions' lengths in the order of samples; a step
of R ranks takes the next R * batch_size of them, rank r every R-th, worker w of W every W-th step. Codes are read for a rank's own
sequences only. A run resumes from the number of the next sample and the documents that wait for their sequence. So what one process
cannot read changes no sequence: damaged codes leave a hole in one, damaged captions end the run unless the ledger named them at first.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dualtoken.pipelines.loader.documents import PackPlan, lay_out_sequences
from dualtoken.pipelines.loader.load_plan import Places, Samples, by_source, require_same_plan
from dualtoken.pipelines.loader.packing import Document, Pack, Packer
from dualtoken.pipelines.loader.quarantine import Flags
from dualtoken.pipelines.loader.token_loader import RankLoader
from dualtoken.pipelines.tokens.mapped_shards import Rows

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
        # Here and not where an iteration begins: all workers of this process know of the same damage.
        self._samples = Samples(plan.load)
        self.position = 0
        self.waiting: tuple[Document, ...] = ()

    def state_dict(self, last: PackedBatch | None) -> dict[str, Any]:
        """Return what a run that goes on after `last` needs, None before the first batch, as JSON values; the same on all ranks."""
        position, waiting = (
            (self.position, self.waiting) if last is None else (last.position, _unpacked(last.waiting))
        )
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
        desk = _BatchAssembler(self.packing, self._samples, self.position)
        packer = Packer(self.packing.capacity, self.packing.pool_size, waiting=list(self.waiting))
        packs = packer.packs(desk.documents())
        for step in itertools.count():
            taken = list(itertools.islice(packs, self.batch_size * self.world_size))
            lost = desk.lost[:]
            desk.lost.clear()
            if not taken and not lost:
                return
            if step % every == number:
                mine = taken[self.rank :: self.world_size]
                mine += [()] * (self.batch_size - len(mine))
                missing = sum(one % self.world_size == self.rank for one in lost)
                yield desk.batch(mine, missing, packer.waiting)
            desk.forget(taken)


class _BatchAssembler:
    """Where samples become documents, and packs become batches."""

    def __init__(self, plan: PackPlan, samples: Samples, position: int) -> None:
        self.plan, self.samples, self.position = plan, samples, position
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
            lost = self._lost_at_first(places)
            words = iter(self._words(places.at(~lost)))
            for number, is_lost in zip(places.numbers.tolist(), lost.tolist(), strict=True):
                self.position = number + 1
                if is_lost:
                    self.lost.append(number)
                else:
                    yield Document(number, self.plan.length(next(words)))

    def _lost_at_first(self, places: Places) -> Flags:
        """Return which samples are in no sequence: none where lengths were given, and a process may begin when others met damage."""
        if self.plan.lengths is not None:
            return np.zeros(len(places.numbers), bool)
        return self.samples.captions_lost_at_first(places)

    def forget(self, packs: Sequence[Pack]) -> None:
        """Let go of the texts of documents that are done with."""
        for pack in packs:
            for document in pack:
                self._texts.pop(document.number, None)

    def batch(self, packs: Sequence[Pack], lost: int, waiting: Sequence[Document]) -> PackedBatch:
        """Read and lay out the documents of packs."""
        documents = [document for pack in packs for document in pack]
        texts = self._texts_of(documents)
        places = self.samples.find(
            np.array([document.number for document in documents if document.number in texts], np.int64)
        )
        places, (keys, *codes) = self.samples.rows_there(places)
        if len(keys) < len(documents):
            there = set(places.numbers.tolist())
            packs = [tuple(document for document in pack if document.number in there) for pack in packs]
            lost += len(documents) - len(keys)
        image_first, _ = self.plan.orders(places.numbers)
        layout = lay_out_sequences(
            self.plan, packs, [texts[number] for number in places.numbers.tolist()], image_first
        )
        semantic, pixel = (
            None if stream is None else torch.from_numpy(stream.reshape(-1, stream.shape[-1]))
            for stream in codes
        )
        text, visual, cu_seqlens, segments = map(torch.from_numpy, layout)
        return PackedBatch(
            text, visual, semantic, pixel, cu_seqlens, segments, torch.from_numpy(keys), torch.from_numpy(places.source),
            torch.from_numpy(image_first), lost, self.position, np.array(waiting, np.int64).tobytes(),
        )  # fmt: skip

    def _words(self, places: Places) -> list[int]:
        """Return the numbers of ids of samples' captions; the ids, unless lengths were given, are kept."""
        if self.plan.lengths is None:
            self._texts |= (found := self._tokenized(places, self.samples.captions_or_end(places)))
            return [len(text) for text in found.values()]
        words, (_, dropped) = np.zeros(len(places.numbers), np.int64), self.plan.orders(places.numbers)
        for one, mine in by_source(places.source):
            words[mine] = self.plan.lengths(one, places.rows[mine])
        return np.where(dropped, 0, words).tolist()

    def _tokenized(self, places: Places, captions: Sequence[str]) -> dict[int, Rows]:
        """Return by number the ids of samples' captions, none where they are dropped."""
        _, dropped = self.plan.orders(places.numbers)
        return {
            number: np.zeros(0, np.int64)
            if drop or not caption
            else np.asarray(self.plan.tokenize(caption), np.int64)
            for number, drop, caption in zip(places.numbers.tolist(), dropped.tolist(), captions, strict=True)
        }

    def _texts_of(self, documents: Sequence[Document]) -> dict[int, Rows]:
        """Return documents' texts by number, tokenized unless they were before; those in quarantine are missing."""
        texts = {
            document.number: self._texts[document.number]
            for document in documents
            if document.number in self._texts
        }
        rest = self.samples.find(
            np.array([document.number for document in documents if document.number not in texts], np.int64)
        )
        texts |= self._tokenized(*self.samples.captions_there(rest))
        for number, packed in documents:
            if number in texts and (length := self.plan.length(len(texts[number]))) != packed:
                raise ValueError(
                    f"sample {number} takes {length} positions, {packed} when it was packed: resume with the text tokenizer that the "
                    "run began with, and give the lengths that it makes"
                )
        return texts


def _unpacked(waiting: bytes) -> tuple[Document, ...]:
    return tuple(Document(*row) for row in np.frombuffer(waiting, np.int64).reshape(-1, 2).tolist())
