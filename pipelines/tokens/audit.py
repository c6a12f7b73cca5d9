"""Watches over token shards: how evenly codes are used, whether stored codes still give the images, which shard is unlike the rest.

A unit records what it saw in its receipt, as `audit`. Shards are judged against the median shard of their dataset: while they come, against
those of the run so far, and once more against all of them when the dataset is finished. As a whole bad dataset has a bad median, its
recipe may also set a PSNR that no shard may be under.
"""

import hashlib
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np

from dualtoken.model.metrics.arrays import perplexity
from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.core.receipts import Receipt
from dualtoken.pipelines.core.stage import UnitOutcome, Work
from dualtoken.pipelines.errors import TokenAlarm
from dualtoken.pipelines.tokens.facts import STREAMS, Alarm, AuditSummary, ByDepth, ShardAudit, TokenFacts
from dualtoken.pipelines.tokens.shards import Ids

PSNR_DROP = 6.0
"""dB under the median that a shard's mean may be: twice the error. The codes of other images give 10 dB less or worse."""
OUTLIER = 6 * 1.4826
"""Median absolute deviations; of a normal distribution six standard deviations, which chance goes beyond once in a billion."""
MANY = 8
"""Shards from which on their own spread is known, and a running median is worth comparing with."""
COLLAPSE, DRIFT = 0.1, 0.5
"""Of the median perplexity of the same depth."""
ONE_CODE, ROWS_FOR_ONE_CODE = 1.05, 16
"""A perplexity under which a depth says one thing of all images, once they are not just a few blank ones."""
WINDOW = 512
"""Shards that a running median is taken over."""


class CodeCounter:
    """Counts a stream's codes, depth by depth."""

    def __init__(self, depth: int, num_codes: int) -> None:
        self._counts = np.zeros((depth, num_codes), np.int64)

    def add(self, ids: Ids) -> None:
        """Count codes of any shape whose depths lie side by side."""
        depth, num_codes = self._counts.shape
        by_depth = ids.reshape(-1, depth)
        for level in range(depth):
            self._counts[level] += np.bincount(by_depth[:, level], minlength=num_codes)

    def usage(self) -> list[float]:
        """Return, per depth, the share of codes that occur."""
        return [round(float(used) / self._counts.shape[1], 6) for used in (self._counts > 0).sum(axis=1)]

    def perplexity(self) -> list[float]:
        """Return, per depth, that of its codes."""
        return [round(perplexity(counts), 3) for counts in self._counts]


def sample_rows(seed: str, rows: int, count: int) -> frozenset[int]:
    """Choose rows of a shard to look at again; the same seed chooses the same."""
    chance = random.Random(int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=8).digest(), "big"))
    return frozenset(chance.sample(range(rows), min(count, rows)))


@dataclass(frozen=True, slots=True)
class ShardFigures:
    """What one shard's audit found."""

    shard: str
    rows: int
    psnr: float | None
    """dB, mean of the rows that were looked at; None where there were none."""
    perplexity: Mapping[str, Sequence[float]]
    """Per depth, by stream."""

    @classmethod
    def of(cls, shard: str, audit: ShardAudit) -> "ShardFigures":
        """Read them off a receipt's audit."""
        ratios = audit.psnr
        mean = sum(ratios) / len(ratios) if ratios else None
        return cls(shard, audit.rows, mean, audit.perplexity)


@dataclass(frozen=True, slots=True)
class ReferenceFigures:
    """What the median shard of a dataset is like, which each is judged against."""

    shards: int
    rows: float
    psnr: float | None
    """dB; None where fewer than two shards have one."""
    psnr_spread: float
    """Median absolute deviation, dB; 0 of few shards."""
    perplexity: Mapping[str, Sequence[float]]

    @classmethod
    def of(cls, shards: Sequence[ShardFigures]) -> "ReferenceFigures":
        """Find it, of one shard at least."""
        ratios = [one.psnr for one in shards if one.psnr is not None]
        middle = median(ratios) if len(ratios) > 1 else None
        spread = (
            0.0 if middle is None or len(ratios) < MANY else median(abs(ratio - middle) for ratio in ratios)
        )
        perplexity = {stream: _medians([one.perplexity[stream] for one in shards]) for stream in STREAMS}
        return cls(len(shards), median(one.rows for one in shards), middle, spread, perplexity)


def check_shard(one: ShardFigures, norm: ReferenceFigures, min_psnr: float | None = None) -> Alarm | None:
    """Return what is wrong with a shard, the worst first; `norm` is its dataset's, itself taken into it or not."""
    return _collapse(one, norm) or _low(one, min_psnr) or _drift(one, norm)


def _low(one: ShardFigures, min_psnr: float | None) -> Alarm | None:
    if one.psnr is None or min_psnr is None or one.psnr >= min_psnr:
        return None
    return Alarm(one.shard, "low", f"PSNR {one.psnr:.1f} dB, pretokenize.min_psnr={min_psnr:g}")


def _collapse(one: ShardFigures, norm: ReferenceFigures) -> Alarm | None:
    if one.rows >= ROWS_FOR_ONE_CODE:
        for stream, depth, value in _depths(one.perplexity):
            if value < ONE_CODE:
                return Alarm(
                    one.shard,
                    "collapse",
                    f"{stream} depth {depth + 1} has perplexity {value:.2f}: one code for all images",
                )
    return _beside_median(one, norm, "collapse", COLLAPSE)


def _drift(one: ShardFigures, norm: ReferenceFigures) -> Alarm | None:
    if (
        one.psnr is not None
        and norm.psnr is not None
        and norm.psnr - one.psnr > max(PSNR_DROP, OUTLIER * norm.psnr_spread)
    ):
        return Alarm(one.shard, "drift", f"PSNR {one.psnr:.1f} dB, the dataset's median is {norm.psnr:.1f}")
    return _beside_median(one, norm, "drift", DRIFT)


def _beside_median(
    one: ShardFigures, norm: ReferenceFigures, kind: Literal["collapse", "drift"], share: float
) -> Alarm | None:
    # A short shard, such as a corpus's last, has fewer codes because it has fewer images.
    if norm.shards < 2 or one.rows * 2 < norm.rows:
        return None
    for stream, depth, value in _depths(one.perplexity):
        middle = norm.perplexity[stream][depth]
        if value < share * middle:
            said = (
                f"{stream} depth {depth + 1} has perplexity {value:.1f}, the dataset's median is {middle:.1f}"
            )
            return Alarm(one.shard, kind, said)
    return None


def _medians(rows: Sequence[Sequence[float]]) -> list[float]:
    return [median(values) for values in zip(*rows, strict=True)]


def _depths(perplexity: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, int, float]]:
    for stream, values in perplexity.items():
        for depth, value in enumerate(values):
            yield stream, depth, value


class DatasetAudit:
    """Health of a finished dataset: adds up its shards' audits, then judges each shard against their median."""

    def __init__(self, min_psnr: float | None = None) -> None:
        self._min_psnr = min_psnr
        self._shards: list[ShardFigures] = []
        self._ratios: list[float] = []

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
            norm = ReferenceFigures.of(self._shards)
            for stream in STREAMS:
                perplexity[stream] = [round(value, 3) for value in norm.perplexity[stream]]
            for shard in self._shards:
                alarm = check_shard(shard, norm, self._min_psnr)
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
    """Health of a run's shards while they come: judges each against the median of its job's last `WINDOW` shards."""

    def __init__(self, work: Sequence[Work], print_line: PrintLine) -> None:
        """Watch units of one command; `print_line` is told of every alarm."""
        self._config = work[0].job.recipe.pretokenize
        self._print_line = print_line
        self._recent: dict[str, deque[ShardFigures]] = {}
        """The last shards, by the job's label."""

    def add(self, outcome: UnitOutcome) -> None:
        """Judge one more shard, if it is one; raises `TokenAlarm` where the recipe stops at alarms."""
        if not outcome.audit:
            return
        shard = ShardFigures.of(outcome.unit, ShardAudit.of_json(outcome.audit))
        recent = self._recent.setdefault(outcome.label, deque(maxlen=WINDOW))
        recent.append(shard)
        # A median of few shards says little, so that each of them is only compared with itself.
        norm = ReferenceFigures.of(recent if len(recent) >= MANY else [shard])
        alarm = check_shard(shard, norm, self._config.min_psnr)
        if alarm is None:
            return
        self._print_line(f"{outcome.label} {alarm}")
        if self._config.on_alarm == "stop":
            raise stopped(outcome.label, alarm)


def watched(
    outcomes: Iterable[UnitOutcome], work: Sequence[Work], print_line: PrintLine
) -> Iterator[UnitOutcome]:
    """Pass outcomes on, adding each to a `RunningAudit` after its taker is done with it; raises as `RunningAudit.add`."""
    audit = RunningAudit(work, print_line)
    for outcome in outcomes:
        yield outcome
        audit.add(outcome)


def stopped(label: str, alarm: Alarm | str) -> TokenAlarm:
    """Return the error that a run ends with where its recipe stops at alarms."""
    return TokenAlarm(
        f"{label} {alarm} (pretokenize.on_alarm=stop): look at the shard's images and tokenizer, or set it to report"
    )
