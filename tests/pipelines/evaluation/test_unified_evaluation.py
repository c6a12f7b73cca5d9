"""Evaluations of unified models: what plain code finds, the same bits in any order, and mistakes named."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dualtoken.infra.storage import Store
from dualtoken.model.hub.model_name import VISION_FOLDER
from dualtoken.model.mllm.sampling import Sampling
from dualtoken.model.mllm.saved import OpenedMllm, open_mllm
from dualtoken.pipelines.config.evaluation import EvaluationConfig, EvaluationProtocol, MeasureConfig
from dualtoken.pipelines.config.nightly import NightlySpec
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.comparison import compare
from dualtoken.pipelines.evaluation.evaluations import read_evaluation, read_scores
from dualtoken.pipelines.evaluation.metric_catalogue import require_size
from dualtoken.pipelines.evaluation.run_evaluation import ModelPlace
from dualtoken.pipelines.evaluation.saved_subject import SavedSubject, model_digest, require_kind
from dualtoken.pipelines.evaluation.scene_oracle import read_scenes
from dualtoken.pipelines.evaluation.scene_readings import anywhere_shares, attribute_shares
from dualtoken.pipelines.evaluation.sets import read_unit
from dualtoken.pipelines.evaluation.summary import SetResult
from dualtoken.pipelines.images.decoding import decode_rgb
from dualtoken.pipelines.images.image_questions import one_of_each_kind, read_questions
from dualtoken.pipelines.images.scene_grammar import DescribedObject, parse_caption
from dualtoken.pipelines.inference.unified import DrawSettings, answer, draw_numbered
from dualtoken.pipelines.nightly import measure
from dualtoken.pipelines.nightly.contracts import Nightly
from dualtoken.pipelines.nightly.history import History
from dualtoken.pipelines.nightly.run import run_night
from dualtoken.pipelines.nightly.session import Session
from dualtoken.pipelines.nightly.states import night_states
from dualtoken.pipelines.nightly.wiring import open_chart, require_measurable
from tests.helpers.evaluated import Backwards, StopsAfter, canary, config_of, evaluated
from tests.helpers.taught_mllm import SCENES, canary_mllm, taught_mllm

NUM = 7
METRICS = [
    "answer",
    "answer_shuffled",
    "answer_place",
    "described_grammar",
    "described_place_shuffled",
    "drawn_place",
    "drawn_object",
    "drawn_binding",
    "drawn_place_shuffled",
    "psnr",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelPlace:
    return canary_mllm(tmp_path_factory.mktemp("canary"))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> ModelPlace:
    return taught_mllm(tmp_path_factory.mktemp("taught"))


def config_for(root: Path, metrics: Sequence[str] = METRICS, num_images: int = NUM) -> EvaluationConfig:
    sets = {"s": {"kind": "scenes", "num_images": num_images, "questions": True}}
    return config_of(root, sets, {"p": {"metrics": list(metrics), "batch_size": 4}}, unit_rows=5)


@pytest.fixture(scope="module")
def whole(model: ModelPlace, tmp_path_factory: pytest.TempPathFactory) -> SetResult:
    root = tmp_path_factory.mktemp("whole")
    return evaluated(config_for(root), model).summary.results[0]


def rows_of(result: SetResult, scratch: Path) -> list[dict[str, Any]]:
    """Return the samples of a result's set, in order."""
    folder = next((Path(result.scores).parents[3] / "sets/s").iterdir())
    rows: list[dict[str, Any]] = []
    for unit in sorted(path.stem for path in (folder / "data").iterdir()):
        rows += read_unit(Store(str(folder)), unit, scratch).to_pylist()
    return rows


def objects(row: dict[str, Any]) -> list[dict[str, Any]]:
    return json.loads(row["description"])["objects"]


def codes_of(opened: OpenedMllm, row: dict[str, Any]) -> dict[str, Any]:
    codes = opened.processor.encode_images(decode_rgb(row["image"]))
    return {"semantic": codes.semantic.flatten(1, 2), "pixel": codes.pixel.flatten(1, 2)}


def test_an_answer_is_right_where_the_model_gives_it_word_for_word(
    taught: ModelPlace, tmp_path: Path
) -> None:
    metrics = ["answer_shape", "answer_shape_shuffled", "answer_colour", "answer_size"]
    config = config_for(tmp_path, metrics, SCENES)
    (result,) = evaluated(config, taught).summary.results
    table = read_scores(result)
    rows = rows_of(result, tmp_path)
    opened = open_mllm(taught.folder.url)
    for number, row in enumerate(rows):
        own = codes_of(opened, row)
        other = codes_of(opened, rows[(number + 1) % len(rows)])
        for asked in one_of_each_kind(read_questions(row["questions"]), row["key"]):
            if asked.kind not in ("shape", "colour", "size"):
                continue
            expected = float(answer(opened, own, asked.question) == asked.answer)
            assert table[f"answer_{asked.kind}"][number].as_py() == expected
            if asked.kind == "shape":
                expected = float(answer(opened, other, asked.question) == asked.answer)
                assert table["answer_shape_shuffled"][number].as_py() == expected
    taught_shares = [result.metrics[name].value for name in ("answer_shape", "answer_colour", "answer_size")]
    assert np.mean(taught_shares) > 0.7, "it has been taught these answers"


def test_drawings_and_their_controls_are_those_of_plain_code(
    model: ModelPlace, whole: SetResult, tmp_path: Path
) -> None:
    table = read_scores(whole)
    rows = rows_of(whole, tmp_path)
    opened = open_mllm(model.folder.url)
    for number, row in enumerate(rows):
        # Alone, but in a batch of the protocol's size.
        settings = DrawSettings(3.0, Sampling(), 0, 4)
        drawn = draw_numbered(opened, row["captions"][:1], [int.from_bytes(row["key"], "big")], settings)
        [found] = read_scenes(drawn)
        following = rows[(number + 1) % len(rows)]
        scores = {name: table[name][number].as_py() for name in METRICS}
        assert scores["drawn_place"] == attribute_shares(found, objects(row))["place"]
        assert scores["drawn_place_shuffled"] == attribute_shares(found, objects(following))["place"]
        assert scores["drawn_object"] == anywhere_shares(found, objects(row))["object"]
        assert scores["drawn_binding"] == anywhere_shares(found, objects(row))["binding"]
    assert 0 < whole.metrics["drawn_place"].value < 1


def test_descriptions_and_their_controls_are_those_of_plain_code(taught: ModelPlace, tmp_path: Path) -> None:
    metrics = ["described_grammar", "described_colour", "described_whole", "described_colour_shuffled"]
    (result,) = evaluated(config_for(tmp_path, metrics), taught).summary.results
    table = read_scores(result)
    rows = rows_of(result, tmp_path)
    opened = open_mllm(taught.folder.url)
    for number, row in enumerate(rows):
        parsed = parse_caption(answer(opened, codes_of(opened, row), None))
        own = attribute_shares(parsed or (), objects(row))
        other = attribute_shares(parsed or (), objects(rows[(number + 1) % len(rows)]))
        scores = {name: table[name][number].as_py() for name in metrics}
        assert scores == {
            "described_grammar": float(parsed is not None),
            "described_colour": own["colour"],
            "described_whole": own["whole"],
            "described_colour_shuffled": other["colour"],
        }
    assert 0 < result.metrics["described_whole"].value <= result.metrics["described_grammar"].value < 1


def test_an_object_is_bound_only_where_one_has_all_of_its_attributes() -> None:
    told = [
        {"shape": "ring", "colour": "red", "size": "small", "quadrant": "top left"},
        {"shape": "cross", "colour": "blue", "size": "large", "quadrant": "top right"},
    ]
    swapped = [
        DescribedObject("ring", "blue", "small", "top left"),
        DescribedObject("cross", "red", "large", "top right"),
    ]
    assert anywhere_shares(swapped, told) == {"object": 1.0, "binding": 0.0}
    moved = [DescribedObject("ring", "red", "small", "bottom right")] * 2
    assert anywhere_shares(moved, told) == {"object": 0.5, "binding": 0.5}
    assert attribute_shares(moved, told)["place"] == 0
    assert attribute_shares(swapped, told) == {
        "place": 1.0,
        "shape": 1.0,
        "colour": 0.0,
        "size": 1.0,
        "whole": 0.0,
    }


def test_bits_depend_on_no_order_no_kill_and_no_unit(
    model: ModelPlace, whole: SetResult, tmp_path: Path
) -> None:
    def table_of(root: str, **changes: object) -> pa.Table:
        config = config_for(tmp_path / root).model_copy(update=changes)
        return read_scores(evaluated(config, model, Backwards()).summary.results[0])

    expected = read_scores(whole)
    assert table_of("backwards") == expected
    assert table_of("other-units", unit_rows=3) == expected
    killed = config_for(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        evaluated(killed, model, StopsAfter(1))
    assert read_scores(evaluated(killed, model, StopsAfter(1)).summary.results[0]) == expected


def test_metrics_of_tokenizers_go_through_the_models_own_tokenizer(
    model: ModelPlace, whole: SetResult, tmp_path: Path
) -> None:
    own = ModelPlace("tokenizer", model.folder.at(VISION_FOLDER), model.teacher)
    summary = evaluated(config_for(tmp_path, ["psnr"]), own).summary
    assert summary.subject.kind == "tokenizer"
    assert read_scores(summary.results[0])["psnr"] == read_scores(whole)["psnr"]


def test_another_tokenizer_in_the_folder_is_another_model(model: ModelPlace, tmp_path: Path) -> None:
    place = canary_mllm(tmp_path)
    assert model_digest(place.folder) == model_digest(model.folder)
    config = Path(place.folder.url) / VISION_FOLDER / "config.json"
    config.write_text(config.read_text() + "\n")
    assert model_digest(place.folder) != model_digest(model.folder)


def test_a_comparison_finds_what_was_learnt(model: ModelPlace, taught: ModelPlace, tmp_path: Path) -> None:
    config = config_for(tmp_path, ["answer_shape", "answer_colour", "drawn_place"], SCENES)
    a = read_evaluation(evaluated(config, model).folder.url)
    b = read_evaluation(evaluated(config, taught).folder.url)
    comparison = compare(a.summary, a.scores, b.summary, b.scores, None)
    differences = {one.series: one.difference for one in comparison.series}
    assert differences.keys() == {"s/p/answer_shape", "s/p/answer_colour", "s/p/drawn_place"}
    before = a.summary.metrics()["s/p/answer_shape"].value
    learnt = b.summary.metrics()["s/p/answer_shape"].value
    assert differences["s/p/answer_shape"] == learnt - before > 0


def test_two_nights_of_a_unified_model_are_judged(taught: ModelPlace, tmp_path: Path) -> None:
    values = {
        "name": "few",
        "in_process": True,
        "sets": {"s": {"kind": "scenes", "num_images": 4, "questions": True}},
        "protocols": {"p": {"metrics": ["answer_shape", "drawn_place", "psnr"], "batch_size": 4}},
    }
    (tmp_path / "evaluation.yaml").write_text(json.dumps(values))
    spec = NightlySpec.model_validate(
        {
            "name": "few",
            "root": str(tmp_path / "history"),
            "schedule": {"cron": "0 2 * * *", "timezone": "UTC", "start": "2026-11-01"},
            "subjects": {"model": {"kind": "folder", "folder": taught.folder.url}},
            "evaluation": str(tmp_path / "evaluation.yaml"),
            "sets": ["s"],
            "protocols": ["p"],
            "primary": ["s/p/answer_shape", "s/p/drawn_place"],
        }
    )
    now = datetime(2026, 11, 1, 3, tzinfo=UTC)
    for day in (1, 2):
        now = now.replace(day=day)
        nightly = Nightly(
            measure.measure, open_chart({}), lambda now=now: now, lambda _: None, require_measurable
        )
        run_night(Session(spec, nightly, History(spec.root, spec.name)))
    snapshot = History(spec.root, spec.name).read()
    states = night_states(snapshot, now, open_chart({}).version)
    assert [state.night for state in states[:2]] == ["2026-11-01", "2026-11-02"]
    assert [state.state for state in states[:2]] == ["ok", "ok"]
    nights = [snapshot.files(f"2026-11-{day:02d}").night for day in (1, 2)]
    assert nights[0] is not None
    assert nights[1] is not None
    for name in ("model", "canary"):
        assert nights[0].subjects[name].scores == nights[1].subjects[name].scores
    assert nights[1].subjects["model"].values["s/p/answer_shape"].value > 0.5


def test_mistakes_are_told_in_one_line(model: ModelPlace, tmp_path: Path) -> None:
    def error_of(config: EvaluationConfig, model: ModelPlace = model) -> str:
        with pytest.raises(UserError) as error:
            evaluated(config, model)
        assert "\n" not in str(error.value)
        return str(error.value)

    tokenizer = canary(tmp_path / "tokenizer")
    assert (
        "protocols.p.metrics: answer needs a unified model, and canary is a tokenizer: evaluate a folder"
        in error_of(config_for(tmp_path), tokenizer)
    )
    silent = config_of(
        tmp_path, {"s": {"kind": "scenes", "num_images": 4}}, {"p": {"metrics": ["answer_dots"]}}
    )
    assert (
        "answer_dots needs dots questions, and the set s has captions, scenes: set questions=true of scenes"
        in error_of(silent)
    )
    alone = config_for(tmp_path, ["answer_shuffled"], 1)
    assert "sets.s has one image, and answer_shuffled needs two" in error_of(alone)
    with pytest.raises(UserError, match="drawn_place needs drawings, and it predicts text alone"):
        require_kind(SavedSubject("mllm", model.folder), "it", "p", ["drawn_place"])
    for metric in ("drawn_place", "objects_read"):
        protocol = EvaluationProtocol(metrics=(metric,))
        require_size(protocol, "p", 64)
        with pytest.raises(UserError, match=f"p.metrics: {metric} needs scenes of 64 pixels a side, the tok"):
            require_size(protocol, "p", 128)
    with pytest.raises(ValueError, match=r"answer needs a unified model, and a run measures its tokenizer"):
        MeasureConfig.model_validate({"protocols": {"p": {"metrics": ["answer"]}}})
