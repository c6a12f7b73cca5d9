"""Overlap of a description's keywords with those of the true caption.

The measure is ROUGE-1 (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004) with stop words
removed, each word counted once, and no stemming. It compares words that spaces part, so it says little about
languages without spaces.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import numpy as np

from dualtoken.model.metrics.stop_words import STOP_WORDS

Keywords = AbstractSet[str]
"""The content words of a text."""


class Overlap(NamedTuple):
    """How well a description's keywords are those of the true caption, 0 to 1."""

    precision: float
    """Share of the described keywords that are true."""
    recall: float
    """Share of the true keywords that are described."""
    f1: float
    """Harmonic mean of the two; 0 where no keyword is right."""


def content_words(text: str) -> frozenset[str]:
    """Return a text's words in lower case, without the stop words of English.

    A word is a run of letters, digits and marks, so "medium-dark" has two.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    characters: list[str] = []
    for character in folded:
        is_of_word = unicodedata.category(character)[0] in "LNM"
        characters.append(character if is_of_word else " ")
    return frozenset("".join(characters).split()) - STOP_WORDS


def keyword_overlap(described: Keywords, true: Keywords) -> Overlap:
    """Compare a description's keywords with the true ones; a description without any has precision 0.

    Raises ValueError where there is no true keyword.
    """
    if not true:
        raise ValueError("the true caption has no keyword: leave it out")
    num_right = len(described & true)
    if not num_right:
        return Overlap(0.0, 0.0, 0.0)
    return Overlap(
        precision=num_right / len(described),
        recall=num_right / len(true),
        f1=2 * num_right / (len(described) + len(true)),
    )


def mean_overlap(described: Sequence[Keywords], true: Sequence[Keywords]) -> Overlap:
    """Return the mean over pairs of a description and a true caption, each of the same weight."""
    overlaps = [keyword_overlap(*pair) for pair in zip(described, true, strict=True)]
    precision, recall, f1 = np.mean(overlaps, axis=0).tolist()
    return Overlap(precision, recall, f1)


def best_single_answer(true: Sequence[Keywords]) -> frozenset[str]:
    """Return keywords that score well as the description of every image: what guessing can get.

    They are the most frequent keywords of the captions, as many of them as have the best mean F1. Equally
    frequent ones count in the order of the alphabet.
    """
    counts: Counter[str] = Counter()
    for keywords in true:
        counts.update(sorted(keywords))
    by_frequency = sorted(counts.items(), key=_most_frequent_first)
    sizes = np.array([len(keywords) for keywords in true])
    num_right = np.zeros(len(true))
    answer: list[str] = []
    best_f1 = 0.0
    num_best = 0
    for word, _ in by_frequency:
        answer.append(word)
        num_right += [word in keywords for keywords in true]
        num_words = len(answer) + sizes
        f1 = float(np.mean(2 * num_right / num_words))
        if f1 > best_f1:
            best_f1 = f1
            num_best = len(answer)
        # Not even an answer that has all keywords of all captions would be better from here on.
        if np.mean(2 * sizes / num_words) <= best_f1:
            break
    return frozenset(answer[:num_best])


def _most_frequent_first(counted: tuple[str, int]) -> tuple[int, str]:
    word, count = counted
    return -count, word
