"""Report: measures the tokenizer on held-out samples and writes one page of the whole run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dualtoken.pipelines.core.receipts import Manifest, read_manifest
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.core.timing import TimeBreakdown
from dualtoken.pipelines.evaluation.report_data import (
    Curve,
    Funnel,
    FunnelStep,
    ReportData,
    StageTime,
    Stream,
    TokenAudit,
    TokenizerFacts,
    to_json,
)
from dualtoken.pipelines.evaluation.report_page import render
from dualtoken.pipelines.evaluation.tokenizer import Evaluation, heldout_batches
from dualtoken.pipelines.inference.networks import (
    TokenizerRunner,
    open_teacher,
    open_tokenizer,
    prepare_process,
)
from dualtoken.pipelines.tokens.facts import STREAMS, AuditSummary, TokenDetails
from dualtoken.pipelines.training.metrics_log import read_metrics

FUNNEL = ("download", "score", "filter", "pretokenize")
TIMED = ("scenes", "download", "teacher", "score", "filter", "targets", "train", "pretokenize")
CURVE_UNITS = {"images_per_second": "images/s"}
CURVE_STREAMS: dict[str, Stream] = {"reconstruction": "pixel", "semantic": "semantic", "pooled": "semantic"}


class Worker:
    """Evaluates and renders."""

    def __init__(self, job: StageJob) -> None:
        self._job = job
        prepare_process(threads=1, exact_float32=True)
        self._tokenizer, self._teacher = open_tokenizer(job), open_teacher(job)
        stores = {name: job.input(name) for name in job.inputs}
        self._manifests = {
            name: manifest for name, store in stores.items() if (manifest := read_manifest(store))
        }

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write `report.html` and its figures, `report.json`."""
        assert unit.rows == 0
        recipe = self._job.recipe
        evaluation = Evaluation(self._tokenizer, self._teacher, recipe.report.num_images)
        for batch in heldout_batches(self._job, scratch / "inputs", recipe.report.batch_size):
            evaluation.add(batch)
        data = ReportData(
            title=recipe.name,
            created_at=max(manifest.last_finished_at for manifest in self._manifests.values()),
            recipe_yaml=yaml.safe_dump(recipe.identity(), sort_keys=False, allow_unicode=True),
            facts=_facts(self._tokenizer, self._manifests["train"]),
            funnels=tuple(self._funnel(corpus) for corpus in recipe.corpora),
            curves=tuple(
                curve
                for step in ("teacher", "train")
                for curve in curves(step, read_metrics(self._job.input(step)))
            ),
            pairs=tuple(evaluation.pairs),
            reconstruction=evaluation.reconstruction(),
            usage=evaluation.usage(),
            zero_shot=evaluation.zero_shot(),
            retrieval=evaluation.retrieval(),
            stages=tuple(
                _time(manifest)
                for step in TIMED
                for manifest in self._manifests.values()
                if manifest.stage == step
            ),
            audits=_audits(self._manifests.values()),
            parts=_times_by_part(self._manifests.values()),
        )
        (scratch / "report.html").write_text(render(data), encoding="utf-8")
        (scratch / "report.json").write_text(to_json(data), encoding="utf-8")
        return UnitOutput(("report.html", "report.json"), None)

    def _funnel(self, corpus: str) -> Funnel:
        manifests = [self._manifests[f"{step}/{corpus}"] for step in FUNNEL]
        steps = tuple(
            FunnelStep(stage=one.stage, rows_in=one.rows_in, counts=one.counts) for one in manifests
        )
        return Funnel(corpus=corpus, rows_in=manifests[0].rows_in, steps=steps)


def curves(step: str, lines: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Return a curve for each value that a training logged; some begin later than others, as a discriminator's do."""
    names = [name for name in dict.fromkeys(name for line in lines for name in line) if name != "step"]
    return [
        Curve(
            stage=step,
            name=name.replace("_", " "),
            unit=CURVE_UNITS.get(name, ""),
            points=tuple((line["step"], line[name]) for line in lines if name in line),
            stream=CURVE_STREAMS.get(name),
        )
        for name in names
    ]


def _facts(tokenizer: TokenizerRunner, manifest: Manifest) -> TokenizerFacts:
    config = tokenizer.config
    return TokenizerFacts(
        image_size=config.image_size,
        grid_size=config.grid_size,
        depth=config.pixel.depth,
        semantic_codes=config.semantic.num_codes,
        pixel_codes=config.pixel.num_codes,
        num_parameters=sum(parameter.numel() for parameter in tokenizer.network.parameters()),
        fingerprint=manifest.fingerprint,
    )


def _token_datasets(manifests: Iterable[Manifest]) -> Iterator[tuple[str, TokenDetails]]:
    """Yield the corpus and the details of each token dataset among manifests."""
    for manifest in manifests:
        if manifest.stage == "pretokenize":
            yield manifest.corpus or "", TokenDetails.of(manifest)


def _audits(manifests: Iterable[Manifest]) -> tuple[TokenAudit, ...]:
    """Return the audits of token datasets; those from before there were audits have none."""
    audits: list[TokenAudit] = []
    for corpus, details in _token_datasets(manifests):
        if details.audit is not None:
            audits.append(_audit(corpus, details.shards, details.audit))
    return tuple(audits)


def _audit(corpus: str, shards: int, audit: AuditSummary) -> TokenAudit:
    return TokenAudit(
        corpus=corpus,
        shards=shards,
        rows=audit.rows,
        psnr_median=audit.psnr_median,
        psnr_lowest=audit.psnr_lowest,
        perplexity={stream: tuple(audit.perplexity[stream]) for stream in STREAMS},
        alarms=tuple(map(str, audit.alarms)),
    )


def _times_by_part(manifests: Iterable[Manifest]) -> tuple[TimeBreakdown, ...]:
    """Return where the time of token datasets went, for those whose manifests say so."""
    breakdowns: list[TimeBreakdown] = []
    for corpus, details in _token_datasets(manifests):
        if details.seconds_by_part:
            breakdowns.append(TimeBreakdown(corpus=corpus, seconds=details.seconds_by_part))
    return tuple(breakdowns)


def _time(manifest: Manifest) -> StageTime:
    return StageTime(
        command=manifest.stage,
        corpus=manifest.corpus,
        wall_seconds=manifest.wall_seconds,
        work_seconds=manifest.seconds,
        samples=manifest.rows_in,
        samples_per_second=manifest.rows_in / manifest.wall_seconds
        if manifest.rows_in and manifest.wall_seconds
        else None,
        bytes=manifest.bytes,
    )
