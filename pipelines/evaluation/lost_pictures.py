"""The samples that lost most between two evaluations, as pictures: the image, and what each model kept."""

from collections.abc import Iterator, Sequence

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.compared import Comparison
from dualtoken.pipelines.evaluation.comparison import most_lost
from dualtoken.pipelines.evaluation.comparison_page import ShownSample, ShownSeries, render_comparison
from dualtoken.pipelines.evaluation.evaluations import Evaluation
from dualtoken.pipelines.evaluation.sample_pictures import SamplePictures
from dualtoken.pipelines.evaluation.summary import SetResult
from dualtoken.pipelines.inference.networks import prepare_process


def comparison_page(
    comparison: Comparison, a: Evaluation, b: Evaluation, series: Sequence[str], num_samples: int
) -> str:
    """Return the page of a comparison, with the samples that lost most by each of some series."""
    prepare_process(threads=None)
    shown = [ShownSeries(name, list(_shown(a, b, name, num_samples))) for name in series]
    return render_comparison(comparison, shown)


def _shown(a: Evaluation, b: Evaluation, series: str, num_samples: int) -> Iterator[ShownSample]:
    lost = most_lost(a.summary, a.scores, b.summary, b.scores, series, num_samples)
    if not lost:
        return
    keys = {sample.key for sample in lost}
    first = SamplePictures(_result(a, series), keys)
    second = SamplePictures(_result(b, series), keys)
    for sample in lost:
        row = first.row(sample.key)
        yield ShownSample(
            name=row["name"],
            captions=tuple(row["captions"]),
            loss=sample,
            original=first.original(sample.key),
            first=first.reconstruction(sample.key),
            second=second.reconstruction(sample.key),
        )


def _result(evaluation: Evaluation, series: str) -> SetResult:
    for result in evaluation.summary.results:
        if any(result.series(name) == series for name in result.metrics):
            return result
    raise UserError(f"series={series} is not in both evaluations: name one that is")
