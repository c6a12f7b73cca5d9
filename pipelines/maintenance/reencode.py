"""Encodes a seeded sample of a token dataset's rows again from their images, and compares the codes.

They are encoded as they were first (`row_encoder.py`). Where this machine has no such device, other codes are
damage only where rounding does not explain how many they are, and both devices are told.
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from dualtoken.infra.digests import digest
from dualtoken.infra.machine_trouble import is_machine_trouble
from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.store_refusals import StoreRefusal
from dualtoken.model.config.base import Precision
from dualtoken.model.hub.model_name import WEIGHTS
from dualtoken.pipelines.core.lent_process import lent_process
from dualtoken.pipelines.core.receipts import MANIFEST_FILE, Manifest, Receipt, receipt_name
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.tokens.facts import STREAMS, TokenDetails, TokenFacts
from dualtoken.pipelines.tokens.shards import codes_of, data_path, read_data_shard


class DeepSettings(NamedTuple):
    """Settings of a deep check: the sample to encode again, and the tolerance of other devices."""

    sample: int = 64
    """Rows of a token dataset to encode again."""
    seed: int = 0
    """Seed that chooses them."""
    tolerance: float | None = None
    """Share of a row's codes that may be others than stored.

    None allows none on the device that made them, and `ANOTHER_DEVICE` on another one, which rounds in other
    ways.
    """


ANOTHER_DEVICE: Mapping[Precision, float] = {"float32": 0.1, "bfloat16": 0.5}
"""Share of a row's codes that another device may give otherwise, by precision.

Of another image's codes, all but a few percent are others.
"""


def differences(
    job: StageJob,
    manifest: Manifest | None,
    shards: Sequence[tuple[str, int]],
    settings: DeepSettings,
    print_line: Callable[[str], None],
) -> Iterator[tuple[str, str]]:
    """Yield (shard, problem) for those of a sample of rows that differ.

    `shards` are names and rows; `print_line` tells what was done, or why nothing could be.
    """
    store = job.store()
    problem = _not_at_hand(job, manifest)
    if problem:
        print_line(f"{store.url}: no row is encoded again: {problem}")
        return
    chosen = _choose_rows(shards, settings)
    if not chosen:
        return
    from dualtoken.pipelines.inference.networks import prepare_process  # noqa: PLC0415  (takes seconds)
    from dualtoken.pipelines.maintenance.row_encoder import RowEncoder  # noqa: PLC0415  (likewise)

    elsewhere: dict[str, list[float]] = {}
    """Shares of codes that are others, by both devices where they are not the same."""
    with lent_process():
        prepare_process(threads=1)
        encoder = None
        for unit, rows in chosen.items():
            facts = TokenFacts.of(Receipt.read(store, receipt_name(unit)))
            if encoder is None or not encoder.serves(facts):
                encoder = RowEncoder(job, facts)
            comparison = _compare(job, encoder, unit, rows)
            yield from ((unit, problem) for problem in comparison.problems)
            tolerance = settings.tolerance
            on_which = ""
            if not encoder.is_same_device:
                on_which = f" ({encoder.devices})"
                shares = [found.share for found in comparison.shares]
                elsewhere.setdefault(encoder.devices, []).extend(shares)
                if tolerance is None:
                    tolerance = ANOTHER_DEVICE[job.recipe.pretokenize.precision]
            for found in comparison.shares:
                if found.share > (tolerance or 0):
                    yield unit, f"{found}{on_which}"
    num_rows = sum(map(len, chosen.values()))
    print_line(f"{store.url}: {num_rows} rows of {len(chosen)} shards encoded again")
    for devices, shares in elsewhere.items():
        print_line(
            f"{store.url}: {devices}: {np.mean(shares):.2%} of the codes are others, as rounding gives; "
            "--tolerance bounds it for each row"
        )


def _choose_rows(shards: Sequence[tuple[str, int]], settings: DeepSettings) -> dict[str, list[int]]:
    """Return the rows to encode again, in order, by their shard, in order."""
    ends = list(accumulate(rows for _, rows in shards))
    total = ends[-1] if ends else 0
    numbers = random.Random(settings.seed).sample(range(total), min(settings.sample, total))
    chosen: dict[str, list[int]] = {}
    for number in sorted(numbers):
        place = bisect_right(ends, number)
        unit, rows = shards[place]
        first = ends[place] - rows
        chosen.setdefault(unit, []).append(number - first)
    return dict(sorted(chosen.items()))


def _not_at_hand(job: StageJob, manifest: Manifest | None) -> str | None:
    """Return why rows cannot be encoded again, or None."""
    images = job.input("download")
    if not images.exists(MANIFEST_FILE):
        return f"{images.url} is gone or unfinished"
    model = job.input("train")
    if not model.exists(WEIGHTS):
        return f"{model.url} has no {WEIGHTS}"
    with scratch_folder() as scratch:
        sha256 = digest(model.local_copy(WEIGHTS, Path(scratch))).sha256
    if manifest is not None and sha256 != TokenDetails.of(manifest).tokenizer.sha256:
        return f"{model.url} holds other weights than the codes were made with"
    return None


def _compare(
    job: StageJob,
    encoder: Any,  # noqa: ANN401  (a `RowEncoder`, whose module imports PyTorch)
    unit: str,
    rows: list[int],
) -> "_Comparison":
    """Return how a shard's rows differ from what the tokenizer gives now."""
    with scratch_folder() as name:
        scratch = Path(name)
        path = job.store().local_copy(data_path(unit), scratch / "tokens")
        table = read_data_shard(path).take(pa.array(rows, pa.int64()))
        keys = dict(zip(rows, table["key"].to_pylist(), strict=True))
        try:
            encoded = encoder.encode(unit, keys, scratch)
        except (KeyError, OSError, UserError) as error:
            if is_machine_trouble(error) or isinstance(error, StoreRefusal):
                raise
            return _Comparison([f"its images cannot be read again: {error}"], [])
    problems: list[str] = []
    for row, problem in encoded.undecodable.items():
        problems.append(f"row {row}: its image cannot be decoded again: {problem}")
    shares: list[_OtherCodes] = []
    for stream in STREAMS:
        differs = encoded.codes[stream] != codes_of(table, stream)
        for row, share in zip(rows, differs.mean(axis=1), strict=True):
            if row not in encoded.undecodable:
                shares.append(_OtherCodes(row, stream, float(share)))
    return _Comparison(problems, shares)


class _OtherCodes(NamedTuple):
    """Codes of a row that are others when it is encoded again."""

    row: int
    stream: str
    share: float
    """Share of the row's codes, 0 to 1."""

    def __str__(self) -> str:
        return (
            f"row {self.row}: {self.share:.1%} of the {self.stream} codes are others when it is encoded again"
        )


class _Comparison(NamedTuple):
    """How a shard's rows differ from what the tokenizer gives now."""

    problems: list[str]
    """Rows that cannot be encoded, and why."""
    shares: list[_OtherCodes]
    """All that could be, whether they differ or not."""
