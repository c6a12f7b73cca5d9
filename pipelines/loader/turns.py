"""Questions with their answers: read from JSON, and chosen for a document by the seed and the sample's index.

A column of turns holds in each row null, or a list of objects such as

    [{"question": "what shape is at the top left?", "answer": "ring"}]

Other keys of an object are ignored.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dualtoken.pipelines.loader.permutation import seeded_uniform
from dualtoken.pipelines.tokens.mapped_shards import Rows

_INDEX_BITS = 20
"""Bits of a turn's number in its row: more turns than that would repeat their places in the order."""


class Turn(NamedTuple):
    """A question about an image, and the answer to it."""

    question: str
    answer: str


def parse_turns(text: str) -> list[Turn]:
    """Read a row's turns from JSON, none from an empty text; raises ValueError that says what is wrong."""
    if not text:
        return []
    try:
        objects = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON ({error})") from None
    if objects is None:
        return []
    if not isinstance(objects, list):
        raise ValueError("JSON, but no list")  # noqa: TRY004  (it is the row's value, not the caller's type)
    return [_turn(value) for value in objects]


def _turn(value: Any) -> Turn:  # noqa: ANN401  (any JSON value)
    texts: list[str] = []
    for name in Turn._fields:
        text = value.get(name) if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise ValueError(f"a turn without a string as {name}")  # noqa: TRY004  (as above)
        texts.append(text)
    return Turn(*texts)


def choose_turns(
    seed: int, samples: Rows, turns: Sequence[Sequence[Turn]], max_turns: int | None
) -> list[list[Turn]]:
    """Return some of each sample's turns in a random order, all where `max_turns` is None.

    Which ones and in which order follows from the seed and the sample's index.
    """
    counts = np.array([len(sample_turns) for sample_turns in turns], np.int64)
    ends = np.cumsum(counts)
    begins = ends - counts
    numbers = np.arange(counts.sum()) - np.repeat(begins, counts)
    ranks = seeded_uniform(seed, "turns", (np.repeat(samples, counts) << _INDEX_BITS) + numbers)
    chosen: list[list[Turn]] = []
    for sample_turns, begin, end in zip(turns, begins.tolist(), ends.tolist(), strict=True):
        order = np.argsort(ranks[begin:end], kind="stable")[:max_turns]
        chosen.append([sample_turns[number] for number in order.tolist()])
    return chosen
