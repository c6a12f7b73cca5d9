"""The samples that lost most between two evaluations, as they look and as they were answered.

Of a tokenizer's metric: the image, and what each model kept of it. Of a unified model's: the drawings of
both, or their answers and descriptions beside the true ones.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dualtoken.pipelines.config.evaluation import UNIFIED_METRICS
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.compared import Comparison
from dualtoken.pipelines.evaluation.comparison import LostSample, most_lost
from dualtoken.pipelines.evaluation.comparison_page import (
    ShownPicture,
    ShownReply,
    ShownSample,
    ShownSeries,
    render_comparison,
)
from dualtoken.pipelines.evaluation.evaluations import Evaluation
from dualtoken.pipelines.evaluation.metric_catalogue import SHUFFLED
from dualtoken.pipelines.evaluation.sample_pictures import SamplePictures
from dualtoken.pipelines.evaluation.summary import SetResult
from dualtoken.pipelines.images.image_questions import Asked, one_of_each_kind, read_questions
from dualtoken.pipelines.inference.networks import prepare_process

if TYPE_CHECKING:
    from dualtoken.model.mllm.saved import OpenedMllm
    from dualtoken.pipelines.evaluation.unified_samples import UnifiedSamples

DRAWN = "The image beside the drawing of its caption by A and by B."
DESCRIBED = "The image beside its caption, and its description by A and by B."
ANSWERED = "The image, with the questions that count, their true answers, and those of A and of B."
OF_NEXT = "This is a control: the image is that of the next sample."
AGAINST_NEXT = "This is a control: the caption is that of the next sample."


def comparison_page(
    comparison: Comparison, a: Evaluation, b: Evaluation, series: Sequence[str], num_samples: int
) -> str:
    """Return the page of a comparison, with the samples that lost most by each of some series."""
    prepare_process(threads=None)
    sides = _Side(a), _Side(b)
    shown = [_shown_series(sides, name, num_samples) for name in series]
    return render_comparison(comparison, shown)


class _Side:
    """One of the two evaluations; a unified model is opened once for all series."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self._opened: OpenedMllm | None = None

    def result(self, series: str) -> SetResult:
        for result in self.evaluation.summary.results:
            if any(result.series(name) == series for name in result.metrics):
                return result
        evaluation = self.evaluation.summary.evaluation
        raise UserError(f"series={series} is not in {evaluation}: name one that is")

    def unified(self, result: SetResult, pictures: SamplePictures, keys: Sequence[bytes]) -> "UnifiedSamples":
        # transformers takes seconds, which tokenizers need not wait for.
        from dualtoken.pipelines.evaluation.unified_samples import UnifiedSamples, open_unified  # noqa: PLC0415

        if self._opened is None:
            self._opened = open_unified(result)
        return UnifiedSamples(self._opened, pictures, keys)


_Sides = tuple[_Side, _Side]


def _shown_series(sides: _Sides, series: str, num_samples: int) -> ShownSeries:
    (a, b) = (side.evaluation for side in sides)
    lost = most_lost(a.summary, a.scores, b.summary, b.scores, series, num_samples)
    if not lost:
        return ShownSeries(series, [])
    metric = series.rpartition("/")[2]
    if metric not in UNIFIED_METRICS:
        return ShownSeries(series, list(_reconstructed(sides, series, lost)))
    shown = _Replied(sides, series, lost)
    if metric.startswith("drawn_"):
        return ShownSeries(series, list(shown.drawings()), shown.note(DRAWN, OF_NEXT))
    if metric.startswith("described_"):
        return ShownSeries(series, list(shown.descriptions()), shown.note(DESCRIBED, AGAINST_NEXT))
    return ShownSeries(series, list(shown.answers()), shown.note(ANSWERED, OF_NEXT))


def _reconstructed(sides: _Sides, series: str, lost: Sequence[LostSample]) -> Iterator[ShownSample]:
    keys = {sample.key for sample in lost}
    first, second = (SamplePictures(side.result(series), keys) for side in sides)
    for sample in lost:
        row = first.row(sample.key)
        pictures = (
            _image(first, sample.key),
            ShownPicture(
                first.reconstruction(sample.key), "its reconstruction by A", _valued("A", sample.first)
            ),
            ShownPicture(
                second.reconstruction(sample.key), "its reconstruction by B", _valued("B", sample.second)
            ),
        )
        yield ShownSample(row["name"], tuple(row["captions"]), sample, pictures)


class _Replied:
    """Samples that lost most by a metric of unified models, and what both models make of them."""

    def __init__(self, sides: _Sides, series: str, lost: Sequence[LostSample]) -> None:
        metric = series.rpartition("/")[2]
        self._is_shuffled = metric.endswith(SHUFFLED)
        self._kind = metric.removesuffix(SHUFFLED).partition("_")[2]
        self._lost = lost
        self._keys = [sample.key for sample in lost]
        results = [side.result(series) for side in sides]
        self._others = self._keys
        if self._is_shuffled:
            self._others = _following(sides[0].evaluation, results[0], self._keys)
        shown = list(dict.fromkeys([*self._keys, *self._others]))
        self._models: list[UnifiedSamples] = []
        for side, result in zip(sides, results, strict=True):
            self._pictures = SamplePictures(result, shown)
            self._models.append(side.unified(result, self._pictures, shown))

    def note(self, shown: str, control: str) -> str:
        """Return what is shown, and of a control how it is one."""
        if self._is_shuffled:
            return f"{shown} {control}"
        return shown

    def drawings(self) -> Iterator[ShownSample]:
        first, second = (model.drawings(self._keys) for model in self._models)
        for sample, other, by_a, by_b in zip(self._lost, self._others, first, second, strict=True):
            pictures = (
                _image(self._pictures, other),
                ShownPicture(by_a, "the drawing by A", _valued("A", sample.first)),
                ShownPicture(by_b, "the drawing by B", _valued("B", sample.second)),
            )
            yield self._shown(sample, pictures)

    def descriptions(self) -> Iterator[ShownSample]:
        first, second = (model.descriptions(self._keys) for model in self._models)
        for sample, other, by_a, by_b in zip(self._lost, self._others, first, second, strict=True):
            expected = next(iter(self._pictures.row(other)["captions"]), "")
            reply = ShownReply("", expected, by_a, by_b)
            shown = self._shown(sample, (_image(self._pictures, sample.key),), (reply,))
            yield shown._replace(captions=())  # the caption is there already

    def answers(self) -> Iterator[ShownSample]:
        for sample, other in zip(self._lost, self._others, strict=True):
            questions = self._questions(sample.key)
            first, second = (model.answers(other, questions) for model in self._models)
            replies: list[ShownReply] = []
            for asked, by_a, by_b in zip(questions, first, second, strict=True):
                replies.append(ShownReply(asked.question, asked.answer, by_a, by_b))
            yield self._shown(sample, (_image(self._pictures, other),), tuple(replies))

    def _questions(self, key: bytes) -> list[Asked]:
        """Return the questions about a sample that the metric is made from."""
        questions = one_of_each_kind(read_questions(self._pictures.row(key)["questions"]), key)
        return [asked for asked in questions if self._kind in ("", asked.kind)]

    def _shown(
        self, sample: LostSample, pictures: tuple[ShownPicture, ...], replies: tuple[ShownReply, ...] = ()
    ) -> ShownSample:
        row = self._pictures.row(sample.key)
        return ShownSample(row["name"], tuple(row["captions"]), sample, pictures, replies)


def _following(evaluation: Evaluation, result: SetResult, keys: Sequence[bytes]) -> list[bytes]:
    """Return the set's next sample after each, which controls are taken against."""
    in_order = evaluation.scores[result.set_name, result.protocol]["key"].to_pylist()
    places = {key: place for place, key in enumerate(in_order)}
    return [in_order[(places[key] + 1) % len(in_order)] for key in keys]


def _image(pictures: SamplePictures, key: bytes) -> ShownPicture:
    return ShownPicture(pictures.original(key), f"the image {pictures.row(key)['name']}", "image")


def _valued(letter: str, value: float) -> str:
    return f"{letter} {value:.4g}"
