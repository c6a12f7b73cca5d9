"""Plans of packing: shares of kinds, and what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.loader.document_kinds import ANSWER, DESCRIBE, DRAW, KINDS, TEXT, DocumentKind
from dualtoken.pipelines.loader.documents import Markers, PackPlan
from dualtoken.pipelines.loader.plan import LoadPlan
from dualtoken.pipelines.tokens.reader import TokenDataset
from tests.helpers.token_datasets import write_tokens


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> PackPlan:
    url = write_tokens(tmp_path_factory.mktemp("tokens") / "a", 5)
    return PackPlan(
        load=LoadPlan(datasets=(TokenDataset(url),)),
        capacity=64,
        tokenize=lambda _: [7],
        markers=Markers(image_start=1, image_end=2, start=3, assistant=(4, 5), turn_end=(6,)),
        questions_column="questions",
    )


def test_kinds_come_in_the_shares_asked_for(plan: PackPlan) -> None:
    shares = {DocumentKind.TEXT: 2, DocumentKind.DRAW: 5, DocumentKind.ANSWER: 13}
    kinds = replace(plan, documents=shares).document_kinds(np.arange(40_000))
    found = np.bincount(kinds, minlength=len(KINDS)) / len(kinds)
    assert np.abs(found - [0.25, 0, 0.65, 0.1]).max() < 0.01
    assert found[DESCRIBE] == 0


def test_the_order_in_which_shares_are_given_and_their_sum_change_no_kind(plan: PackPlan) -> None:
    shares = {DocumentKind.DRAW: 0.1, DocumentKind.DESCRIBE: 0.2, DocumentKind.TEXT: 0.7}
    others = {kind.value: 70 * share for kind, share in reversed(shares.items())}
    samples = np.arange(5000)
    assert np.array_equal(
        replace(plan, documents=shares).document_kinds(samples),
        replace(plan, documents=others).document_kinds(samples),
    )


def test_a_samples_kind_depends_on_seed_and_sample_alone(plan: PackPlan) -> None:
    of_kinds = replace(plan, documents=dict.fromkeys(KINDS, 1))
    samples = np.arange(1000)
    kinds = of_kinds.document_kinds(samples)
    assert np.array_equal(of_kinds.document_kinds(samples[::-1])[::-1], kinds)
    other_seed = replace(of_kinds, load=replace(plan.load, seed=1))
    assert not np.array_equal(other_seed.document_kinds(samples), kinds)


def test_orders_and_dropped_captions_come_in_the_shares_asked_for(plan: PackPlan) -> None:
    samples = np.arange(40_000)
    in_orders = replace(plan, image_first=0.25, caption_dropout=0.1)
    kinds = in_orders.document_kinds(samples)
    dropped = in_orders.captions_dropped(samples, kinds)
    assert set(kinds.tolist()) == {DRAW, DESCRIBE}
    assert abs((kinds == DESCRIBE).mean() - 0.25) < 0.01
    assert abs(dropped[kinds == DRAW].mean() - 0.1) < 0.01
    assert not dropped[kinds == DESCRIBE].any(), "an image with nothing to say of it"


def test_only_captions_to_draw_from_are_dropped(plan: PackPlan) -> None:
    of_kinds = replace(plan, documents=dict.fromkeys(KINDS, 1), caption_dropout=1.0)
    kinds = np.array([DRAW, DESCRIBE, ANSWER, TEXT], np.int8)
    assert of_kinds.captions_dropped(np.arange(4), kinds).tolist() == [True, False, False, False]


def test_a_document_has_the_positions_of_its_image_markers_and_text(plan: PackPlan) -> None:
    assert plan.length(10) == 1 + 10 + 6
    assert plan.length(10, DocumentKind.TEXT) == 1 + 10
    assert plan.length(10, DocumentKind.ANSWER) == plan.length(10, DocumentKind.DESCRIBE) == 1 + 10 + 6


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"documents": {"paint": 1}}, "documents has 'paint': use some of draw, describe, answer, text"),
        ({"documents": {"draw": -1}}, "documents has draw=-1: give a share of 0 or more"),
        ({"documents": {"draw": float("nan")}}, "documents has draw=nan: give a share of 0 or more"),
        ({"documents": {"draw": float("inf")}}, "documents has draw=inf: give a share of 0 or more"),
        ({"documents": {}}, "documents has no share above 0: give one"),
        ({"documents": {"draw": 0.0}}, "documents has no share above 0: give one"),
        ({"documents": {"draw": 1}, "image_first": 0.25}, "image_first=0.25 and documents are both given"),
        ({"documents": {"answer": 1}, "max_turns": 0}, "max_turns=0: give at least 1, or leave it out"),
        (
            {"documents": {"answer": 1}, "questions_column": None},
            "documents has answer, and questions_column is missing: name the column with the turns",
        ),
        (
            {"documents": {"answer": 1}, "lengths": lambda _, rows: rows},
            "documents has answer, and lengths are given, .*: leave lengths out, or answer",
        ),
        (
            {"documents": {"text": 1}, "markers": Markers(image_start=1, image_end=2)},
            "documents has text, and markers have neither start nor end: give one",
        ),
        ({"documents": {"describe": 1}, "capacity": 9}, "capacity=9: an image takes 10 positions"),
        ({"documents": {"answer": 1}, "capacity": 9}, "capacity=9: an image takes 10 positions"),
        ({"documents": {"draw": 1}, "capacity": 6}, "capacity=6: an image takes 7 positions"),
    ],
)
def test_plans_that_make_no_documents_are_refused_in_one_line(
    plan: PackPlan, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}") as refused:
        replace(plan, **changed)
    assert "\n" not in str(refused.value)


def test_a_sequence_may_be_shorter_than_an_image_where_there_is_none(plan: PackPlan) -> None:
    assert replace(plan, documents={DocumentKind.TEXT: 1, DocumentKind.DRAW: 0}, capacity=3)


def test_keys_of_text_are_read_as_kinds(plan: PackPlan) -> None:
    by_text = replace(plan, documents={"draw": 1, "text": 3})
    assert by_text.shares == {"draw": 0.25, "describe": 0, "answer": 0, "text": 0.75}
    assert by_text.identity()["documents"] == {"draw": 0.25, "text": 0.75}
