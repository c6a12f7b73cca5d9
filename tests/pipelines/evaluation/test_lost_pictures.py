"""Samples that lost most by a unified model's metrics are shown with what both models made of them."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dualtoken.infra.storage import Store
from dualtoken.model.mllm.sampling import Sampling
from dualtoken.model.mllm.saved import OpenedMllm, open_mllm
from dualtoken.pipelines.evaluation.comparison import LostSample, compare
from dualtoken.pipelines.evaluation.comparison_page import ShownSample, ShownSeries
from dualtoken.pipelines.evaluation.evaluations import Evaluation, read_evaluation
from dualtoken.pipelines.evaluation.lost_pictures import _Replied, _shown_series, _Side, comparison_page
from dualtoken.pipelines.evaluation.run_evaluation import ModelPlace
from dualtoken.pipelines.evaluation.sample_pictures import shot
from dualtoken.pipelines.evaluation.sets import read_unit
from dualtoken.pipelines.images.decoding import decode_rgb
from dualtoken.pipelines.images.image_questions import one_of_each_kind, read_questions
from dualtoken.pipelines.inference.unified import DrawSettings, answer, draw_numbered
from tests.helpers.evaluated import config_of, evaluated
from tests.helpers.report_samples import Page
from tests.helpers.taught_mllm import SCENES, canary_mllm, taught_mllm

METRICS = [
    *("answer", "answer_colour", "answer_shuffled", "described_whole", "described_place_shuffled"),
    *("drawn_object", "drawn_colour", "drawn_place_shuffled", "psnr"),
]


class Sides(NamedTuple):
    """A, which was taught, and B, which knows nothing, measured on the same samples."""

    a: Evaluation
    b: Evaluation
    models: tuple[OpenedMllm, OpenedMllm]
    rows: dict[bytes, dict[str, Any]]
    """Rows of the set in order, by key."""

    def shown(self, metric: str) -> ShownSeries:
        return _shown_series((_Side(self.a), _Side(self.b)), f"s/p/{metric}", 3)

    def turned(self) -> "Sides":
        return self._replace(a=self.b, b=self.a, models=self.models[::-1])

    def row(self, shown: ShownSample) -> dict[str, Any]:
        return self.rows[shown.loss.key]

    def next_row(self, shown: ShownSample) -> dict[str, Any]:
        in_order = list(self.rows)
        return self.rows[in_order[(in_order.index(shown.loss.key) + 1) % len(in_order)]]


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    root = tmp_path_factory.mktemp("lost")
    places = taught_mllm(root / "taught"), canary_mllm(root / "canary")
    first, second = (measured(place, root / "results") for place in places)
    folder = next((root / "results/sets/s").iterdir())
    rows = read_unit(Store(str(folder)), "00000", root).to_pylist()
    taught, canary = (open_mllm(place.folder.url) for place in places)
    return Sides(first, second, (taught, canary), {row["key"]: row for row in rows})


def measured(place: ModelPlace, root: Path) -> Evaluation:
    sets = {"s": {"kind": "scenes", "num_images": 2 * SCENES, "questions": True}}
    config = config_of(root, sets, {"p": {"metrics": METRICS, "batch_size": 2}})
    return read_evaluation(evaluated(config, place).folder.url)


def answered(opened: OpenedMllm, row: dict[str, Any], question: str | None) -> str:
    codes = opened.processor.encode_images(decode_rgb(row["image"]))
    return answer(
        opened, {"semantic": codes.semantic.flatten(1, 2), "pixel": codes.pixel.flatten(1, 2)}, question
    )


@pytest.mark.parametrize("metric", ["answer", "answer_colour", "answer_shuffled"])
def test_questions_are_shown_with_both_answers_and_the_true_one(sides: Sides, metric: str) -> None:
    shown = sides.shown(metric)
    for sample in shown.samples:
        row = sides.row(sample)
        asked_about = row
        if metric == "answer_shuffled":
            asked_about = sides.next_row(sample)
        questions = one_of_each_kind(read_questions(row["questions"]), row["key"])
        if metric == "answer_colour":
            questions = [asked for asked in questions if asked.kind == "colour"]
        assert [(reply.question, reply.expected) for reply in sample.replies] == [
            (asked.question, asked.answer) for asked in questions
        ]
        for reply in sample.replies:
            taught, canary = (answered(opened, asked_about, reply.question) for opened in sides.models)
            assert (reply.first, reply.second) == (taught, canary)
        assert sample.pictures[0].alt == f"the image {asked_about['name']}"
        shares = [
            sum(verdict == "good" for verdict in verdicts) / len(questions)
            for verdicts in zip(*(reply.verdicts for reply in sample.replies), strict=True)
        ]
        assert shares == pytest.approx([sample.loss.first, sample.loss.second]), "as it was scored"
    assert shown.samples or metric == "answer_shuffled"
    assert ("control" in shown.note) == (metric == "answer_shuffled" and bool(shown.samples))


def test_descriptions_are_shown_beside_the_caption(sides: Sides) -> None:
    shown = sides.shown("described_whole")
    assert shown.samples
    for sample in shown.samples:
        row = sides.row(sample)
        taught, canary = (answered(opened, row, None) for opened in sides.models)
        assert sample.replies == (("", row["captions"][0], taught, canary),)
        assert sample.captions == (), "it is said once"
        assert sample.pictures[0].alt == f"the image {row['name']}"


def test_a_control_of_descriptions_is_shown_beside_the_next_samples_caption(sides: Sides) -> None:
    either = [(turned, turned.shown("described_place_shuffled")) for turned in (sides, sides.turned())]
    turned, shown = max(either, key=lambda one: len(one[1].samples))  # who loses a control is chance
    assert shown.samples
    assert shown.note.startswith("The image beside its caption, and its description")
    assert shown.note.endswith(". This is a control: the caption is that of the next sample.")
    for sample in shown.samples:
        row = turned.row(sample)
        described = (answered(opened, row, None) for opened in turned.models)
        assert sample.replies == (("", turned.next_row(sample)["captions"][0], *described),)
        assert sample.pictures[0].alt == f"the image {row['name']}"


def test_a_control_of_drawings_is_shown_beside_the_next_samples_image(sides: Sides) -> None:
    settings = DrawSettings(3.0, Sampling(), 0, 2)
    either = [(turned, turned.shown("drawn_place_shuffled")) for turned in (sides, sides.turned())]
    turned, shown = max(either, key=lambda one: len(one[1].samples))
    assert shown.samples
    assert shown.note.startswith("The image beside the drawing of its caption")
    assert shown.note.endswith(". This is a control: the image is that of the next sample.")
    for sample in shown.samples:
        number = int.from_bytes(sample.loss.key, "big")
        assert sample.pictures[0].alt == f"the image {turned.next_row(sample)['name']}"
        for opened, picture in zip(turned.models, sample.pictures[1:], strict=True):
            (drawn,) = draw_numbered(opened, turned.row(sample)["captions"][:1], [number], settings)
            assert picture.source == shot(drawn), "its own drawing"


def test_drawings_are_those_that_were_scored(sides: Sides) -> None:
    settings = DrawSettings(3.0, Sampling(), 0, 2)
    # Neither was taught to draw, so who loses is chance: these are taken as lost.
    lost = [LostSample(key, 1.0, 0.0, 1.0) for key in list(sides.rows)[:2]]
    replied = _Replied((_Side(sides.a), _Side(sides.b)), "s/p/drawn_object", lost)
    for sample in replied.drawings():
        number = int.from_bytes(sample.loss.key, "big")
        for opened, picture in zip(sides.models, sample.pictures[1:], strict=True):
            (drawn,) = draw_numbered(opened, sides.row(sample)["captions"][:1], [number], settings)
            assert picture.source == shot(drawn), "each has its own drawing"
        assert sample.pictures[0].alt == f"the image {sides.row(sample)['name']}"
        assert [picture.label[0] for picture in sample.pictures] == ["i", "A", "B"]


def test_a_page_has_pictures_of_a_tokenizers_metric_and_replies_of_a_unified_models(sides: Sides) -> None:
    (a, b) = (sides.a, sides.b)
    comparison = compare(a.summary, a.scores, b.summary, b.scores, ["s/p/answer"])
    page = Page(comparison_page(comparison, a, b, ["s/p/answer", "s/p/psnr"], 2))
    asked_about = sides.shown("answer").samples[:2]
    assert asked_about
    assert len(page.attributes("img")) == len(asked_about), "both have one tokenizer"
    assert page.texts("p", "empty") == ["No sample is worse in B."]
    assert page.of_tag("dl")
