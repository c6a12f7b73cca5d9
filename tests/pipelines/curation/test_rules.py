"""Decisions over scores."""

from typing import get_args

import pyarrow as pa

from dualtoken.pipelines.config.filter import (
    CaptionLength,
    ExactDuplicate,
    MaxAspect,
    MinSide,
    Rule,
    Similarity,
)
from dualtoken.pipelines.curation import rules
from dualtoken.pipelines.curation.rules import decide
from dualtoken.pipelines.curation.score import SCORE_SCHEMA


def scores(**columns: list[object]) -> pa.Table:
    rows = len(next(iter(columns.values())))
    defaults: dict[str, list[object]] = {
        "key": [bytes([row]) * 16 for row in range(rows)],
        "width": [100] * rows,
        "height": [100] * rows,
        "caption_words": [5] * rows,
        "caption_characters": [30] * rows,
        "pixel_hash": list(map(str, range(rows))),
        "similarity": [0.5] * rows,
    }
    return pa.table(defaults | columns, schema=SCORE_SCHEMA)


def test_every_rule_of_a_recipe_is_a_function_of_its_name() -> None:
    union, _ = get_args(Rule)
    for config in get_args(union):
        (name,) = get_args(config.model_fields["rule"].annotation)
        assert callable(getattr(rules, name))


def test_a_side_at_the_limit_is_kept() -> None:
    table = scores(width=[63, 64, 200], height=[200, 64, 63])
    assert decide(table, (MinSide(rule="min_side", pixels=64),)) == ["min_side", "", "min_side"]


def test_aspect_counts_both_ways() -> None:
    table = scores(width=[300, 301, 100], height=[100, 100, 301])
    assert decide(table, (MaxAspect(rule="max_aspect", ratio=3),)) == ["", "max_aspect", "max_aspect"]


def test_a_caption_needs_words_and_characters() -> None:
    rule = CaptionLength(rule="caption_length", min_words=2, min_characters=5)
    table = scores(caption_words=[1, 2, 2], caption_characters=[9, 4, 5])
    assert decide(table, (rule,)) == ["caption_length", "caption_length", ""]


def test_a_caption_may_have_too_many_characters() -> None:
    rule = CaptionLength(rule="caption_length", max_characters=5)
    table = scores(caption_words=[1, 1], caption_characters=[5, 6])
    assert decide(table, (rule,)) == ["", "caption_length"]


def test_the_first_of_equal_images_is_kept() -> None:
    table = scores(pixel_hash=["a", "b", "a", "a", "c"])
    reasons = decide(table, (ExactDuplicate(rule="exact_duplicate"),))
    assert reasons == ["", "", "exact_duplicate", "exact_duplicate", ""]


def test_a_rejected_image_does_not_count_as_the_first_of_its_kind() -> None:
    table = scores(pixel_hash=["a", "a"], width=[10, 100])
    in_order = (MinSide(rule="min_side", pixels=64), ExactDuplicate(rule="exact_duplicate"))
    assert decide(table, in_order) == ["min_side", ""]


def test_similarity_keeps_the_best_share_of_those_that_reach_it() -> None:
    table = scores(similarity=[0.1, 0.9, 0.5, 0.7], width=[100, 10, 100, 100])
    in_order = (MinSide(rule="min_side", pixels=64), Similarity(rule="similarity", keep_fraction=0.5))
    assert decide(table, in_order) == ["similarity", "min_side", "", ""]


def test_similarity_has_a_floor() -> None:
    rule = Similarity(rule="similarity", min_cosine=0.5)
    assert decide(scores(similarity=[0.49, 0.5, -1.0]), (rule,)) == ["similarity", "", "similarity"]


def test_no_rule_rejects_nothing() -> None:
    assert decide(scores(width=[1, 1]), ()) == ["", ""]
