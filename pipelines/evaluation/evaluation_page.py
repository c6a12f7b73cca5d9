"""The page of an evaluation: its numbers, how the samples spread, and pictures from the worst to the best.

Static HTML without a script: nothing is asked of the network, and every text is escaped.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import yaml

from dualtoken.pipelines.evaluation.charts import Bar, bar_chart
from dualtoken.pipelines.evaluation.evaluation_card import shown, title
from dualtoken.pipelines.evaluation.evaluations import Evaluation
from dualtoken.pipelines.evaluation.pages import page_environment
from dualtoken.pipelines.evaluation.report_page import count, day
from dualtoken.pipelines.evaluation.sample_pictures import SamplePictures
from dualtoken.pipelines.evaluation.summary import MetricValue, SetResult
from dualtoken.pipelines.inference.networks import prepare_process

TEMPLATE = "evaluation.html.jinja"
PAGE = "index.html"
SAMPLES_SHOWN = 12
"""Reconstructions that a page shows of each set that has a metric of them."""
_SORTED_BY = ("psnr", "ssim", "lpips", "dists", "ms_ssim")
"""Metrics that reconstructions are shown in the order of, the first that a result has."""
_BINS = 8
"""Bars of a histogram."""


class ShownReconstruction(NamedTuple):
    """One sample of the page."""

    name: str
    caption: str
    value: float
    original: str
    """A `data:` URL."""
    reconstruction: str


class ShownResult(NamedTuple):
    """A set by a protocol."""

    result: SetResult
    protocol: str
    """The protocol as YAML."""
    spreads: list[tuple[str, str]]
    """Titles and charts of how the samples spread."""
    sorted_by: str
    """Metric that the reconstructions stand in the order of; empty where there are none."""
    reconstructions: list[ShownReconstruction]


def evaluation_page(evaluation: Evaluation, num_samples: int = SAMPLES_SHOWN) -> str:
    """Return the page of a finished evaluation; opens the model again for its pictures."""
    prepare_process(threads=None)
    results = [_shown_result(evaluation, result, num_samples) for result in evaluation.summary.results]
    environment = page_environment()
    environment.filters.update(day=day, count=count, metric_title=title, measured_value=shown)
    return environment.get_template(TEMPLATE).render(summary=evaluation.summary, results=results)


def _shown_result(evaluation: Evaluation, result: SetResult, num_samples: int) -> ShownResult:
    table = evaluation.scores[result.set_name, result.protocol]
    spreads: list[tuple[str, str]] = []
    for name, value in result.metrics.items():
        chart = _spread(table, name, value)
        if chart:
            spreads.append((title(name), chart))
    sorted_by = next((name for name in _SORTED_BY if name in result.metrics), "")
    reconstructions: list[ShownReconstruction] = []
    if sorted_by:
        reconstructions = list(_reconstructions(table, result, sorted_by, num_samples))
    return ShownResult(
        result=result,
        protocol=yaml.safe_dump(result.protocol_content, sort_keys=False, allow_unicode=True),
        spreads=spreads,
        sorted_by=sorted_by,
        reconstructions=reconstructions,
    )


def _spread(table: pa.Table, name: str, value: MetricValue) -> str:
    """Return a histogram of the samples' values; empty for values that are right or wrong alone."""
    if not value.is_mean or value.per_sample is None:
        return ""
    values = table[value.per_sample].drop_null().to_numpy()
    if len(np.unique(values)) <= 5:
        return ""
    counts, edges = np.histogram(values, _BINS)
    bars: list[Bar] = []
    for number, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        label = f"{low:.3g}"
        bars.append(
            Bar(
                label=label, value=float(number), text=str(number), title=f"{low:.4g} to {high:.4g}: {number}"
            )
        )
    return bar_chart(bars, label=f"Samples by {title(name)}", maximum=float(counts.max()), tone="pixel")


def _reconstructions(
    table: pa.Table, result: SetResult, metric: str, num_samples: int
) -> Iterator[ShownReconstruction]:
    """Yield samples evenly spaced from the worst to the best."""
    values = table[metric].to_numpy()
    worst_first = np.argsort(
        values if result.metrics[metric].direction == "higher" else -values, kind="stable"
    )
    places = np.unique(np.linspace(0, len(values) - 1, min(num_samples, len(values))).round().astype(int))
    rows: Sequence[int] = worst_first[places].tolist()
    keys = table["key"].to_pylist()
    pictures = SamplePictures(result, {keys[row] for row in rows})
    for row in rows:
        sample = pictures.row(keys[row])
        yield ShownReconstruction(
            name=sample["name"],
            caption=next(iter(sample["captions"]), ""),
            value=float(values[row]),
            original=pictures.original(keys[row]),
            reconstruction=pictures.reconstruction(keys[row]),
        )
