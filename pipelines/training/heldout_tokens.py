"""Held-out samples as the unified model meets them: their codes, captions, questions and what was drawn.

B samples, N positions of an image, D depths.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.images.image_questions import Asked, read_questions
from dualtoken.pipelines.images.samples import is_heldout
from dualtoken.pipelines.tokens.open_tokens import open_tokens
from dualtoken.pipelines.tokens.reader import TokenDataset

DESCRIPTION_COLUMN = "description"
"""Column with all that a generated scene shows, JSON."""


class HeldoutTokens(NamedTuple):
    """The first held-out samples of a run."""

    keys: list[bytes]
    semantic: Int[Tensor, "B N D"]
    pixel: Int[Tensor, "B N D"]
    captions: list[str]
    questions: list[list[Asked]]
    """Those of each sample; none where the corpus has none."""
    descriptions: list[dict[str, Any]]
    """What was drawn in each; empty dictionaries where nobody knows."""

    @property
    def are_scenes(self) -> bool:
        """Whether all are generated scenes."""
        return bool(self.descriptions) and all(self.descriptions)

    def codes(self) -> dict[str, Tensor]:
        """Return the codes by stream."""
        return {"semantic": self.semantic, "pixel": self.pixel}


def read_heldout(job: StageJob, num_samples: int, scratch: Path) -> HeldoutTokens:
    """Read the first held-out samples, over all corpora that have some, the first variant of each.

    `scratch` holds copies of remote shards.
    """
    parts = [_read_corpus(job, corpus, num_samples, scratch) for corpus in job.recipe.heldout_corpora]
    keys: list[bytes] = []
    captions: list[str] = []
    questions: list[list[Asked]] = []
    descriptions: list[dict[str, Any]] = []
    for part in parts:
        keys += part.keys
        captions += part.captions
        questions += part.questions
        descriptions += part.descriptions
    return HeldoutTokens(
        keys[:num_samples],
        torch.cat([part.semantic for part in parts])[:num_samples],
        torch.cat([part.pixel for part in parts])[:num_samples],
        captions[:num_samples],
        questions[:num_samples],
        descriptions[:num_samples],
    )


def _read_corpus(job: StageJob, corpus: str, num_samples: int, scratch: Path) -> HeldoutTokens:
    dataset = open_tokens(job, corpus, scratch)
    rows = np.array(list(_heldout_rows(job, corpus, dataset, num_samples)), np.int64)
    read = dataset.read(rows)
    assert read.semantic is not None
    assert read.pixel is not None
    column = job.recipe.mllm.documents.questions if job.recipe.mllm else None
    known = dataset.text_columns() if len(rows) else ()
    questions: list[list[Asked]] = [[] for _ in rows]
    if column in known:
        questions = [read_questions(text) for text in dataset.texts(rows, str(column))]
    descriptions: list[dict[str, Any]] = [{} for _ in rows]
    if DESCRIPTION_COLUMN in known:
        descriptions = [_described(text) for text in dataset.texts(rows, DESCRIPTION_COLUMN)]
    return HeldoutTokens(
        [bytes(key) for key in read.keys],
        _as_int(read.semantic),
        _as_int(read.pixel),
        dataset.captions(rows),
        questions,
        descriptions,
    )


def _heldout_rows(job: StageJob, corpus: str, dataset: TokenDataset, num_samples: int) -> Iterator[int]:
    num_found = 0
    variants = job.recipe.pretokenize.num_variants
    for first in range(0, len(dataset), 4096):
        rows = np.arange(first, min(first + 4096, len(dataset)))
        for row, key in zip(rows.tolist(), dataset.read(rows).keys, strict=True):
            if row % variants == 0 and is_heldout(job.recipe, corpus, bytes(key)):
                yield row
                num_found += 1
                if num_found == num_samples:
                    return


def _described(text: str) -> dict[str, Any]:
    """Return a scene's description; nothing for a column of that name with other contents."""
    try:
        values = json.loads(text or "{}")
    except json.JSONDecodeError:
        return {}
    return values if isinstance(values, dict) and "objects" in values else {}


def _as_int(codes: np.ndarray[Any, Any]) -> Int[Tensor, "B N D"]:
    return torch.from_numpy(codes.astype(np.int64)).flatten(1, 2)
