"""Faults planted in how a unified model is evaluated: its canary sees them in texts and drawings alike."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dualtoken.pipelines.evaluation import unified_columns
from dualtoken.pipelines.evaluation.metric_catalogue import SHUFFLED
from dualtoken.pipelines.evaluation.summary import SetResult
from tests.helpers.evaluated import config_of, evaluated
from tests.helpers.fault_nights import FIRST, SECOND, FaultNights, changed
from tests.helpers.taught_mllm import canary_mllm

KINDS = ("shape", "colour", "size", "place", "count", "dots")
METRICS = ["answer", "answer_shuffled", "described_grammar", "described_place", "drawn_place", "drawn_object"]
SETS = {"s": {"kind": "scenes", "num_images": 8, "questions": True}}
PROTOCOLS = {"p": {"metrics": METRICS, "batch_size": 8}}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> FaultNights:
    """A first night, before any fault."""
    folder = tmp_path_factory.mktemp("first")
    model = Path(canary_mllm(folder / "model").folder.url)
    nights = FaultNights(folder, model, "s/p/answer")
    nights.write(SETS, PROTOCOLS)
    assert nights.run(FIRST).state == "ok"
    return nights


@pytest.fixture
def nights(first: FaultNights, tmp_path: Path) -> FaultNights:
    shutil.copytree(first.folder / "history", tmp_path / "history")
    nights = FaultNights(tmp_path, first.model, "s/p/answer")
    nights.write(SETS, PROTOCOLS)
    return nights


def _mirrored(read: Callable[..., Any]) -> Callable[..., Any]:
    return lambda pictures: read(pictures.flip(-1))


def _without_the_first(shares: Callable[..., Any]) -> Callable[..., Any]:
    return lambda found, told: shares(found[1:], told)


def _other_noise(draw: Callable[..., Any]) -> Callable[..., Any]:
    return lambda opened, captions, numbers, settings: draw(
        opened, captions, [number + 1 for number in numbers], settings
    )


def _one_place_on(are_answered: Callable[..., list[bool]]) -> Callable[..., list[bool]]:
    def answered(*given: Any) -> list[bool]:
        found = are_answered(*given)
        return [*found[1:], *found[:1]]

    return answered


def _all_wrong(are_answered: Callable[..., list[bool]]) -> Callable[..., list[bool]]:
    return lambda *given: [False] * len(are_answered(*given))


def _cut(describe: Callable[..., list[str]]) -> Callable[..., list[str]]:
    return lambda *given: [text[:-1] for text in describe(*given)]


def _turned(parse: Callable[..., Any]) -> Callable[..., Any]:
    def parsed(text: str) -> Sequence[Any] | None:
        found = parse(text)
        return found and [one._replace(quadrant=one.quadrant.replace("left", "right")) for one in found]

    return parsed


FAULTS = {
    "the oracle reads mirrored drawings": (
        changed(unified_columns, "read_scenes_alike", _mirrored),
        "s/p/drawn_place",
    ),
    "objects that are drawn are lost": (
        changed(unified_columns, "attribute_shares", _without_the_first),
        "s/p/drawn_place",
    ),
    "noise of other samples": (changed(unified_columns, "draw_numbered", _other_noise), "s/p/drawn_"),
    "answers of other questions": (
        changed(unified_columns, "are_answered", _one_place_on),
        "in single samples",
    ),
    "no answer is right": (changed(unified_columns, "are_answered", _all_wrong), "s/p/answer"),
    "descriptions are cut": (changed(unified_columns, "describe", _cut), "s/p/described_grammar"),
    "places are read otherwise": (
        changed(unified_columns, "parse_caption", _turned),
        "s/p/described_place",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_texts_or_drawings_is_told_and_not_laid_on_the_model(
    fault: str, nights: FaultNights, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch, series = FAULTS[fault]
    patch(monkeypatch)
    state = nights.run(SECOND)
    assert state.state == "evaluator-changed", state.reason
    assert "the canary scores otherwise than on 2026-11-01" in state.reason
    assert series in state.reason, state.reason


def test_the_canary_is_right_and_wrong_about_every_kind_of_question_and_thing(tmp_path: Path) -> None:
    metrics = [f"answer_{kind}" for kind in KINDS]
    metrics += ["described_grammar", "described_place", "described_size", "drawn_place", "drawn_object"]
    metrics += [f"{name}{SHUFFLED}" for name in ("answer_size", "described_place", "drawn_place")]
    sets = {"s": {"kind": "scenes", "num_images": 64, "questions": True}}
    config = config_of(tmp_path / "root", sets, {"p": {"metrics": metrics, "batch_size": 64}})
    result: SetResult = evaluated(config, canary_mllm(tmp_path)).summary.results[0]
    values = {name: metric.value for name, metric in result.metrics.items()}
    assert all(0.05 < value < 0.95 for value in values.values()), values
