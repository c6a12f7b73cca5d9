"""Report stage: measures the tokenizer on held-out samples, and writes one page about the whole run."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dualtoken.infra.redaction import redacted_values
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import Manifest, read_manifest
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput, input_name
from dualtoken.pipelines.core.timing import TimeBreakdown
from dualtoken.pipelines.evaluation.examination import EXAMINATION, Examination
from dualtoken.pipelines.evaluation.heldout import HeldoutSamples
from dualtoken.pipelines.evaluation.measurement import MEASUREMENT, Measurement
from dualtoken.pipelines.evaluation.report_data import (
    Curve,
    Funnel,
    FunnelStep,
    Picture,
    ReportData,
    StageTime,
    Stream,
    TokenAudit,
    TokenizerFacts,
    to_json,
)
from dualtoken.pipelines.evaluation.report_page import render
from dualtoken.pipelines.evaluation.summary import SetResult
from dualtoken.pipelines.evaluation.tokenizer import Evaluation
from dualtoken.pipelines.inference.networks import (
    TokenizerRunner,
    open_teacher,
    open_tokenizer,
    prepare_process,
)
from dualtoken.pipelines.runtime.stages import all_stages, position
from dualtoken.pipelines.tokens.facts import STREAMS, AuditSummary, TokenDetails, is_token_dataset
from dualtoken.pipelines.training.metrics_log import read_metrics

MEASURED = "measure"
"""Stage that measures the tokenizer by protocols."""
EXAMINED = "examine"
"""Stage that examines the unified model."""
CURVE_UNITS = {"images_per_second": "images/s", "sequences_per_second": "sequences/s"}
CURVE_STREAMS: dict[str, Stream] = {"reconstruction": "pixel", "semantic": "semantic", "pooled": "semantic"}
"""Streams that metrics are about, by metric."""


class Worker:
    """Evaluates the tokenizer and renders the report."""

    def __init__(self, job: StageJob) -> None:
        self._job = job
        prepare_process(threads=1)
        self._tokenizer = open_tokenizer(job)
        self._teacher = open_teacher(job)
        self._manifests: dict[str, Manifest] = {}
        """Manifests of the finished inputs, by input."""
        for name in job.inputs:
            manifest = read_manifest(job.input(name))
            if manifest:
                self._manifests[name] = manifest

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write `report.html` and its figures, `report.json`."""
        assert unit.rows == 0
        recipe = self._job.recipe
        batch_size = recipe.report.batch_size
        evaluation = Evaluation(self._tokenizer, self._teacher, recipe.report.num_images, batch_size)
        heldout = HeldoutSamples(self._job)
        for part in heldout.parts(scratch / "inputs", batch_size):
            evaluation.add(part)
        data = ReportData(
            title=recipe.name,
            created_at=max(manifest.last_finished_at for manifest in self._manifests.values()),
            recipe_yaml=shown_recipe(recipe),
            facts=_facts(self._tokenizer, self._manifests["train"]),
            funnels=tuple(self._funnel(corpus) for corpus in recipe.corpora),
            curves=self._curves(),
            pairs=tuple(evaluation.pairs),
            undecodable=tuple(key.hex() for key in heldout.undecodable),
            reconstruction=evaluation.reconstruction(),
            readings=evaluation.readings(),
            usage=evaluation.usage(),
            zero_shot=evaluation.zero_shot(),
            retrieval=evaluation.retrieval(),
            examination=self._examination(),
            measured=self._measured(),
            pictures=tuple(self._pictures()),
            stages=self._stage_times(),
            audits=_audits(self._manifests.values()),
            parts=_times_by_part(self._manifests.values()),
        )
        (scratch / "report.html").write_text(render(data), encoding="utf-8")
        (scratch / "report.json").write_text(to_json(data), encoding="utf-8")
        return UnitOutput(("report.html", "report.json"), None)

    def _funnel(self, corpus: str) -> Funnel:
        steps: list[FunnelStep] = []
        for stage in all_stages():
            if not stage.passed_on:
                continue
            manifest = self._manifests[input_name(stage.name, corpus)]
            steps.append(FunnelStep(stage=manifest.stage, rows_in=manifest.rows_in, counts=manifest.counts))
        return Funnel(corpus=corpus, rows_in=steps[0].rows_in, steps=tuple(steps))

    def _curves(self) -> tuple[Curve, ...]:
        found: list[Curve] = []
        for stage in all_stages():
            if stage.trains and stage.runs_on(self._job.recipe):
                found += curves(stage.name, read_metrics(self._job.input(stage.name)))
        return tuple(found)

    def _examination(self) -> Examination | None:
        """Return what the unified model can do; None where the recipe trains none."""
        if EXAMINED not in self._manifests:
            return None
        return Examination.model_validate_json(self._job.input(EXAMINED).read(EXAMINATION))

    def _measured(self) -> tuple[SetResult, ...]:
        """Return the run's own evaluation; nothing where the recipe asks for none."""
        if MEASURED not in self._manifests:
            return ()
        measurement = Measurement.read(self._job.input(MEASURED), MEASUREMENT)
        return measurement.results

    def _pictures(self) -> Iterator[Picture]:
        """Yield the pictures of the examination."""
        if EXAMINED not in self._manifests:
            return
        folder = self._job.input(EXAMINED)
        examination = self._examination()
        assert examination is not None
        for name in examination.picture_names():
            yield Picture(name=name, png=folder.read(name))

    def _stage_times(self) -> tuple[StageTime, ...]:
        """Return the time of each stage on each corpus, in the order of a run."""
        manifests = sorted(self._manifests.values(), key=lambda manifest: position(manifest.stage))
        return tuple(map(_stage_time, manifests))


def shown_recipe(recipe: Recipe) -> str:
    """Return a recipe as YAML for people to read: what decides its outputs, without the secrets of URLs."""
    values = redacted_values(recipe.identity())
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def curves(stage: str, lines: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Return a curve for each metric of a training; some begin later than others, as a discriminator's do."""
    points: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            # Counts of steps and samples say how much a line stands for, and are no curves.
            if name != "step" and not name.startswith("num_"):
                number = math.nan if value is None else value
                points.setdefault(name, []).append((line["step"], number))
    found: list[Curve] = []
    for name, curve_points in points.items():
        curve = Curve(
            stage=stage,
            name=name.replace("_", " "),
            unit=CURVE_UNITS.get(name, ""),
            points=tuple(curve_points),
            stream=CURVE_STREAMS.get(name),
        )
        found.append(curve)
    return found


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
        if is_token_dataset(manifest):
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


def _stage_time(manifest: Manifest) -> StageTime:
    samples_per_second = None
    if manifest.rows_in and manifest.wall_seconds:
        samples_per_second = manifest.rows_in / manifest.wall_seconds
    return StageTime(
        command=manifest.stage,
        corpus=manifest.corpus,
        wall_seconds=manifest.wall_seconds,
        work_seconds=manifest.seconds,
        samples=manifest.rows_in,
        samples_per_second=samples_per_second,
        bytes=manifest.bytes,
    )
