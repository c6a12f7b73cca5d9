"""What a run's report says: the figures that the report stage fills in and `pipelines.evaluation.report_page` renders.

Every share, accuracy and similarity is a fraction, not a percentage. Figures that follow from others are
properties, so that a report cannot contradict itself; `to_json` writes them out beside the fields.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from typing import Any, Literal

from dualtoken.pipelines.core.timing import TimeBreakdown

Stream = Literal["semantic", "pixel"]
"""One of the tokenizer's two vocabularies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FunnelStep:
    """One stage's ledger on one corpus."""

    stage: str
    rows_in: int
    counts: Mapping[str, int]
    """Rows by status and reason, as in a manifest: `ok`, `failed:http_404`, `rejected:min_side`."""

    @property
    def rows_ok(self) -> int:
        """Rows that went on."""
        return self.counts.get("ok", 0)

    @property
    def lost(self) -> tuple[tuple[str, int], ...]:
        """Reasons and their rows, the most frequent first."""
        losses = [(reason, rows) for reason, rows in self.counts.items() if reason != "ok" and rows]
        return tuple(sorted(losses, key=lambda loss: (-loss[1], loss[0])))


@dataclass(frozen=True, kw_only=True, slots=True)
class Funnel:
    """What became of a corpus's rows, stage by stage."""

    corpus: str
    rows_in: int
    steps: tuple[FunnelStep, ...]

    @property
    def rows_out(self) -> int:
        """Rows that the last stage passed on."""
        return self.steps[-1].rows_ok if self.steps else self.rows_in

    @property
    def faults(self) -> tuple[str, ...]:
        """Where the ledger does not close, in words; empty where every row is accounted for."""
        sums = [(step, sum(step.counts.values())) for step in self.steps]
        wrong = [
            f"{step.stage} took {step.rows_in:,} rows and accounts for {total:,}"
            for step, total in sums
            if total != step.rows_in
        ]
        if self.steps and self.steps[0].rows_in != self.rows_in:
            wrong.append(
                f"the source has {self.rows_in:,} rows and {self.steps[0].stage} took {self.steps[0].rows_in:,}"
            )
        gaps = [(a, b) for a, b in pairwise(self.steps) if a.rows_ok != b.rows_in]
        return (
            *wrong,
            *(f"{a.stage} passed on {a.rows_ok:,} rows and {b.stage} took {b.rows_in:,}" for a, b in gaps),
        )

    @property
    def closes(self) -> bool:
        """Whether rows in = the sum of all statuses in every stage, and each stage took what the one before passed on."""
        return not self.faults


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One metric of a training run."""

    stage: str
    """Where it was logged: `teacher` or `train`."""
    name: str
    unit: str
    """Empty where it has none."""
    points: tuple[tuple[int, float], ...]
    """(step, value), steps ascending from 0."""
    stream: Stream | None = None
    """The stream that the metric is about, which gives its colour."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A held-out image and what the tokenizer's pixel stream gives back."""

    caption: str
    key: str
    """Of the sample, hexadecimal."""
    original: bytes
    """A PNG file."""
    reconstruction: bytes
    """A PNG file."""
    psnr: float
    """dB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconstruction:
    """How close reconstructions of the held-out images are."""

    psnr: float
    """Mean over the images, dB."""
    ssim: float
    """Mean over the images, -1 to 1."""
    psnr_per_image: tuple[float, ...]
    ssim_per_image: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CodebookUsage:
    """How evenly a stream's codes are used."""

    stream: Stream
    num_codes: int
    usage: float
    """Share of codes chosen at any depth."""
    usage_per_depth: tuple[float, ...]
    perplexity_per_depth: tuple[float, ...]
    """2 to the entropy in bits: 1 to `num_codes`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenAudit:
    """What the audit of a corpus's token shards came to."""

    corpus: str
    shards: int
    rows: int
    """Decoded again from their stored codes."""
    psnr_median: float | None
    """dB; None where no row was looked at."""
    psnr_lowest: float | None
    perplexity: Mapping[str, tuple[float, ...]]
    """Per depth, by stream: the median of the shards'."""
    alarms: tuple[str, ...]
    """A sentence for each shard unlike the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttributeAccuracy:
    """Zero-shot accuracy on one attribute."""

    name: str
    teacher: float
    quantised: float
    chance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroShot:
    """Whether an image's embedding picks the right one of candidate texts, before and after quantisation."""

    num_images: int
    attributes: tuple[AttributeAccuracy, ...]
    teacher: float
    """Over all attributes."""
    quantised: float
    chance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieval:
    """How often an image's nearest caption among all held-out captions is its own (R@1, image to text)."""

    num_pairs: int
    teacher: float
    quantised: float

    @property
    def chance(self) -> float:
        """R@1 of guessing."""
        return 1 / self.num_pairs if self.num_pairs else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTime:
    """What one command cost on one corpus."""

    command: str
    corpus: str | None
    wall_seconds: float
    """From the first start to the last finish."""
    work_seconds: float
    """All units added up, however many ran at once."""
    samples: int
    samples_per_second: float | None
    """None where the command has no samples."""
    bytes: int
    """Written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerFacts:
    """What the tokenizer is."""

    image_size: int
    """Pixels a side."""
    grid_size: int
    """Positions a side."""
    depth: int
    """Codes per position and stream."""
    semantic_codes: int
    pixel_codes: int
    num_parameters: int
    fingerprint: str

    @property
    def bits_per_image(self) -> float:
        """Of both streams together."""
        return self.grid_size**2 * self.depth * (math.log2(self.semantic_codes) + math.log2(self.pixel_codes))

    @property
    def bits_per_pixel(self) -> float:
        """Of both streams together."""
        return self.bits_per_image / self.image_size**2


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportData:
    """A run's report."""

    title: str
    """The recipe's name."""
    created_at: str
    """ISO 8601, with its offset."""
    recipe_yaml: str
    facts: TokenizerFacts
    funnels: tuple[Funnel, ...]
    curves: tuple[Curve, ...]
    pairs: tuple[Pair, ...]
    reconstruction: Reconstruction | None
    """None where no held-out image was left."""
    usage: tuple[CodebookUsage, ...]
    zero_shot: ZeroShot | None
    """None where the held-out corpus names no attributes, as with real images."""
    retrieval: Retrieval | None
    stages: tuple[StageTime, ...]
    audits: tuple[TokenAudit, ...] = ()
    """Of the corpora whose token shards were audited."""
    parts: tuple[TimeBreakdown, ...] = ()
    """Of the corpora whose token shards tell where their time went."""


def to_json(data: ReportData) -> str:
    """Return all figures as JSON; images are left to the page, and a figure that is not finite is null."""
    return json.dumps(_plain(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:  # noqa: ANN401  (any JSON value)
    if is_dataclass(value):
        names = [field.name for field in fields(value)]
        names += [name for name, member in vars(type(value)).items() if isinstance(member, property)]
        return {name: _plain(inner) for name in names if not isinstance(inner := getattr(value, name), bytes)}
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
