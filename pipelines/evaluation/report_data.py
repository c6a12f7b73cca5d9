"""Data of a run's report: the figures that the report stage fills in, and `report_page.py` renders.

Every share, accuracy and similarity is a fraction, not a percentage. Figures that follow from others are
properties, so that a report cannot contradict itself; `to_json` writes them out beside the fields.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from typing import Any, Literal

from dualtoken.pipelines.core.timing import TimeBreakdown
from dualtoken.pipelines.evaluation.examination import Examination
from dualtoken.pipelines.evaluation.summary import SetResult

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
        return tuple(sorted(losses, key=_most_rows_first))


def _most_rows_first(loss: tuple[str, int]) -> tuple[int, str]:
    reason, rows = loss
    return -rows, reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Funnel:
    """The rows of a corpus, stage by stage."""

    corpus: str
    rows_in: int
    steps: tuple[FunnelStep, ...]

    @property
    def rows_out(self) -> int:
        """Rows that the last stage passed on."""
        return self.steps[-1].rows_ok if self.steps else self.rows_in

    @property
    def faults(self) -> tuple[str, ...]:
        """Places where the ledger does not close, in words; none where every row is accounted for."""
        return (*self._wrong_sums(), *self._wrong_source(), *self._gaps())

    def _wrong_sums(self) -> Iterator[str]:
        for step in self.steps:
            total = sum(step.counts.values())
            if total != step.rows_in:
                yield f"{step.stage} took {step.rows_in:,} rows and accounts for {total:,}"

    def _wrong_source(self) -> Iterator[str]:
        if self.steps and self.steps[0].rows_in != self.rows_in:
            first = self.steps[0]
            yield f"the source has {self.rows_in:,} rows and {first.stage} took {first.rows_in:,}"

    def _gaps(self) -> Iterator[str]:
        for before, after in pairwise(self.steps):
            if before.rows_ok != after.rows_in:
                passed_on = f"{before.stage} passed on {before.rows_ok:,} rows"
                yield f"{passed_on} and {after.stage} took {after.rows_in:,}"

    @property
    def closes(self) -> bool:
        """Whether every row is accounted for.

        In every stage rows in equal the sum of all statuses, and each stage took what the one before passed
        on.
        """
        return not self.faults


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One metric of a training run."""

    stage: str
    """Stage that logged it: `teacher` or `train`."""
    name: str
    unit: str
    """Unit of the values; empty where they have none."""
    points: tuple[tuple[int, float], ...]
    """(step, value), steps ascending from 0."""
    stream: Stream | None = None
    """The stream that the metric is about, which gives its colour."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A held-out image and its reconstruction from the pixel stream."""

    caption: str
    key: str
    """Key of the sample, hexadecimal."""
    original: bytes
    """A PNG file."""
    reconstruction: bytes
    """A PNG file."""
    psnr: float
    """dB."""
    reading: str = ""
    """What the oracle reads in the reconstruction, as a caption; empty where nothing was read."""
    is_read_right: bool = False
    """Whether the reading names every object as it was drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconstruction:
    """Similarity of the held-out images and their reconstructions."""

    psnr: float
    """Mean over the images, dB."""
    ssim: float
    """Mean over the images, -1 to 1."""
    psnr_per_image: tuple[float, ...]
    ssim_per_image: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CodebookUsage:
    """Use of a stream's codes."""

    stream: Stream
    num_codes: int
    usage: float
    """Share of codes chosen at any depth."""
    usage_per_depth: tuple[float, ...]
    perplexity_per_depth: tuple[float, ...]
    """2 to the entropy in bits: 1 to `num_codes`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenAudit:
    """Result of the audit of a corpus's token shards."""

    corpus: str
    shards: int
    rows: int
    """Rows that were decoded again from their stored codes."""
    psnr_median: float | None
    """Median over the decoded rows, dB; None where no row was decoded."""
    psnr_lowest: float | None
    perplexity: Mapping[str, tuple[float, ...]]
    """Perplexity at each depth, by stream: the median of the shards."""
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
    """Zero-shot accuracy: how often an image's embedding picks the right one of candidate texts.

    `teacher` is the accuracy before quantisation, `quantised` after it.
    """

    num_images: int
    attributes: tuple[AttributeAccuracy, ...]
    teacher: float
    """Mean over all attributes."""
    quantised: float
    chance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadingAccuracy:
    """Share of drawn objects whose attribute a matched-filter oracle reads in pictures."""

    name: str
    original: float
    """From the originals: the oracle's own ceiling."""
    reconstruction: float
    """From the reconstructions."""
    chance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneReadings:
    """What can be read in the reconstructions of generated scenes."""

    num_images: int
    attributes: tuple[ReadingAccuracy, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieval:
    """Image-to-text R@1: how often an image's nearest caption, among all held-out captions, is its own."""

    num_pairs: int
    teacher: float
    quantised: float

    @property
    def chance(self) -> float:
        """R@1 of guessing."""
        return 1 / self.num_pairs if self.num_pairs else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTime:
    """Cost of one stage on one corpus."""

    command: str
    corpus: str | None
    wall_seconds: float
    """Time from the first start to the last finish."""
    work_seconds: float
    """Time of all units added up, however many ran at once."""
    samples: int
    samples_per_second: float | None
    """None where the stage has no samples."""
    bytes: int
    """Bytes written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerFacts:
    """Size and fingerprint of the tokenizer."""

    image_size: int
    """Side of an image, pixels."""
    grid_size: int
    """Side of the grid of tokens, positions."""
    depth: int
    """Codes per position and stream."""
    semantic_codes: int
    pixel_codes: int
    num_parameters: int
    fingerprint: str

    @property
    def bits_per_image(self) -> float:
        """Bits of the codes of both streams together."""
        codes_per_stream = self.grid_size**2 * self.depth
        return codes_per_stream * (math.log2(self.semantic_codes) + math.log2(self.pixel_codes))

    @property
    def bits_per_pixel(self) -> float:
        """Bits of the codes of both streams together."""
        return self.bits_per_image / self.image_size**2


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture of the unified model's examination."""

    name: str
    png: bytes
    """A PNG file."""


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
    undecodable: tuple[str, ...] = ()
    """Held-out samples that no figure is of, since their image was damaged: keys in hex."""
    reconstruction: Reconstruction | None
    """None where no held-out image was left."""
    usage: tuple[CodebookUsage, ...]
    readings: SceneReadings | None = None
    """None where images are not the generator's, whole and in its size."""
    zero_shot: ZeroShot | None
    """None where the held-out corpus names no attributes, as with real images."""
    retrieval: Retrieval | None
    examination: Examination | None = None
    """What the unified model can do; None where none is trained."""
    pictures: tuple[Picture, ...] = ()
    """The examination's pictures."""
    measured: tuple[SetResult, ...] = ()
    """The run's own evaluation by protocols; nothing where the recipe asks for none."""
    stages: tuple[StageTime, ...]
    audits: tuple[TokenAudit, ...] = ()
    """Results for the corpora with audited token shards."""
    parts: tuple[TimeBreakdown, ...] = ()
    """Time breakdowns of encoding, for the corpora that have one."""


def to_json(data: ReportData) -> str:
    """Return all figures as JSON; images are left to the page, and a figure that is not finite is null."""
    return json.dumps(_plain(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:  # noqa: ANN401  (any JSON value)
    """Return a value as JSON values."""
    if is_dataclass(value):
        return _plain_members(value)
    if isinstance(value, Examination | SetResult):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {name: _plain(member) for name, member in value.items()}
    if isinstance(value, tuple):
        return [_plain(member) for member in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _plain_members(value: Any) -> dict[str, Any]:  # noqa: ANN401  (any dataclass)
    """Return a dataclass's fields and then its properties, but for images."""
    names = [field.name for field in fields(value)]
    for name, member in vars(type(value)).items():
        if isinstance(member, property):
            names.append(name)
    plain: dict[str, Any] = {}
    for name in names:
        member = getattr(value, name)
        if not isinstance(member, bytes):
            plain[name] = _plain(member)
    return plain
