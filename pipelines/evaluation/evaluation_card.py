"""An evaluation for people: lines for a terminal, and a Markdown card with Hugging Face's `model-index`."""

from collections.abc import Iterator

import yaml

from dualtoken.pipelines.evaluation.metric_catalogue import CATALOGUE, SHARE
from dualtoken.pipelines.evaluation.summary import EvaluationSummary, MetricValue, SetResult

_TASKS = {"tokenizer": "image-feature-extraction", "mllm": "image-text-to-text"}
"""The hub's name of what a kind of model does."""


def shown(value: MetricValue) -> str:
    """Return a value with its unit and half its 95 % interval, such as `26.31 ± 0.05 dB`."""
    if value.unit == SHARE:
        factor, digits, unit = 100, 1, "%"
    else:
        factor, digits, unit = 1, 3 if abs(value.value) < 10 else 2, value.unit
    text = f"{factor * value.value:.{digits}f}"
    if value.low is not None and value.high is not None:
        text += f" ± {factor * (value.high - value.low) / 2:.{digits}f}"
    return f"{text} {unit}".strip()


def lines(summary: EvaluationSummary) -> Iterator[str]:
    """Yield the lines that `evaluate` ends with: a table for each set and protocol."""
    for result in summary.results:
        num_samples = next(iter(result.metrics.values())).n
        yield f"{result.set_name} by {result.protocol} ({result.protocol_hash[:12]}), {num_samples} images"
        width = max(len(title(name)) for name in result.metrics)
        for name, value in result.metrics.items():
            yield f"  {title(name):{width}}  {shown(value)}"
    yield from summary.notes


def card(summary: EvaluationSummary, place: str) -> str:
    """Return an evaluation's card."""
    head = yaml.safe_dump({"model-index": [_index(summary)]}, sort_keys=False, allow_unicode=True)
    origin = (
        f"Model {summary.subject.digest[:12]}, evaluation {summary.evaluation} in `{place}`, "
        f"measured {summary.measured_at} by code {summary.environment.code[:12]} on "
        f"{summary.environment.device}. Intervals hold 95 %, over samples.\n"
    )
    parts = [f"---\n{head}---\n", f"# Evaluation of {summary.subject.name}\n", origin]
    for result in summary.results:
        parts.append("\n".join(_table(result)) + "\n")
    if summary.notes:
        parts.append("\n".join(f"- {note}" for note in summary.notes) + "\n")
    return "\n".join(parts)


def _table(result: SetResult) -> Iterator[str]:
    yield f"## {result.set_name}, {result.protocol}"
    yield ""
    yield f"Set {result.set_hash[:12]}, protocol {result.protocol_hash[:12]}, scores in `{result.scores}`."
    yield ""
    yield "| metric | value | samples | better | margin |"
    yield "|---|---|---|---|---|"
    for name, value in result.metrics.items():
        margin = f"{value.margin * 100:g} points" if value.unit == SHARE else f"{value.margin:g} {value.unit}"
        yield (
            f"| {title(name)} (`{name}`) | {shown(value)} | {value.n} | {value.direction} | "
            f"{margin.strip()} |"
        )


def title(name: str) -> str:
    """Return a metric's name for people."""
    metrics = {str(known): metric for known, metric in CATALOGUE.items()}
    return metrics[name].title if name in metrics else name


def _index(summary: EvaluationSummary) -> dict[str, object]:
    """Return the card's `model-index`, with each number's protocol."""
    results: list[dict[str, object]] = []
    for result in summary.results:
        metrics: list[dict[str, object]] = []
        for name, value in result.metrics.items():
            metrics.append({"type": name, "name": title(name), "value": value.value})
        results.append(
            {
                "task": {"type": _TASKS[summary.subject.kind]},
                "dataset": {
                    "type": result.set_name,
                    "name": result.set_name,
                    "revision": result.set_hash,
                },
                "metrics": metrics,
                "source": {"name": f"protocol {result.protocol} {result.protocol_hash}"},
            }
        )
    return {"name": summary.subject.name, "results": results}
