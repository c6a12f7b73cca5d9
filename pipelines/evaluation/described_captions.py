"""Scores descriptions of held-out images by the keywords that they share with the true captions.

This is for corpora whose captions have no grammar; `described_scenes` reads those of generated scenes.
"""

from collections.abc import Sequence
from pathlib import Path

from dualtoken.model.metrics.keywords import (
    Keywords,
    best_single_answer,
    content_words,
    mean_overlap,
)
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.evaluation.examination import Score
from dualtoken.pipelines.evaluation.other_samples import other_samples
from dualtoken.pipelines.images.samples import is_heldout
from dualtoken.pipelines.tokens.caption_cache import CAPTION
from dualtoken.pipelines.tokens.open_tokens import open_tokens

MOST_CAPTIONS = 100_000
"""Captions of each training corpus after which no further shard is read for known keywords."""
SCORE_NAMES = {"precision": "precision", "recall": "recall", "f1": "F1"}


def keyword_scores(
    descriptions: Sequence[str], captions: Sequence[str], known: Keywords
) -> tuple[Score, ...]:
    """Return precision, recall and F1 of the descriptions' keywords, means over the images.

    Images whose captions have no keyword are left out; there are no scores of fewer than two images.
    Shuffled, a description is that of another image. Guessing is the single answer that suits all captions
    best, and the ceiling an answer of all true keywords that are among the known ones.
    """
    described: list[Keywords] = []
    true: list[Keywords] = []
    for text, caption in zip(descriptions, captions, strict=True):
        keywords = content_words(caption)
        if keywords:
            described.append(content_words(text))
            true.append(keywords)
    if len(true) < 2:
        return ()
    own = mean_overlap(described, true)
    shuffled = mean_overlap([described[other] for other in other_samples(len(true))], true)
    guessed = mean_overlap([best_single_answer(true)] * len(true), true)
    ceiling = mean_overlap([keywords & known for keywords in true], true)
    scores: list[Score] = []
    for field, name in SCORE_NAMES.items():
        score = Score(
            name=name,
            accuracy=getattr(own, field),
            shuffled=getattr(shuffled, field),
            chance=getattr(guessed, field),
            ceiling=getattr(ceiling, field),
            count=len(true),
        )
        scores.append(score)
    return tuple(scores)


def training_keywords(job: StageJob, scratch: Path) -> frozenset[str]:
    """Return the keywords of captions that a job's model may have been trained on.

    `scratch` holds copies of remote shards.
    """
    found: set[str] = set()
    for corpus in job.recipe.training_corpora:
        dataset = open_tokens(job, corpus, scratch / corpus)
        num_read = 0
        for number in range(len(dataset.shards())):
            if num_read >= MOST_CAPTIONS:
                break
            # Keys are read beside the captions, so that no codes are fetched for them.
            meta = dataset.read_meta(number, ["key", CAPTION])
            num_read += len(meta)
            for key, caption in zip(meta["key"].to_pylist(), meta[CAPTION].to_pylist(), strict=True):
                if not is_heldout(job.recipe, corpus, key):
                    found |= content_words(caption or "")
    return frozenset(found)
