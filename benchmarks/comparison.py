"""Seconds that comparing two evaluations takes.

Run: python -m benchmarks.comparison [--samples 50000] [--metrics 20]. Scores are random; half of the metrics
are means, a quarter 0/1, a quarter influences. The second evaluation's rows are in another order. Printed are
the seconds of `compare`, of the worst samples of one series, and the table.
"""

import argparse
import hashlib
import sys
import time

import numpy as np
import pyarrow as pa

from dualtoken.pipelines.evaluation.comparison import compare, most_lost
from dualtoken.pipelines.evaluation.comparison_text import comparison_lines
from dualtoken.pipelines.evaluation.summary import (
    Environment,
    EvaluationSummary,
    MetricValue,
    SetResult,
    Subject,
)

BOUND = 2.0
"""Seconds that 50,000 samples of 20 metrics may take."""
PLACE = ("random", "plain")
CORRELATION = 0.9


def digest(text: str) -> str:
    """Return a hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def columns(num_samples: int, num_metrics: int, seed: int) -> dict[str, np.ndarray]:
    """Return score columns; those of two seeds are correlated."""
    common, own = np.random.default_rng(0), np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for number in range(num_metrics):
        shared = common.standard_normal(num_samples) * CORRELATION
        values = shared + own.standard_normal(num_samples) * (1 - CORRELATION**2) ** 0.5
        kind = ("mean", "mean", "share", "influence")[number % 4]
        if kind == "share":
            values = (values > 0).astype(np.float64)
        if kind == "influence":
            values = values - values.mean()
        found[f"{kind}_{number}"] = values
    return found


def evaluation(
    name: str, scores: dict[str, np.ndarray], keys: list[bytes], order: np.ndarray
) -> tuple[EvaluationSummary, dict[tuple[str, str], pa.Table]]:
    """Return a summary of such columns, and their table in an order of rows."""
    metrics: dict[str, MetricValue] = {}
    table = {"key": pa.array([keys[row] for row in order], pa.binary(16))}
    for metric, values in scores.items():
        is_mean = not metric.startswith("influence")
        value = float(values.mean()) if is_mean else 10.0
        metrics[metric] = MetricValue(
            value=value, n=len(keys), direction="higher", margin=0.01, per_sample=metric, is_mean=is_mean
        )
        table[metric] = pa.array(values[order])
    set_name, protocol = PLACE
    result = SetResult(
        set_name=set_name,
        set_hash=digest("set"),
        protocol=protocol,
        protocol_hash=digest("protocol"),
        protocol_content={},
        metrics=metrics,
        scores=f"scores/{set_name}/{protocol}",
    )
    summary = EvaluationSummary(
        evaluation=name,
        subject=Subject(kind="tokenizer", name=name, digest=digest(name)),
        results=(result,),
        environment=Environment(code=""),
        measured_at="2026-01-01T00:00:00+00:00",
    )
    return summary, {PLACE: pa.table(table)}


def main(arguments: list[str]) -> int:
    """Compare once and print; status 1 says that the bound was not met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--metrics", type=int, default=20)
    options = parser.parse_args(arguments)
    keys = [hashlib.sha256(b"%d" % number).digest()[:16] for number in range(options.samples)]
    straight = np.arange(options.samples)
    shuffled = np.random.default_rng(3).permutation(options.samples)
    a, a_scores = evaluation("a", columns(options.samples, options.metrics, 1), keys, straight)
    b, b_scores = evaluation("b", columns(options.samples, options.metrics, 2), keys, shuffled)
    primary = list(a.metrics())[:8]

    started = time.perf_counter()
    comparison = compare(a, a_scores, b, b_scores, primary)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    most_lost(a, a_scores, b, b_scores, primary[0])
    seconds_of_lost = time.perf_counter() - started

    print("\n".join(comparison_lines(comparison)))
    print()
    print(
        f"compare: {seconds:.2f} s (bound: {BOUND} s); worst samples of one series: {seconds_of_lost:.2f} s"
    )
    return int(seconds > BOUND)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
