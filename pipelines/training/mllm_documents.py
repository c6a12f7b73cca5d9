"""The documents that the unified model learns from: token datasets, text tokenizer, loader and its place.

B sequences of T positions, V image positions, N positions of an image.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Integer
from torch import Tensor, nn

from dualtoken.infra.scratch import shared_scratch_folder
from dualtoken.model.config.mllm import NamedTrunk
from dualtoken.model.mllm.losses import MllmBatch
from dualtoken.model.mllm.segments import Segments, separate_turns
from dualtoken.model.mllm.text_tokenizer import build_text_tokenizer, text_markers
from dualtoken.pipelines.config.mllm import MllmStageConfig
from dualtoken.pipelines.core.ledger import key_fractions
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.loader.batches import PackedBatch
from dualtoken.pipelines.loader.document_kinds import DRAW, TEXT, DocumentKind
from dualtoken.pipelines.loader.documents import Markers, PackPlan
from dualtoken.pipelines.loader.packed_loader import PackedLoader
from dualtoken.pipelines.loader.permutation import seeded_uniform
from dualtoken.pipelines.loader.plan import LoadPlan
from dualtoken.pipelines.tokens.mapped_shards import Rows
from dualtoken.pipelines.tokens.open_tokens import open_tokens
from dualtoken.pipelines.tokens.reader import TokenDataset
from dualtoken.pipelines.training.train_context import RankContext

VOCABULARY_ROWS = 8192
"""Rows of each corpus that a text tokenizer is trained on: the first ones."""


STANDARDIZING_ROWS = 512
"""Rows whose codes standardise the code vectors: the first ones."""


class LoaderPlace(nn.Module):
    """Where a run stands in its documents, as tensors of a checkpoint; the same on all workers."""

    position: Tensor
    """(), int64: samples that are in sequences, or wait for one."""
    waiting: Tensor
    """(pool, 2), int64: (sample, length) of the documents that wait, -1 beyond them."""

    def __init__(self, pool_size: int) -> None:
        super().__init__()
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self.register_buffer("waiting", torch.full((pool_size, 2), -1))

    def note(self, batch: PackedBatch) -> None:
        """Stand after a batch."""
        documents = torch.frombuffer(bytearray(batch.waiting), dtype=torch.int64).view(-1, 2)
        self.position.fill_(batch.position)
        self.waiting.fill_(-1)
        self.waiting[: len(documents)] = documents

    def state(self) -> tuple[int, list[list[int]]]:
        """Return the position and the waiting documents."""
        is_document = self.waiting[:, 0] >= 0
        return int(self.position), self.waiting[is_document].tolist()


class MllmDocuments:
    """One worker's documents."""

    def __init__(self, job: StageJob, context: RankContext) -> None:
        config = job.recipe.mllm
        assert config is not None
        self._config: MllmStageConfig = config
        self._heldout_fraction = job.recipe.heldout_fraction
        self._stack = ExitStack()
        name = blake2b(job.folder.encode(), digest_size=6).hexdigest()
        copies = self._stack.enter_context(shared_scratch_folder(f"tokens-{name}"))
        self._datasets = _open_datasets(job, copies)
        self.tokenizer_sha256 = self._datasets[0].tokenizer_sha256
        # Before the block: what reading raises is no fault of the trunk.
        texts = [] if isinstance(config.trunk, NamedTrunk) else list(self._texts())
        try:
            self.text_tokenizer = build_text_tokenizer(config.trunk, texts)
        except ValueError as error:
            raise UserError(f"mllm.trunk: {error}") from None
        self._markers = text_markers(self.text_tokenizer)
        plan = self._pack_plan()
        self._plan = plan
        per_worker = config.batch_size // context.world_size
        self._loader = PackedLoader(plan, per_worker, rank=context.rank, world_size=context.world_size)
        self.place = LoaderPlace(config.documents.pool_size)

    def _pack_plan(self) -> PackPlan:
        config = self._config
        documents = config.documents
        markers = self._markers
        load = LoadPlan(
            datasets=self._datasets,
            # Without an end: as many passes as the steps take, each dataset by its size.
            weights={0: [float(len(dataset)) for dataset in self._datasets]},
            seed=config.seed,
            heldout_fraction=self._heldout_fraction,
        )
        return PackPlan(
            load=load,
            capacity=config.capacity,
            tokenize=self._tokenize,
            markers=Markers(
                image_start=markers.image_start,
                image_end=markers.image_end,
                end=markers.end,
                padding=markers.end,
                user=markers.user,
                assistant=markers.assistant,
                turn_end=markers.turn_end,
            ),
            pool_size=documents.pool_size,
            caption_dropout=documents.caption_dropout,
            documents={DocumentKind(name): share for name, share in documents.shares.items()},
            questions_column=documents.questions,
            max_turns=documents.max_turns,
            prompt_targets=documents.learn_prompts,
            image_targets_of_describe=documents.learn_read_images,
        )

    def _tokenize(self, text: str) -> list[int]:
        return self.text_tokenizer.encode(text, add_special_tokens=False)

    def _texts(self) -> Iterator[str]:
        """Yield captions, questions and answers of the first rows of each dataset that training may see."""
        column = self._config.documents.questions
        for dataset in self._datasets:
            rows = self._training_rows(dataset, min(VOCABULARY_ROWS, len(dataset)))
            yield from dataset.captions(rows)
            if column is not None:
                for turns in dataset.texts(rows, column):
                    for turn in json.loads(turns or "[]"):
                        yield turn["question"]
                        yield turn["answer"]

    def _training_rows(self, dataset: TokenDataset, num_rows: int) -> Rows:
        """Return those of the first rows that are not held out."""
        rows = np.arange(num_rows)
        if not self._heldout_fraction:
            return rows
        keys = [bytes(key) for key in dataset.read(rows).keys]
        return rows[key_fractions(keys) >= self._heldout_fraction]

    def batches(self) -> Iterator[PackedBatch]:
        """Yield this worker's share of each step's sequences, from `place` on."""
        position, waiting = self.place.state()
        state = self._loader.state_dict(None)
        self._loader.load_state_dict({**state, "position": position, "waiting": waiting})
        return iter(self._loader)

    def note(self, batch: PackedBatch) -> None:
        """Let `place` stand after a batch."""
        self.place.note(batch)

    def to_model(self, batch: PackedBatch) -> MllmBatch:
        """Return a loader's batch as the model takes it."""
        codes: dict[str, Tensor] = {}
        for stream, ids in (("semantic", batch.semantic), ("pixel", batch.pixel)):
            if ids is not None:
                codes[stream] = ids.int()
        samples = batch.segments[batch.segments >= 0].numpy()[(batch.kinds != TEXT).numpy()]
        return MllmBatch(
            input_ids=batch.text,
            is_visual=batch.visual,
            codes=codes,
            segments=self._segments(batch),
            text_targets=batch.targets,
            visual_targets=batch.visual_targets,
            all_depths=batch.visual_targets & self._all_depths(samples),
            unread=self._unread(samples, batch.kinds) if self._config.code_dropout else None,
        )

    def _segments(self, batch: PackedBatch) -> Segments:
        if self._config.documents.turns_apart:
            return separate_turns(batch.cu_seqlens, batch.turns)
        return Segments(batch.cu_seqlens, batch.longest)

    def _all_depths(self, samples: Rows) -> Bool[Tensor, "V"]:
        """Choose image positions whose codes are trained at all depths, by seed, sample and place."""
        drawn = self._by_position("all depths", samples)
        return torch.from_numpy((drawn < self._config.depth_share).reshape(-1))

    def _unread(self, samples: Rows, kinds: Tensor) -> Bool[Tensor, "V"]:
        """Choose positions of images to draw whose codes are not read, by seed, sample and place."""
        shares = seeded_uniform(self._config.seed, "share of unread codes", samples)
        drawn = self._by_position("unread codes", samples)
        is_unread = drawn < self._config.code_dropout * shares[:, None]
        is_unread &= (kinds[kinds != TEXT] == DRAW).numpy()[:, None]
        return torch.from_numpy(is_unread.reshape(-1))

    def _by_position(self, purpose: str, samples: Rows) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return a number in [0, 1) for each position of each sample's image, (samples, N)."""
        num_positions = self._plan.image_positions
        places = samples[:, None] * num_positions + np.arange(num_positions)
        return seeded_uniform(self._config.seed, purpose, places)

    def some_codes(self) -> dict[str, Integer[Tensor, "V D"]]:
        """Return the codes of the first images, by stream: V of their positions."""
        rows = self._datasets[0].read(np.arange(min(STANDARDIZING_ROWS, len(self._datasets[0]))))
        codes: dict[str, Tensor] = {}
        for stream, ids in (("semantic", rows.semantic), ("pixel", rows.pixel)):
            assert ids is not None, "datasets are opened with both streams"
            codes[stream] = torch.from_numpy(ids.reshape(-1, ids.shape[-1]).astype(np.int32))
        return codes

    def description(self) -> list[str]:
        """Say what the documents are made of, a line each: for the model's card."""
        lines: list[str] = []
        for dataset in self._datasets:
            lines.append(f"{len(dataset)} samples, token dataset {dataset.fingerprint[:12]}")
        return lines

    def close(self) -> None:
        """Let go of the copies of remote shards."""
        self._stack.close()


def _open_datasets(job: StageJob, copies: Path) -> tuple[TokenDataset, ...]:
    """Open the token datasets of the corpora that training may see, in order of name."""
    datasets: list[TokenDataset] = []
    for corpus in job.recipe.training_corpora:
        datasets.append(open_tokens(job, corpus, copies))
    return tuple(datasets)
