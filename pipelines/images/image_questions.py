"""Questions about an image, as a column of questions holds them: JSON. Imports no torch."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Asked(NamedTuple):
    """A question with its answer."""

    kind: str
    """Subject, such as colour; empty where the corpus names none."""
    question: str
    answer: str


def read_questions(text: str | None) -> list[Asked]:
    """Return the questions of a column's value: a JSON list of objects; none for an empty value.

    Raises ValueError for any other text.
    """
    turns = json.loads(text or "[]")
    if not isinstance(turns, list):
        # A user's mistake, so no TypeError.
        raise ValueError(f"{turns!r} is no list")  # noqa: TRY004
    asked: list[Asked] = []
    for turn in turns:
        if not isinstance(turn, dict) or _is_missing(turn, "question") or _is_missing(turn, "answer"):
            raise ValueError(f"{turn!r} has no question with an answer")
        asked.append(Asked(turn.get("kind") or "", str(turn["question"]), str(turn["answer"])))
    return asked


def _is_missing(turn: Mapping[str, object], name: str) -> bool:
    return turn.get(name) in (None, "")


def one_of_each_kind(questions: Sequence[Asked], key: bytes) -> list[Asked]:
    """Return one question of each kind, which the sample's key chooses."""
    by_kind: dict[str, list[Asked]] = {}
    for asked in questions:
        by_kind.setdefault(asked.kind, []).append(asked)
    number = int.from_bytes(key, "big")
    return [of_kind[number % len(of_kind)] for of_kind in by_kind.values()]
