"""Keyword overlap, against counts by hand and against every possible single answer."""

from itertools import combinations

import numpy as np
import pytest

from dualtoken.model.metrics.keywords import (
    Keywords,
    best_single_answer,
    content_words,
    keyword_overlap,
    mean_overlap,
)
from dualtoken.model.metrics.stop_words import STOP_WORDS


def test_content_words_are_words_in_lower_case_without_those_that_say_nothing() -> None:
    text = "The man, with a BEARD: medium-dark skin tone (2 men)"
    assert content_words(text) == {"man", "beard", "medium", "dark", "skin", "tone", "2", "men"}
    assert content_words("an up and down; it's the one") == {"one"}
    assert content_words("") == frozenset()
    assert content_words("“…!”") == frozenset()
    assert content_words("under_score") == {"score"}


def test_content_words_are_whole_in_other_scripts_and_one_in_other_spellings() -> None:
    assert content_words("Straße STRASSE") == {"strasse"}
    assert content_words("ｆｕｌｌ ﬁsh") == {"full", "fish"}
    assert content_words("cafe\u0301 café") == {"café"}
    # Vowel signs are marks: a word does not end at one.
    assert content_words("हिन्दी फूल") == {"हिन्दी", "फूल"}


def test_stop_words_are_as_content_words_find_them() -> None:
    assert all(word == word.casefold() for word in STOP_WORDS)
    assert content_words(" ".join(STOP_WORDS)) == frozenset()


def test_overlap_is_that_of_counts_by_hand() -> None:
    overlap = keyword_overlap({"red", "apple", "tree"}, {"green", "apple", "tree", "fruit"})
    assert overlap == pytest.approx((2 / 3, 2 / 4, 4 / 7))
    assert keyword_overlap({"apple"}, {"apple"}) == (1, 1, 1)
    assert keyword_overlap({"pear"}, {"apple"}) == (0, 0, 0)
    assert keyword_overlap(set(), {"apple"}) == (0, 0, 0)
    with pytest.raises(ValueError, match="no keyword: leave it out"):
        keyword_overlap({"apple"}, set())


def test_a_mean_is_over_captions_whatever_their_lengths() -> None:
    described: list[Keywords] = [{"a1"}, {"b1", "b2", "b3", "x"}]
    true: list[Keywords] = [{"z"}, {"b1", "b2", "b3"}]
    assert mean_overlap(described, true) == pytest.approx((3 / 8, 1 / 2, 3 / 7))
    assert mean_overlap(true, true) == (1, 1, 1)


def test_a_single_answer_has_the_frequent_words_and_no_answer_of_them_is_better() -> None:
    generator = np.random.default_rng(3)
    shares = {"man": 0.7, "skin": 0.6, "tone": 0.5, "dark": 0.2, "flag": 0.2, "cat": 0.1}
    true: list[Keywords] = []
    for number in range(60):
        words = {word for word, share in shares.items() if generator.random() < share}
        true.append(words | {f"only{number}"})
    answer = best_single_answer(true)
    assert {"man", "skin", "tone"} <= answer < set(shares)
    found = mean_overlap([answer] * len(true), true).f1
    for size in range(1, len(shares) + 1):
        for other in combinations(shares, size):
            assert mean_overlap([frozenset(other)] * len(true), true).f1 <= found


def test_a_single_answer_to_one_caption_is_that_caption() -> None:
    assert best_single_answer([{"cat", "face"}]) == {"cat", "face"}
    assert best_single_answer([{"b"}, {"a"}]) == {"a", "b"}
    assert best_single_answer([]) == frozenset()
