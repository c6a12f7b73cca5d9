"""The filter rules: each marks the samples that it rejects, from a corpus's scores.

One rule is one function, named after its configuration: `min_side` for `config.filter.MinSide`. To add a
rule, add its configuration there, and here its function and its case in `rejected_by`.
"""

from typing import Any, assert_never

import numpy as np
import pyarrow as pa

from dualtoken.pipelines.config.filter import (
    CaptionLength,
    ExactDuplicate,
    MaxAspect,
    MinSide,
    Rule,
    Similarity,
)

Mask = np.ndarray[Any, np.dtype[np.bool_]]
"""One flag for each sample of a corpus."""


def decide(scores: pa.Table, rules: tuple[Rule, ...]) -> list[str]:
    """Return, per row, the first rule that rejects it, or an empty string; rows are in source order."""
    reasons = np.full(len(scores), "", dtype=object)
    for rule in rules:
        undecided = reasons == ""
        reasons[undecided & rejected_by(rule, scores, undecided)] = rule.rule
    return list(reasons)


def rejected_by(rule: Rule, scores: pa.Table, undecided: Mask) -> Mask:
    """Mark the rows that a rule rejects; `undecided` are the rows that no earlier rule has rejected.

    A mark on a row that is decided already has no effect.
    """
    match rule:
        case MinSide():
            return min_side(rule, scores)
        case MaxAspect():
            return max_aspect(rule, scores)
        case CaptionLength():
            return caption_length(rule, scores)
        case ExactDuplicate():
            return exact_duplicate(scores, undecided)
        case Similarity():
            return similarity(rule, scores, undecided)
        case _:
            assert_never(rule)


def min_side(rule: MinSide, scores: pa.Table) -> Mask:
    """Mark images whose shorter side is too short."""
    shorter_side = np.minimum(_column(scores, "width"), _column(scores, "height"))
    return shorter_side < rule.pixels


def max_aspect(rule: MaxAspect, scores: pa.Table) -> Mask:
    """Mark images that are too long and narrow, in either direction."""
    width = _column(scores, "width")
    height = _column(scores, "height")
    return np.maximum(width, height) > rule.ratio * np.minimum(width, height)


def caption_length(rule: CaptionLength, scores: pa.Table) -> Mask:
    """Mark captions with too few words, too few characters or too many."""
    characters = _column(scores, "caption_characters")
    rejected = _column(scores, "caption_words") < rule.min_words
    rejected |= characters < rule.min_characters
    if rule.max_characters is not None:
        rejected |= characters > rule.max_characters
    return rejected


def exact_duplicate(scores: pa.Table, undecided: Mask) -> Mask:
    """Mark all but the first of the undecided rows with the same pixels."""
    rows = np.flatnonzero(undecided)
    hashes = _column(scores, "pixel_hash")[rows].astype(str)
    _, first_of_each = np.unique(hashes, return_index=True)
    duplicates = undecided.copy()
    duplicates[rows[first_of_each]] = False
    return duplicates


def similarity(rule: Similarity, scores: pa.Table, undecided: Mask) -> Mask:
    """Mark images unlike their captions: under the lowest cosine, or outside the best share of undecided."""
    cosine = _column(scores, "similarity")
    rows = np.flatnonzero(undecided)
    best_first = rows[np.argsort(-cosine[rows], kind="stable")]
    num_kept = int(np.ceil(len(rows) * rule.keep_fraction))
    rejected = cosine < rule.min_cosine
    rejected[best_first[num_kept:]] = True
    return rejected


def _column(scores: pa.Table, name: str) -> np.ndarray[Any, Any]:
    return scores[name].to_numpy()
