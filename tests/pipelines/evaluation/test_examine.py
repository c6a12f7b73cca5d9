"""The examination of a unified model by captions without a grammar: controls, ceilings, and a whole one."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from dualtoken.model.metrics.keywords import content_words
from dualtoken.pipelines.config.corpora import HeldoutFraction
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.ledger import key_fraction
from dualtoken.pipelines.evaluation.described_captions import keyword_scores, training_keywords
from dualtoken.pipelines.evaluation.drawn_pictures import (
    DrawnPictures,
    embed_codes,
    embed_pictures,
    nearest_pictures,
    picture_ranks,
)
from dualtoken.pipelines.evaluation.examination import EXAMINATION, Examination, Score
from dualtoken.pipelines.evaluation.examine import shown_samples
from dualtoken.pipelines.evaluation.original_pictures import original_pictures
from dualtoken.pipelines.evaluation.other_samples import other_samples
from dualtoken.pipelines.tokens.open_tokens import open_tokens
from dualtoken.pipelines.training.heldout_tokens import read_heldout
from tests.helpers.report_samples import Page, rows
from tests.helpers.tiny_mllm import tiny_vision
from tests.helpers.tiny_run import planned_job

ANIMALS = ["cat", "dog", "fish", "bird"]
CAPTIONS = [f"a {colour} {animal}" for animal in ANIMALS for colour in ("red", "green", "blue", "pink")]
WORDS = content_words(" ".join(CAPTIONS))


def by_name(scores: Sequence[Score]) -> dict[str, Score]:
    return {score.name: score for score in scores}


@pytest.mark.parametrize("num_samples", [2, 3, 50])
def test_every_sample_stands_for_another_one_once(num_samples: int) -> None:
    other = other_samples(num_samples)
    assert sorted(other) == list(range(num_samples))
    assert all(number != place for place, number in enumerate(other))
    assert other == other_samples(num_samples)


def test_other_samples_are_no_neighbours_by_rule() -> None:
    distances = {(number - place) % 50 for place, number in enumerate(other_samples(50))}
    assert len(distances) > 20
    with pytest.raises(ValueError, match="1 samples cannot be shuffled: give two or more"):
        other_samples(1)


def test_keyword_scores_are_those_of_counts_by_hand() -> None:
    # Of 2 and 1 described words 1 and 1 are true, of 2 and 3 true ones 1 and 1 are described.
    descriptions = ["red dog", "the bird"]
    captions = ["a red cat", "a small blue bird"]
    scores = by_name(keyword_scores(descriptions, captions, frozenset({"red", "cat", "bird"})))
    assert list(scores) == ["precision", "recall", "F1"]
    assert scores["precision"].accuracy == pytest.approx((1 / 2 + 1) / 2)
    assert scores["recall"].accuracy == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert scores["F1"].accuracy == pytest.approx((2 / 4 + 2 / 4) / 2)
    assert [score.shuffled for score in scores.values()] == [0, 0, 0]
    assert scores["precision"].ceiling == 1
    assert scores["recall"].ceiling == pytest.approx((1 + 1 / 3) / 2)
    assert scores["F1"].ceiling == pytest.approx((1 + 2 / 4) / 2)
    assert [score.count for score in scores.values()] == [2, 2, 2]


def test_perfect_descriptions_reach_the_ceiling_and_fall_to_chance_where_images_are_shuffled() -> None:
    captions = CAPTIONS * 20
    scores = by_name(keyword_scores(captions, captions, WORDS))
    for score in scores.values():
        assert score.accuracy == score.ceiling == 1
        # Another caption has the same colour, and the same animal, in a quarter of the cases.
        assert score.shuffled == pytest.approx(0.25, abs=0.05)
    # The best single answer has all eight words, of which two are right.
    assert scores["F1"].chance == pytest.approx(2 * 2 / (8 + 2))


def test_a_description_that_is_always_the_same_gets_what_guessing_gets() -> None:
    answer = " ".join(WORDS & {"red", "green", "blue", "pink"})
    best = by_name(keyword_scores(CAPTIONS, CAPTIONS, WORDS))["F1"].chance
    always = by_name(keyword_scores([answer] * len(CAPTIONS), CAPTIONS, WORDS))["F1"]
    assert always.accuracy == always.shuffled <= best


def test_captions_without_keywords_are_left_out_and_one_alone_has_no_scores() -> None:
    scores = keyword_scores(["red", "", "x"], ["red", "!", "blue"], frozenset())
    assert [score.count for score in scores] == [2, 2, 2]
    assert keyword_scores(["red", ""], ["red", "the"], frozenset()) == ()
    assert keyword_scores([], [], frozenset()) == ()


def test_ranks_are_places_by_cosine_of_which_equals_keep_their_order() -> None:
    pictures = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [0.0, 1.0]])
    drawn = torch.tensor([[5.0, 0.1], [0.1, 1.0], [0.1, 1.0], [-1.0, 0.0]])
    assert picture_ranks(drawn, pictures, torch.tensor([0, 1, 3, 0])).tolist() == [1, 1, 2, 4]


def embeddings(num_pictures: int) -> Tensor:
    return torch.randn(num_pictures, 16, generator=torch.Generator().manual_seed(4))


def test_perfect_drawings_reach_the_ceiling_and_fall_to_chance_where_captions_are_shuffled() -> None:
    pictures = embeddings(400)
    own = list(range(300))
    near = pictures[own] + 0.1 * embeddings(300)
    found = nearest_pictures(DrawnPictures(near, -near, near), pictures, own)
    assert found is not None
    assert found.num_pictures == 400
    for score, most in zip(found.shares, (1, 5), strict=True):
        assert score.accuracy == score.ceiling == 1
        assert score.unguided == 0
        assert score.chance == most / 400
        assert score.shuffled < 0.03
        assert score.count == 300
    median = found.median_rank
    assert (median.guided, median.ceiling, median.unguided) == (1, 1, 400)
    assert median.chance == 200.5
    assert median.shuffled == pytest.approx(200.5, abs=30)


def test_drawings_that_are_all_alike_are_as_near_as_chance() -> None:
    pictures = embeddings(100)
    alike = embeddings(1).expand(100, -1)
    found = nearest_pictures(DrawnPictures(alike, alike, pictures), pictures, list(range(100)))
    assert found is not None
    assert [score.accuracy for score in found.shares] == pytest.approx([0.01, 0.05])
    assert found.median_rank.guided == found.median_rank.chance == 50.5
    assert [score.ceiling for score in found.shares] == [1, 1]


def test_of_fewer_than_two_drawings_nothing_is_told() -> None:
    pictures = embeddings(3)
    assert nearest_pictures(DrawnPictures(*[pictures[:1]] * 3), pictures, [0]) is None


def test_a_picture_has_the_embedding_of_its_codes_in_any_batch() -> None:
    vision = tiny_vision()
    side = vision.config.image_size
    generator = torch.Generator().manual_seed(6)
    levels = torch.randint(256, (67, 3, side, side), generator=generator).to(torch.uint8)
    codes = vision.encode(vision.transform.normalize(levels)).semantic.flatten(1, 2)
    embedded = embed_pictures(vision, levels)
    assert torch.allclose(embed_codes(vision, codes), embedded, atol=1e-6)
    assert picture_ranks(embedded, embedded, torch.arange(67)).median() == 1


def test_samples_that_are_shown_are_spread() -> None:
    assert shown_samples(100, 4) == [0, 25, 50, 75]
    assert shown_samples(3, 8) == [0, 1, 2]
    assert shown_samples(0, 8) == []


def test_keywords_of_training_captions_are_those_that_training_may_see(
    finished: Recipe, tmp_path: Path
) -> None:
    job = planned_job(finished, "examine")
    found = training_keywords(job, tmp_path)
    assert {"red", "circle", "top", "left"} <= found
    fraction = HeldoutFraction(kind="fraction", fraction=0.9)
    some = training_keywords(replace(job, recipe=finished.model_copy(update={"heldout": fraction})), tmp_path)
    expected: set[str] = set()
    for corpus in finished.corpora:
        dataset = open_tokens(job, corpus, tmp_path)
        for row, key in enumerate(dataset.read(torch.arange(len(dataset)).numpy()).keys):
            if key_fraction(bytes(key)) >= 0.9:
                expected |= content_words(dataset.captions(torch.tensor([row]).numpy())[0])
    assert some == expected < found


def test_original_pictures_are_those_that_the_codes_were_made_of(finished: Recipe, tmp_path: Path) -> None:
    job = planned_job(finished, "examine")
    heldout = read_heldout(job, 12, tmp_path)
    vision = tiny_vision()
    wanted = [heldout.keys[5], heldout.keys[0], b"no such sample!!"]
    found = original_pictures(job, wanted, lambda picture: vision.transform.levels([picture]), tmp_path)
    assert set(found) == set(wanted[:2])
    assert not torch.equal(found[wanted[0]], found[wanted[1]])


def test_captions_without_a_grammar_are_examined_and_shown(finished: Recipe) -> None:
    """The tiny recipe's scenes are drawn at another size than the oracle reads."""
    folder = planned_job(finished, "examine").store()
    found = Examination.model_validate_json(folder.read(EXAMINATION))
    assert found.descriptions == found.drawings == ()
    assert [score.name for score in found.keywords] == ["precision", "recall", "F1"]
    assert [score.count for score in found.keywords] == [4, 4, 4]
    assert found.nearest is not None
    assert [(score.name, score.count) for score in found.nearest.shares] == [
        ("nearest", 4),
        ("among the 5 nearest", 4),
    ]
    assert found.nearest.num_pictures >= 8
    for name in found.picture_names():
        with Image.open(folder.local_folder(Path()) / name) as picture:
            assert picture.size == (32, 32)
    assert all(shown.original for shown in found.captions)

    html = planned_job(finished, "report").store().read("report.html").decode()
    page = Page(html)
    shown_rows = rows(page)
    assert any(row.startswith("among the 5 nearest ") for row in shown_rows)
    assert any(re.fullmatch(r"median place( [\d.]+){5} 4", row) for row in shown_rows)
    assert any(row.startswith("F1 ") for row in shown_rows)
    pictures = [image["alt"] or "" for image in page.attributes("img")]
    assert sum(alt.startswith("True picture: ") for alt in pictures) == 2 * len(found.captions)
    num_pairs = finished.report.num_images
    assert sum(alt.startswith("Reconstruction: ") for alt in pictures) == len(found.captions) + num_pairs
    assert sum(alt.startswith("Drawing of: ") for alt in pictures) == 4
