"""Turns are read from JSON, and chosen by the seed and the sample alone."""

import json
from collections import Counter

import numpy as np
import pytest

from dualtoken.pipelines.loader.turns import Turn, choose_turns, parse_turns


def turns(count: int) -> list[Turn]:
    return [Turn(f"question {number}", f"answer {number}") for number in range(count)]


def test_questions_and_answers_are_read_and_other_keys_ignored() -> None:
    text = '[{"kind": "shape", "question": "what?", "answer": "ring"}, {"answer": "", "question": "why?"}]'
    assert parse_turns(text) == [Turn("what?", "ring"), Turn("why?", "")]


@pytest.mark.parametrize("text", ["", "null", "[]", " [ ] "])
def test_a_row_may_have_no_turns(text: str) -> None:
    assert parse_turns(text) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"question": "a", "answer": "b"}', "JSON, but no list"),
        ('"what?"', "JSON, but no list"),
        ('["what?"]', "a turn without a string as question"),
        ('[{"question": "what?"}]', "a turn without a string as answer"),
        ('[{"question": "how many?", "answer": 3}]', "a turn without a string as answer"),
        ('[{"question": null, "answer": "b"}]', "a turn without a string as question"),
    ],
)
def test_what_holds_no_turns_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        parse_turns(text)
    assert "\n" not in str(refused.value)


def test_a_samples_turns_depend_on_seed_and_sample_alone() -> None:
    samples = np.arange(1000)
    rows = [turns(sample % 7) for sample in samples.tolist()]
    together = choose_turns(3, samples, rows, 2)
    alone = [choose_turns(3, samples[[index]], [rows[index]], 2)[0] for index in range(1000)]
    assert together == alone
    assert choose_turns(4, samples, rows, 2) != together
    assert choose_turns(3, np.empty(0, np.int64), [], 2) == []


def test_all_turns_or_the_most_that_are_asked_for_come_once_in_every_order() -> None:
    samples = np.arange(6000)
    rows = [turns(3)] * len(samples)
    orders = Counter(json.dumps(chosen) for chosen in choose_turns(0, samples, rows, None))
    assert len(orders) == 6
    assert min(orders.values()) > 800
    assert all(sorted(json.loads(order)) == json.loads(json.dumps(turns(3))) for order in orders)
    pairs = Counter(json.dumps(chosen) for chosen in choose_turns(0, samples, rows, 2))
    assert len(pairs) == 6
    assert all(len({tuple(turn) for turn in json.loads(pair)}) == 2 for pair in pairs)


def test_more_turns_than_there_are_is_all_of_them() -> None:
    ((*chosen,),) = choose_turns(0, np.array([5]), [turns(3)], 9)
    assert sorted(chosen) == turns(3)
