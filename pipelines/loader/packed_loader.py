"""Packed loader: sequences full of whole documents, exact and elastic like the loader of single samples.

All ranks find the same sequences in the same order, since these follow from the captions' lengths in the
order of samples. A step of R ranks takes the next R * batch_size sequences: rank r every R-th of them, worker
w of W every W-th step. Codes are read for a rank's own sequences only. A run resumes from the index of the
next sample and the documents that wait for a sequence.

So what one process cannot read changes no sequence. Damaged codes leave a hole in one. Damaged captions end
the run, unless the ledger named them when it began.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dualtoken.pipelines.loader.batches import PackedBatch
from dualtoken.pipelines.loader.documents import PackPlan, lay_out_sequences
from dualtoken.pipelines.loader.packing import Document, Pack, Packer
from dualtoken.pipelines.loader.plan import require_same_plan
from dualtoken.pipelines.loader.quarantine import Mask
from dualtoken.pipelines.loader.sample_reader import SampleLocations, SampleReader, group_by_source
from dualtoken.pipelines.loader.token_loader import RankLoader
from dualtoken.pipelines.tokens.mapped_shards import Rows
from dualtoken.pipelines.tokens.shards import Ids

STATE_VERSION = 1
READ_BLOCK = 256
"""Samples whose captions are read together."""


class PackedLoader(RankLoader[PackedBatch]):
    """Yields batches of packed sequences.

    Every batch has `batch_size` sequences. The last ones of a run are empty where documents do not suffice,
    so that all ranks take the same number of steps.
    """

    def __init__(self, plan: PackPlan, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(plan.load, batch_size, rank, world_size)
        self.packing = plan
        # Here and not where an iteration begins: all workers of this process know of the same damage.
        self._reader = SampleReader(plan.load)
        self.position = 0
        self.waiting: tuple[Document, ...] = ()

    def state_dict(self, last: PackedBatch | None) -> dict[str, Any]:
        """Return what a run needs to go on after the batch `last`, as JSON values; the same on all ranks.

        `last` is None before the first batch.
        """
        position = self.position
        waiting = self.waiting
        if last is not None:
            position = last.position
            waiting = _decode_documents(last.waiting)
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
        worker = self.worker_info
        assembler = _BatchAssembler(self.packing, self._reader, self.position, self.waiting)
        for step in itertools.count():
            step_packs = assembler.next_packs(self.batch_size * self.world_size)
            step_lost = assembler.take_lost()
            if not step_packs and not step_lost:
                return
            if step % worker.num_workers == worker.id:
                rank_packs = step_packs[self.rank :: self.world_size]
                rank_packs += [()] * (self.batch_size - len(rank_packs))
                # Lost samples are in no sequence, so each counts on the rank of its index.
                num_lost = sum(sample % self.world_size == self.rank for sample in step_lost)
                yield assembler.assemble(rank_packs, num_lost)
            assembler.release(step_packs)


class _CaptionLength(NamedTuple):
    """Length of a sample's caption."""

    sample: int
    length: int | None
    """Ids of the caption; None where it is lost."""


class _BatchAssembler:
    """Turns samples into documents, packs documents into sequences, and reads packs into batches."""

    def __init__(
        self, plan: PackPlan, reader: SampleReader, position: int, waiting: Sequence[Document]
    ) -> None:
        self._plan = plan
        self._reader = reader
        self._position = position
        """Index of the next sample that goes into the pool."""
        self._packer = Packer(plan.capacity, plan.pool_size, waiting=list(waiting))
        self._lost: list[int] = []
        """Samples left out since `take_lost`, because their captions are in quarantine."""
        self._upcoming: deque[_CaptionLength] = deque()
        """Samples from `_position` on whose captions were measured already."""
        self._caption_ids: dict[int, Rows] = {}
        """Captions' ids by sample, for documents that were tokenized to be measured and still wait."""

    # From samples to packs: the same on all ranks.

    def next_packs(self, count: int) -> list[Pack]:
        """Return the next sequences; fewer where the run ends."""
        packs: list[Pack] = []
        while len(packs) < count:
            document = self._next_document()
            if document is not None:
                pack = self._packer.add(document)
                if pack is not None:
                    packs.append(pack)
            elif self._packer.waiting:
                packs.append(self._packer.next_pack())
            else:
                break
        return packs

    def take_lost(self) -> list[int]:
        """Return the samples that were left out since the last call."""
        lost = self._lost
        self._lost = []
        return lost

    def release(self, packs: Sequence[Pack]) -> None:
        """Let go of the captions of packs that are done with."""
        for pack in packs:
            for document in pack:
                self._caption_ids.pop(document.sample, None)

    def _next_document(self) -> Document | None:
        """Return the next sample that is not lost as a document, and None at the end of the run."""
        while True:
            if not self._upcoming:
                self._upcoming.extend(self._measure_next_block())
            if not self._upcoming:
                return None
            sample, caption_length = self._upcoming.popleft()
            self._position = sample + 1
            if caption_length is not None:
                return Document(sample, self._plan.length(caption_length))
            self._lost.append(sample)

    def _measure_next_block(self) -> list[_CaptionLength]:
        """Measure the captions of the next samples, None for a lost one; none at the end of the run."""
        block_end = self._position + READ_BLOCK
        run_end = self._reader.mixture.num_samples
        if run_end is not None:
            block_end = min(block_end, run_end)
        if block_end <= self._position:
            return []

        locations = self._reader.locate(np.arange(self._position, block_end))
        is_lost = self._captions_lost(locations)
        lengths = iter(self._caption_lengths(locations.select(~is_lost)))
        measured: list[_CaptionLength] = []
        for sample, lost in zip(locations.samples.tolist(), is_lost.tolist(), strict=True):
            measured.append(_CaptionLength(sample, None if lost else next(lengths)))
        return measured

    def _captions_lost(self, locations: SampleLocations) -> Mask:
        """Return which samples are in no sequence.

        None are where lengths were given. Lengths do not depend on damage then, and a process may begin after
        others met some.
        """
        if self._plan.lengths is not None:
            return np.zeros(len(locations.samples), bool)
        return self._reader.captions_lost_at_start(locations)

    def _caption_lengths(self, locations: SampleLocations) -> list[int]:
        """Return the numbers of ids in samples' captions; the ids, unless lengths were given, are kept."""
        if self._plan.lengths is None:
            captions = self._reader.captions_or_stop(locations)
            caption_ids = self._tokenize(locations.samples, captions)
            self._caption_ids |= caption_ids
            return [len(ids) for ids in caption_ids.values()]

        lengths = np.zeros(len(locations.samples), np.int64)
        for source, positions in group_by_source(locations.sources):
            lengths[positions] = self._plan.lengths(source, locations.rows[positions])
        is_dropped = self._plan.document_orders(locations.samples).caption_dropped
        return np.where(is_dropped, 0, lengths).tolist()

    def _tokenize(self, samples: Rows, captions: Sequence[str]) -> dict[int, Rows]:
        """Return by sample the ids of captions, none where they are dropped."""
        is_dropped = self._plan.document_orders(samples).caption_dropped
        caption_ids: dict[int, Rows] = {}
        for sample, dropped, caption in zip(samples.tolist(), is_dropped.tolist(), captions, strict=True):
            ids = [] if dropped or not caption else self._plan.tokenize(caption)
            caption_ids[sample] = np.asarray(ids, np.int64)
        return caption_ids

    # From packs to a batch: a rank's own only.

    def assemble(self, packs: Sequence[Pack], num_lost: int) -> PackedBatch:
        """Read and lay out the documents of packs; those in quarantine leave holes and add to `num_lost`."""
        documents: list[Document] = []
        for pack in packs:
            documents += pack
        caption_ids = self._read_caption_ids(documents)
        readable = [document.sample for document in documents if document.sample in caption_ids]
        locations, rows = self._reader.read_available(self._reader.locate(np.array(readable, np.int64)))
        samples = locations.samples.tolist()
        if len(samples) < len(documents):
            packs = _only_samples(packs, set(samples))
            num_lost += len(documents) - len(samples)

        image_first = self._plan.document_orders(locations.samples).image_first
        captions = [caption_ids[sample] for sample in samples]
        layout = lay_out_sequences(self._plan, packs, captions, image_first)
        return PackedBatch(
            text=torch.from_numpy(layout.text),
            visual=torch.from_numpy(layout.visual),
            semantic=_flat_codes(rows.semantic),
            pixel=_flat_codes(rows.pixel),
            cu_seqlens=torch.from_numpy(layout.cu_seqlens),
            segments=torch.from_numpy(layout.segments),
            keys=torch.from_numpy(rows.keys),
            source=torch.from_numpy(locations.sources),
            image_first=torch.from_numpy(image_first),
            lost=num_lost,
            position=self._position,
            waiting=_encode_documents(self._packer.waiting),
        )

    def _read_caption_ids(self, documents: Sequence[Document]) -> dict[int, Rows]:
        """Return captions' ids by sample, tokenized unless they were before; those in quarantine are missing.

        Raises ValueError where a document's length is not that with which it was packed.
        """
        caption_ids: dict[int, Rows] = {}
        not_tokenized: list[int] = []
        for sample, _ in documents:
            if sample in self._caption_ids:
                caption_ids[sample] = self._caption_ids[sample]
            else:
                not_tokenized.append(sample)
        locations = self._reader.locate(np.array(not_tokenized, np.int64))
        locations, captions = self._reader.captions_available(locations)
        caption_ids |= self._tokenize(locations.samples, captions)

        for sample, packed_length in documents:
            if sample in caption_ids:
                length = self._plan.length(len(caption_ids[sample]))
                _require_length(sample, length, packed_length)
        return caption_ids


def _require_length(sample: int, length: int, packed_length: int) -> None:
    if length != packed_length:
        raise ValueError(
            f"sample {sample} takes {length} positions, {packed_length} when it was packed: "
            "resume with the text tokenizer that the run began with, and give the lengths that it makes"
        )


def _only_samples(packs: Sequence[Pack], samples: set[int]) -> list[Pack]:
    """Return packs without the documents of other samples."""
    kept: list[Pack] = []
    for pack in packs:
        kept_documents = [document for document in pack if document.sample in samples]
        kept.append(tuple(kept_documents))
    return kept


def _flat_codes(codes: Ids | None) -> Tensor | None:
    """Return (N, H, W, D) codes as (V, D)."""
    if codes is None:
        return None
    return torch.from_numpy(codes.reshape(-1, codes.shape[-1]))


def _encode_documents(documents: Sequence[Document]) -> bytes:
    return np.array(documents, np.int64).tobytes()


def _decode_documents(encoded: bytes) -> tuple[Document, ...]:
    rows = np.frombuffer(encoded, np.int64).reshape(-1, 2).tolist()
    return tuple(Document(*row) for row in rows)
