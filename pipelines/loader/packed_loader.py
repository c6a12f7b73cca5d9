"""Packed loader: sequences full of whole documents, exact and elastic like the loader of single samples.

All ranks find the same sequences in the same order, since these follow from the lengths of captions and turns
in the order of samples. A step of R ranks takes the next R * batch_size sequences: rank r every R-th of them,
worker w of W every W-th step. Codes are read for a rank's own sequences only. A run resumes from the index of
the next sample and the documents that wait for a sequence.

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

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.loader.batches import PackedBatch, TargetCounts
from dualtoken.pipelines.loader.document_kinds import TEXT, Kinds, is_image_first
from dualtoken.pipelines.loader.document_texts import DocumentTextReader, DocumentTexts
from dualtoken.pipelines.loader.documents import PackPlan
from dualtoken.pipelines.loader.layout import DocumentText, lay_out_sequences
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
        self._text_reader = DocumentTextReader(plan, self._reader)
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
        assembler = _BatchAssembler(
            self.packing, self._reader, self._text_reader, self.position, self.waiting
        )
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


class _MeasuredSample(NamedTuple):
    """A sample with the length of its document."""

    sample: int
    length: int | None
    """Positions; None where the sample is lost or held out."""
    is_lost: bool


class _BatchAssembler:
    """Turns samples into documents, packs documents into sequences, and reads packs into batches."""

    def __init__(
        self,
        plan: PackPlan,
        reader: SampleReader,
        text_reader: DocumentTextReader,
        position: int,
        waiting: Sequence[Document],
    ) -> None:
        self._plan = plan
        self._reader = reader
        self._text_reader = text_reader
        self._position = position
        """Index of the next sample that goes into the pool."""
        self._packer = Packer(plan.capacity, plan.pool_size, waiting=list(waiting))
        self._lost: list[int] = []
        """Samples left out since `take_lost`, because their captions are in quarantine."""
        self._upcoming: deque[_MeasuredSample] = deque()
        """Samples from `_position` on whose documents were measured already."""
        self._texts: DocumentTexts = {}
        """Texts of documents that were tokenized to be measured and still wait."""

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
        """Let go of the texts of packs that are done with."""
        for pack in packs:
            for document in pack:
                self._texts.pop(document.sample, None)

    def _next_document(self) -> Document | None:
        """Return the next sample that is not left out as a document, and None at the end of the run."""
        first = self._position
        while True:
            if not self._upcoming:
                self._upcoming.extend(self._measure_next_block())
            if not self._upcoming:
                return None
            sample, length, is_lost = self._upcoming.popleft()
            self._position = sample + 1
            if length is not None:
                if length > self._plan.capacity:
                    raise self._too_long(sample, length)
                return Document(sample, length)
            if is_lost:
                self._lost.append(sample)
            self._require_some_left(sample - first)

    def _require_some_left(self, num_left_out: int) -> None:
        """Raise `UserError` where so many samples in a row were left out that there are no others."""
        num_rows = sum(len(dataset) for dataset in self._plan.load.datasets)
        fraction = self._plan.load.heldout_fraction
        if fraction and num_left_out > 2 * num_rows + READ_BLOCK:
            raise UserError(
                f"heldout_fraction={fraction} leaves none of {num_rows} samples to learn "
                "from: lower it, or give more samples"
            )

    def _measure_next_block(self) -> list[_MeasuredSample]:
        """Measure the documents of the next samples; none at the end of the run."""
        block_end = self._position + READ_BLOCK
        run_end = self._reader.mixture.num_samples
        if run_end is not None:
            block_end = min(block_end, run_end)
        if block_end <= self._position:
            return []

        locations = self._reader.locate(np.arange(self._position, block_end))
        is_lost = self._captions_lost(locations)
        is_used = ~is_lost
        is_used[is_used] = ~self._reader.are_heldout(locations.select(is_used))
        lengths = iter(self._document_lengths(locations.select(is_used)))
        measured: list[_MeasuredSample] = []
        for sample, used, lost in zip(
            locations.samples.tolist(), is_used.tolist(), is_lost.tolist(), strict=True
        ):
            measured.append(_MeasuredSample(sample, next(lengths) if used else None, lost))
        return measured

    def _captions_lost(self, locations: SampleLocations) -> Mask:
        """Return which samples are in no sequence.

        None are where lengths were given. Lengths do not depend on damage then, and a process may begin after
        others met some.
        """
        if self._plan.lengths is not None:
            return np.zeros(len(locations.samples), bool)
        return self._reader.captions_lost_at_start(locations)

    def _document_lengths(self, locations: SampleLocations) -> list[int]:
        """Return the lengths of samples' documents; their texts, unless lengths were given, are kept."""
        if self._plan.lengths is None:
            texts = self._text_reader.read_or_stop(locations)
            self._texts |= texts
            return self._lengths([texts[sample] for sample in locations.samples.tolist()]).tolist()

        caption_lengths = np.zeros(len(locations.samples), np.int64)
        for source, positions in group_by_source(locations.sources):
            caption_lengths[positions] = self._plan.lengths(source, locations.rows[positions])
        return self._plan.caption_document_lengths(locations.samples, caption_lengths).tolist()

    def _lengths(self, texts: Sequence[DocumentText]) -> Rows:
        """Return the lengths of documents by their texts."""
        kinds = np.array([text.kind for text in texts], np.int8)
        text_lengths = np.array([len(text.ids) for text in texts], np.int64)
        return self._plan.document_lengths(kinds, text_lengths)

    def _too_long(self, sample: int, length: int) -> UserError:
        """Return the error for a document that no sequence can hold."""
        locations = self._reader.locate(np.array([sample]))
        source, row = int(locations.sources[0]), int(locations.rows[0])
        key = self._reader.key(source, row)
        name = f"sample {sample} ({self._reader.row_name(source, row)}, key {key})"
        remedy = f"raise capacity to {length} at least, or shorten captions"
        if self._plan.asks_questions:
            remedy = f"raise capacity to {length} at least, or set max_turns lower"
        return UserError(
            f"{name} takes {length} positions, capacity={self._plan.capacity}: {remedy}; nothing is cut"
        )

    # From packs to a batch: a rank's own only.

    def assemble(self, packs: Sequence[Pack], num_lost: int) -> PackedBatch:
        """Read and lay out the documents of packs; those in quarantine leave holes and add to `num_lost`."""
        documents: list[Document] = []
        for pack in packs:
            documents += pack
        texts = self._read_texts(documents)
        readable = [document.sample for document in documents if document.sample in texts]
        locations, rows = self._reader.read_available(self._reader.locate(np.array(readable, np.int64)))
        samples = locations.samples.tolist()
        if len(samples) < len(documents):
            packs = _only_samples(packs, set(samples))
            num_lost += len(documents) - len(samples)

        layout = lay_out_sequences(self._plan, packs, [texts[sample] for sample in samples])
        return PackedBatch(
            text=torch.from_numpy(layout.text),
            visual=torch.from_numpy(layout.visual),
            semantic=_image_codes(rows.semantic, layout.kinds),
            pixel=_image_codes(rows.pixel, layout.kinds),
            cu_seqlens=torch.from_numpy(layout.cu_seqlens),
            segments=torch.from_numpy(layout.segments),
            keys=torch.from_numpy(rows.keys),
            source=torch.from_numpy(locations.sources),
            image_first=torch.from_numpy(is_image_first(layout.kinds)),
            lost=num_lost,
            position=self._position,
            waiting=_encode_documents(self._packer.waiting),
            targets=torch.from_numpy(layout.targets),
            visual_targets=torch.from_numpy(layout.visual_targets),
            kinds=torch.from_numpy(layout.kinds),
            turns=torch.from_numpy(layout.turns),
            longest=int(np.diff(layout.cu_seqlens).max()),
            num_targets=TargetCounts(
                text=int(np.count_nonzero(layout.targets)),
                visual=int(np.count_nonzero(layout.visual_targets)),
            ),
        )

    def _read_texts(self, documents: Sequence[Document]) -> DocumentTexts:
        """Return documents' texts, read unless they were before; those in quarantine are missing.

        Raises ValueError where a document's length is not that with which it was packed.
        """
        texts: DocumentTexts = {}
        not_read: list[int] = []
        for sample, _ in documents:
            if sample in self._texts:
                texts[sample] = self._texts[sample]
            else:
                not_read.append(sample)
        locations = self._reader.locate(np.array(not_read, np.int64))
        texts |= self._text_reader.read_available(locations)

        found = [document for document in documents if document.sample in texts]
        lengths = self._lengths([texts[document.sample] for document in found])
        for document, length in zip(found, lengths.tolist(), strict=True):
            _require_length(document.sample, length, document.length)
        return texts


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


def _image_codes(codes: Ids | None, kinds: Kinds) -> Tensor | None:
    """Return the (N, H, W, D) codes of documents that have an image as (V, D)."""
    if codes is None:
        return None
    has_image = kinds != TEXT
    if not has_image.all():
        codes = codes[has_image]
    return torch.from_numpy(codes.reshape(-1, codes.shape[-1]))


def _encode_documents(documents: Sequence[Document]) -> bytes:
    numbers = itertools.chain.from_iterable(documents)
    return np.fromiter(numbers, np.int64, 2 * len(documents)).tobytes()


def _decode_documents(encoded: bytes) -> tuple[Document, ...]:
    rows = np.frombuffer(encoded, np.int64).reshape(-1, 2).tolist()
    return tuple(Document(*row) for row in rows)
