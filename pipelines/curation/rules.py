"""The filter rules: each marks the samples that it rejects, from a corpus's scores."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from dualtoken.pipelines.config.filter import CaptionLength, ExactDuplicate, MaxAspect, MinSide, Similarity

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def decide(scores: pa.Table, rules: tuple[Any, ...]) -> list[str]:
    """Return, per row, the first rule that objects, or an empty string; rows are in source order."""
    reasons = np.full(len(scores), "", dtype=object)
    for rule in rules:
        open_rows = reasons == ""
        reasons[open_rows & _JUDGES[type(rule)](scores, rule, open_rows)] = rule.rule
    return list(reasons)


def _column(scores: pa.Table, name: str) -> np.ndarray[Any, Any]:
    return scores[name].to_numpy()


def _too_small(scores: pa.Table, rule: MinSide, _: Mask) -> Mask:
    return np.minimum(_column(scores, "width"), _column(scores, "height")) < rule.pixels


def _too_long(scores: pa.Table, rule: MaxAspect, _: Mask) -> Mask:
    width, height = _column(scores, "width"), _column(scores, "height")
    return np.maximum(width, height) > rule.ratio * np.minimum(width, height)


def _caption_too_short(scores: pa.Table, rule: CaptionLength, _: Mask) -> Mask:
    few_words = _column(scores, "caption_words") < rule.min_words
    return few_words | (_column(scores, "caption_characters") < rule.min_characters)


def _seen_before(scores: pa.Table, _rule: ExactDuplicate, open_rows: Mask) -> Mask:
    """Mark all but the first of the open rows with the same pixels."""
    rows = np.flatnonzero(open_rows)
    _, first = np.unique(_column(scores, "pixel_hash")[rows].astype(str), return_index=True)
    seen = open_rows.copy()
    seen[rows[first]] = False
    return seen


def _unlike_its_caption(scores: pa.Table, rule: Similarity, open_rows: Mask) -> Mask:
    similarity = _column(scores, "similarity")
    rows = np.flatnonzero(open_rows)
    best_first = rows[np.argsort(-similarity[rows], kind="stable")]
    objects = similarity < rule.min_cosine
    objects[best_first[int(np.ceil(len(rows) * rule.keep_fraction)) :]] = True
    return objects


_JUDGES: dict[type, Callable[[pa.Table, Any, Mask], Mask]] = {
    MinSide: _too_small,
    MaxAspect: _too_long,
    CaptionLength: _caption_too_short,
    ExactDuplicate: _seen_before,
    Similarity: _unlike_its_caption,
}
