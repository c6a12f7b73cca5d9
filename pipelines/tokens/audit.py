"""Token-shard health: codebook usage, PSNR of images decoded from stored codes, outlier shards.

A unit records the audit of its shard in its receipt. Shards are judged against the median shard of their
dataset: while they come, against the last ones of the run (`RunningAudit`); when the dataset is finished,
against all of them (`DatasetAudit`). A dataset that is bad as a whole has a bad median, so a recipe may also
set a PSNR that no shard may be under.
"""

import hashlib
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np

from dualtoken.model.metrics.arrays import perplexity
from dualtoken.pipelines.config.pretokenize import PretokenizeConfig
from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.core.receipts import Receipt
from dualtoken.pipelines.core.stage import UnitOutcome
from dualtoken.pipelines.errors import TokenAlarm
from dualtoken.pipelines.tokens.facts import (
    STREAMS,
    Alarm,
    AuditSummary,
    ByDepth,
    ShardAudit,
    TokenFacts,
)
from dualtoken.pipelines.tokens.shards import Ids

PSNR_DROP = 6.0
"""Drop of a shard's mean PSNR under the median that is an alarm, dB: twice the error. The codes of other
images give 10 dB less or worse."""
OUTLIER = 6 * 1.4826
"""Median absolute deviations that make an outlier: six standard deviations of a normal distribution, which
chance goes beyond once in a billion."""
ENOUGH_SHARDS = 8
"""Number of shards from which on their own spread is known, and a running median is worth comparing with."""
COLLAPSE = 0.1
"""Share of the median perplexity of the same depth under which a codebook has collapsed."""
DRIFT = 0.5
"""Share of the median perplexity of the same depth under which a shard has drifted."""
ONE_CODE = 1.05
"""Perplexity under which a depth says one thing of all images."""
ROWS_FOR_ONE_CODE = 16
"""Rows from which on that is an alarm: fewer may be just a few blank images."""
WINDOW = 512
"""Number of shards that a running median is taken over."""


class CodeCounter:
    """Counts how often a stream uses each code, depth by depth."""

    def __init__(self, depth: int, num_codes: int) -> None:
        self._counts = np.zeros((depth, num_codes), np.int64)

    def add(self, ids: Ids) -> None:
        """Count codes of any shape, whose depths lie side by side."""
        depth, num_codes = self._counts.shape
        by_depth = ids.reshape(-1, depth)
        for level in range(depth):
            self._counts[level] += np.bincount(by_depth[:, level], minlength=num_codes)

    def usage(self) -> list[float]:
        """Return the share of codes that occur, per depth."""
        num_codes = self._counts.shape[1]
        num_used = (self._counts > 0).sum(axis=1)
        return [round(float(used) / num_codes, 6) for used in num_used]

    def perplexity(self) -> list[float]:
        """Return the perplexity of the codes, per depth."""
        return [round(perplexity(counts), 3) for counts in self._counts]


def sample_rows(seed: str, rows: int, count: int) -> frozenset[int]:
    """Choose rows of a shard to look at again; the same seed chooses the same."""
    seed_hash = hashlib.blake2b(seed.encode(), digest_size=8).digest()
    generator = random.Random(int.from_bytes(seed_hash, "big"))
    return frozenset(generator.sample(range(rows), min(count, rows)))


@dataclass(frozen=True, slots=True)
class ShardFigures:
    """Figures of one shard that are compared with those of others."""

    shard: str
    rows: int
    psnr: float | None
    """Mean PSNR of the rows that were looked at, dB; None where there were none."""
    perplexity: Mapping[str, ByDepth]
    """Perplexity per depth, by stream."""

    @classmethod
    def of(cls, shard: str, audit: ShardAudit) -> "ShardFigures":
        """Return the figures of a shard's audit."""
        mean = None
        if audit.psnr:
            mean = sum(audit.psnr) / len(audit.psnr)
        return cls(shard, audit.rows, mean, audit.perplexity)


@dataclass(frozen=True, slots=True)
class ReferenceFigures:
    """Figures of the median shard of a dataset, which each shard is judged against."""

    shards: int
    """Number of shards that the medians are taken over."""
    rows: float
    psnr: float | None
    """Median PSNR, dB; None where fewer than two shards have one."""
    psnr_spread: float
    """Median absolute deviation of the PSNR, dB; 0 of few shards."""
    perplexity: Mapping[str, ByDepth]

    @classmethod
    def of(cls, shards: Sequence[ShardFigures]) -> "ReferenceFigures":
        """Return the medians over shards, of which there must be one at least."""
        ratios = [shard.psnr for shard in shards if shard.psnr is not None]
        middle = median(ratios) if len(ratios) > 1 else None
        spread = 0.0
        if middle is not None and len(ratios) >= ENOUGH_SHARDS:
            spread = median(abs(ratio - middle) for ratio in ratios)
        medians: dict[str, ByDepth] = {}
        for stream in STREAMS:
            by_shard = [shard.perplexity[stream] for shard in shards]
            medians[stream] = [median(values) for values in zip(*by_shard, strict=True)]
        return cls(len(shards), median(shard.rows for shard in shards), middle, spread, medians)


def check_shard(
    shard: ShardFigures, reference: ReferenceFigures, min_psnr: float | None = None
) -> Alarm | None:
    """Return what is wrong with a shard, the worst first, or None.

    `reference` is of the shard's dataset, and may count the shard itself; `min_psnr` is the recipe's lowest
    PSNR, dB.
    """
    return _collapse(shard, reference) or _low(shard, min_psnr) or _drift(shard, reference)


def _low(shard: ShardFigures, min_psnr: float | None) -> Alarm | None:
    if shard.psnr is None or min_psnr is None or shard.psnr >= min_psnr:
        return None
    return Alarm(shard.shard, "low", f"PSNR {shard.psnr:.1f} dB, pretokenize.min_psnr={min_psnr:g}")


def _collapse(shard: ShardFigures, reference: ReferenceFigures) -> Alarm | None:
    if shard.rows >= ROWS_FOR_ONE_CODE:
        for stream, depth, value in _depths(shard.perplexity):
            if value < ONE_CODE:
                problem = f"{stream} depth {depth + 1} has perplexity {value:.2f}: one code for all images"
                return Alarm(shard.shard, "collapse", problem)
    return _low_perplexity(shard, reference, "collapse", COLLAPSE)


def _drift(shard: ShardFigures, reference: ReferenceFigures) -> Alarm | None:
    if shard.psnr is not None and reference.psnr is not None:
        allowed = max(PSNR_DROP, OUTLIER * reference.psnr_spread)
        if reference.psnr - shard.psnr > allowed:
            problem = f"PSNR {shard.psnr:.1f} dB, the dataset's median is {reference.psnr:.1f}"
            return Alarm(shard.shard, "drift", problem)
    return _low_perplexity(shard, reference, "drift", DRIFT)


def _low_perplexity(
    shard: ShardFigures, reference: ReferenceFigures, kind: Literal["collapse", "drift"], share: float
) -> Alarm | None:
    """Return an alarm where a depth's perplexity is under a share of the median one."""
    # A short shard, such as a corpus's last, has fewer codes because it has fewer images.
    if reference.shards < 2 or shard.rows * 2 < reference.rows:
        return None
    for stream, depth, value in _depths(shard.perplexity):
        middle = reference.perplexity[stream][depth]
        if value < share * middle:
            name = f"{stream} depth {depth + 1}"
            problem = f"{name} has perplexity {value:.1f}, the dataset's median is {middle:.1f}"
            return Alarm(shard.shard, kind, problem)
    return None


def _depths(perplexity: Mapping[str, ByDepth]) -> Iterator[tuple[str, int, float]]:
    """Yield each depth's stream, number and perplexity."""
    for stream, values in perplexity.items():
        for depth, value in enumerate(values):
            yield stream, depth, value


class DatasetAudit:
    """Health of a finished dataset: adds up its shards' audits, then judges each against their median."""

    def __init__(self, min_psnr: float | None = None) -> None:
        self._min_psnr = min_psnr
        self._shards: list[ShardFigures] = []
        self._ratios: list[float] = []
        """PSNR of every row that was looked at."""

    def add(self, receipt: Receipt) -> None:
        """Count one more shard; a receipt from before there were audits adds nothing."""
        audit = TokenFacts.of(receipt).audit
        if audit is None:
            return
        self._shards.append(ShardFigures.of(receipt.unit, audit))
        self._ratios += audit.psnr

    def summary(self) -> AuditSummary:
        """Return what the dataset's manifest says of its shards."""
        perplexity: dict[str, ByDepth] = {stream: [] for stream in STREAMS}
        alarms: list[Alarm] = []
        if self._shards:
            reference = ReferenceFigures.of(self._shards)
            for stream in STREAMS:
                perplexity[stream] = [round(value, 3) for value in reference.perplexity[stream]]
            for shard in self._shards:
                alarm = check_shard(shard, reference, self._min_psnr)
                if alarm is not None:
                    alarms.append(alarm)
        return AuditSummary(
            rows=len(self._ratios),
            psnr_median=round(median(self._ratios), 2) if self._ratios else None,
            psnr_lowest=min(self._ratios, default=None),
            perplexity=perplexity,
            alarms=alarms,
        )


class RunningAudit:
    """Health of a run's shards while they come: judges each against the median of its job's last `WINDOW`."""

    def __init__(self, config: PretokenizeConfig, print_line: PrintLine) -> None:
        """Audit the units of one command; every alarm is printed with `print_line`."""
        self._config = config
        self._print_line = print_line
        self._recent: dict[str, deque[ShardFigures]] = {}
        """Last shards, by their job's label."""

    def add(self, outcome: UnitOutcome) -> None:
        """Judge one more shard, if the unit has one; raises `TokenAlarm` where the recipe stops at alarms."""
        if not outcome.audit:
            return
        shard = ShardFigures.of(outcome.unit, ShardAudit.of_json(outcome.audit))
        recent = self._recent.setdefault(outcome.label, deque(maxlen=WINDOW))
        recent.append(shard)
        # The median of a few shards says little: until there are enough, each is judged by itself alone.
        reference = ReferenceFigures.of(recent if len(recent) >= ENOUGH_SHARDS else [shard])
        alarm = check_shard(shard, reference, self._config.min_psnr)
        if alarm is None:
            return
        self._print_line(f"{outcome.label} {alarm}")
        if self._config.on_alarm == "stop":
            raise stopped(outcome.label, alarm)


def stopped(label: str, alarm: Alarm | str) -> TokenAlarm:
    """Return the error that a run ends with where its recipe stops at alarms."""
    return TokenAlarm(
        f"{label} {alarm} (pretokenize.on_alarm=stop): "
        "look at the shard's images and tokenizer, or set it to report"
    )
