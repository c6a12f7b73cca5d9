"""Samples of two evaluations, paired by their keys; whatever does not pair is refused by name."""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.summary import SCHEMA, EvaluationSummary, MetricValue, SetResult

KEY = "key"
CLUSTER = "cluster"
KEY_BYTES = 16
SAME_VALUE = 1e-6
"""Relative difference of a mean and its column's mean that two ways of adding up may give."""
HASH_SHOWN = 12
ABSENT = object()
"""Value of a field that one of two documents lacks."""

Scores = Mapping[tuple[str, str], pa.Table]
"""Score tables by set and protocol: `key`, perhaps `cluster`, and a float64 column for each metric."""


class PairedSamples(NamedTuple):
    """Rows of two score tables in the order of their keys."""

    keys: NDArray[np.bytes_]
    first_rows: NDArray[np.int64]
    second_rows: NDArray[np.int64]
    clusters: NDArray[np.generic] | None

    def scored(self, pair: "Pair", first: pa.Table, second: pa.Table) -> "PairedSamples":
        """Return the samples without those that a metric leaves out, such as what a probe learns from.

        These are null in both score tables.
        """
        is_left_out = _is_null(first, pair.first, self.first_rows) & _is_null(
            second, pair.second, self.second_rows
        )
        if not is_left_out.any():
            return self
        clusters = None if self.clusters is None else self.clusters[~is_left_out]
        return PairedSamples(
            self.keys[~is_left_out], self.first_rows[~is_left_out], self.second_rows[~is_left_out], clusters
        )


def _is_null(table: pa.Table, value: MetricValue, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    if value.per_sample is None or value.per_sample not in table.column_names:
        return np.zeros(len(rows), np.bool_)
    return table[value.per_sample].is_null().to_numpy()[rows]


class Pair(NamedTuple):
    """A metric of both evaluations."""

    series: str
    first: MetricValue
    second: MetricValue

    @property
    def has_scores(self) -> bool:
        """Whether each sample's part of both values is known."""
        return self.first.per_sample is not None and self.second.per_sample is not None


def check_schemas(*summaries: EvaluationSummary) -> None:
    """Raise `UserError` for a summary that is newer than this program."""
    for summary in summaries:
        if summary.schema_version > SCHEMA:
            raise UserError(
                f"the evaluation {summary.evaluation} has schema_version={summary.schema_version}, this "
                f"program reads up to {SCHEMA}: compare with the program that wrote it"
            )


def paired_results(first: EvaluationSummary, second: EvaluationSummary) -> list[tuple[SetResult, SetResult]]:
    """Return the results of the sets and protocols that both have.

    Raises `UserError` where there are none, or where set or protocol are other ones by the same name.
    """
    check_schemas(first, second)
    others = {(result.set_name, result.protocol): result for result in second.results}
    pairs: list[tuple[SetResult, SetResult]] = []
    for result in first.results:
        other = others.get((result.set_name, result.protocol))
        if other is not None:
            check_comparable(result, other)
            pairs.append((result, other))
    if not pairs:
        ours = ", ".join(f"{result.set_name}/{result.protocol}" for result in first.results)
        theirs = ", ".join(f"{result.set_name}/{result.protocol}" for result in second.results)
        raise UserError(f"no set and protocol is in both: A has {ours}, B has {theirs}: evaluate both by one")
    return pairs


def check_comparable(first: SetResult, second: SetResult) -> None:
    """Raise `UserError`, which names the field that differs, unless set and protocol are the same."""
    place = f"{first.set_name}/{first.protocol}"
    if first.set_hash != second.set_hash:
        raise UserError(
            f"{place}: set_hash is {first.set_hash[:HASH_SHOWN]} in A and {second.set_hash[:HASH_SHOWN]} "
            "in B: evaluate both on the same images, labels and captions"
        )
    for field, ours, theirs in differing_fields(first.protocol_content, second.protocol_content):
        raise UserError(
            f"{place}: {field} is {ours} in A and {theirs} in B: evaluate both by the same protocol"
        )
    if first.protocol_hash != second.protocol_hash:
        raise UserError(
            f"{place}: protocol_hash is {first.protocol_hash[:HASH_SHOWN]} in A and "
            f"{second.protocol_hash[:HASH_SHOWN]} in B, though protocol_content is the same: one summary is "
            "damaged; evaluate once more"
        )


def differing_fields(
    first: object, second: object, path: str = "protocol_content"
) -> Iterator[tuple[str, str, str]]:
    """Yield each field of two JSON documents that differs: its path, and both values as text."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for name in sorted({*first, *second}):
            ours = first.get(name, ABSENT)
            theirs = second.get(name, ABSENT)
            yield from differing_fields(ours, theirs, f"{path}.{name}")
    elif isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        for place, (ours, theirs) in enumerate(zip(first, second, strict=True)):
            yield from differing_fields(ours, theirs, f"{path}[{place}]")
    elif first != second or isinstance(first, bool) != isinstance(second, bool):
        yield path, _shown(first), _shown(second)


def _shown(value: object) -> str:
    return "absent" if value is ABSENT else repr(value)


def paired_metrics(first: SetResult, second: SetResult) -> list[Pair]:
    """Return the metrics that both results have; raises `UserError` if one is defined in two ways."""
    pairs: list[Pair] = []
    for name, ours in first.metrics.items():
        theirs = second.metrics.get(name)
        if theirs is None:
            continue
        series = first.series(name)
        for field in ("direction", "unit", "is_mean"):
            if getattr(ours, field) != getattr(theirs, field):
                raise UserError(
                    f"{series}: {field} is {getattr(ours, field)!r} in A and {getattr(theirs, field)!r} in "
                    "B: evaluate both by the same program"
                )
        if not (math.isfinite(ours.value) and math.isfinite(theirs.value)):
            raise UserError(
                f"{series} is {ours.value} in A and {theirs.value} in B: evaluate once more, or leave it out"
            )
        pairs.append(Pair(series, ours, theirs))
    return pairs


def scores_of(scores: Scores, result: SetResult, side: str) -> pa.Table:
    """Return a result's score table."""
    table = scores.get((result.set_name, result.protocol))
    if table is None:
        raise UserError(f"{side} has no scores of {result.set_name}/{result.protocol}: give their table")
    return table


def pair_samples(first: pa.Table, second: pa.Table, place: str) -> PairedSamples:
    """Pair the rows of two tables by key; raises `UserError` unless both have the same keys, each once."""
    first_keys = _keys(first, f"{place} of A")
    second_keys = _keys(second, f"{place} of B")
    first_rows = np.argsort(first_keys, kind="stable")
    second_rows = np.argsort(second_keys, kind="stable")
    keys = first_keys[first_rows]
    if not np.array_equal(keys, second_keys[second_rows]):
        raise UserError(_unpaired(first_keys, second_keys, place))
    clusters = _clusters(first, first_rows, f"{place} of A")
    others = _clusters(second, second_rows, f"{place} of B")
    if clusters is not None and others is not None and not np.array_equal(clusters, others):
        wrong = int((clusters != others).argmax())
        raise UserError(
            f"{place}: the key {key_text(keys[wrong])} is of the cluster {clusters[wrong]} in A and "
            f"of {others[wrong]} in B: evaluate both on the same set"
        )
    return PairedSamples(keys, first_rows, second_rows, clusters if clusters is not None else others)


def column_of(table: pa.Table, column: str, rows: NDArray[np.int64], name: str) -> NDArray[np.float64]:
    """Return a metric's column in the order of rows; null becomes NaN. `name` is for errors."""
    if column not in table.column_names:
        raise UserError(f"the scores have no column {column} for {name}: evaluate once more")
    return table[column].to_numpy().astype(np.float64, copy=False)[rows]


def check_value(value: MetricValue, column: NDArray[np.float64], name: str) -> None:
    """Raise `UserError` unless the scores are those that the value was made from."""
    if value.n != len(column):
        raise UserError(
            f"{name}: the summary's value is of n={value.n} samples and the scores have {len(column)}: "
            "evaluate once more"
        )
    if not value.is_mean:
        return
    mean = float(column.mean())
    if abs(mean - value.value) > SAME_VALUE * max(abs(mean), abs(value.value)):
        raise UserError(
            f"{name}: the summary's value is {value.value} and the scores' mean {mean}: "
            "they are of two evaluations; evaluate once more"
        )


def _keys(table: pa.Table, name: str) -> NDArray[np.bytes_]:
    if KEY not in table.column_names or table.schema.field(KEY).type != pa.binary(KEY_BYTES):
        raise UserError(f"the scores {name} have no column {KEY} of {KEY_BYTES} bytes: evaluate once more")
    if table[KEY].null_count:
        raise UserError(f"the scores {name} have a row without a key: evaluate once more")
    keys = np.array(table[KEY].to_pylist(), dtype=f"S{KEY_BYTES}")
    ordered = np.sort(keys)
    is_again = ordered[1:] == ordered[:-1]
    if is_again.any():
        key = ordered[int(is_again.argmax())]
        raise UserError(
            f"the scores {name} have {int(is_again.sum())} keys more than once, such as {key_text(key)}: "
            "evaluate once more"
        )
    return keys


def key_text(key: bytes) -> str:
    """Return a key as messages show it; NumPy drops the zeros that keys end with."""
    return key.ljust(KEY_BYTES, b"\0").hex()


def _unpaired(first: NDArray[np.bytes_], second: NDArray[np.bytes_], place: str) -> str:
    only_first = np.setdiff1d(first, second)
    only_second = np.setdiff1d(second, first)
    num_both = len(first) - len(only_first)
    example = (only_first if len(only_first) else only_second)[0]
    return (
        f"{place}: {num_both} keys are in both, {len(only_first)} only in A and {len(only_second)} only "
        f"in B, such as {key_text(example)}: evaluate both on the same samples"
    )


def _clusters(table: pa.Table, rows: NDArray[np.int64], name: str) -> NDArray[np.generic] | None:
    if CLUSTER not in table.column_names:
        return None
    if table[CLUSTER].null_count:
        raise UserError(f"the scores {name} have a row without a cluster: evaluate once more")
    encoded = table[CLUSTER].combine_chunks().dictionary_encode()
    return encoded.to_numpy(zero_copy_only=False)[rows]
