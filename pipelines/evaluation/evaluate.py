"""Evaluate stage: one model on one set by one protocol; a unit is 256 images.

A tokenizer is shown batches of images. A unified model is shown a unit at a time, and its own tokenizer makes
the codes that it reads.

A unit's output is `scores/<unit>.parquet`, a row a sample, and `states/<unit>.safetensors`, the sums and the
embeddings that the metrics of the whole set are made from by `evaluate_finish`.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import UInt8
from safetensors.torch import save_file
from torch import Tensor

from dualtoken.infra.scratch import scratch_folder
from dualtoken.model.metrics.codebook import count_codes
from dualtoken.model.vision.faults import UnreadableImageError
from dualtoken.pipelines.config.evaluation import UNIFIED_METRICS, EvaluationConfig, MetricName
from dualtoken.pipelines.core.ledger import KEY_BYTES, OK_VERDICT, Status, Verdict, ledger_table
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.evaluation.closeness import METRICS, Closeness
from dualtoken.pipelines.evaluation.evaluated_batch import Column, EvaluatedBatch, EvaluatedSample
from dualtoken.pipelines.evaluation.feature_network import FeatureNetwork
from dualtoken.pipelines.evaluation.metric_catalogue import CATALOGUE, TEACHER, needs_teacher
from dualtoken.pipelines.evaluation.saved_subject import local_tokenizer
from dualtoken.pipelines.evaluation.scene_oracle import read_scenes
from dualtoken.pipelines.evaluation.scene_readings import CHANCE, AttributeCounter
from dualtoken.pipelines.evaluation.sets import QUESTIONS, SET_FILE, ResolvedSet, read_unit
from dualtoken.pipelines.evaluation.understanding import Understanding
from dualtoken.pipelines.images.crops import first_view
from dualtoken.pipelines.images.decoding import UNDECODABLE, decode_rgb
from dualtoken.pipelines.images.image_questions import read_questions
from dualtoken.pipelines.images.samples import batched
from dualtoken.pipelines.images.scene_generator import Attribute
from dualtoken.pipelines.inference.networks import (
    StreamCodes,
    TeacherRunner,
    TokenizerRunner,
    describe_device,
    prepare_process,
    stage_device,
)

if TYPE_CHECKING:
    from dualtoken.pipelines.evaluation.unified_columns import UnifiedColumns

STAGE = "evaluate"
SET_INPUT = "set"
"""Name of the input with the resolved set."""
MODEL_INPUT = "model"
TEACHER_INPUT = "teacher"
STREAMS = ("semantic", "pixel")
_MADE_OF_COUNTS = ("usage_", "perplexity_", "bits_")
"""Beginnings of metrics that are made from counts of codes."""


def score_file(unit: str) -> str:
    """Name a unit's scores."""
    return f"scores/{unit}.parquet"


def state_file(unit: str) -> str:
    """Name a unit's sums and embeddings."""
    return f"states/{unit}.safetensors"


class Worker:
    """Evaluates units; the networks are opened once."""

    def __init__(self, job: StageJob[EvaluationConfig]) -> None:
        # As many threads wherever it runs: others give other last bits.
        prepare_process(threads=int(job.asks.cpus))
        (self._protocol,) = job.recipe.protocols.values()
        self._metrics: tuple[MetricName, ...] = self._protocol.metrics
        self._set_folder = job.input(SET_INPUT)
        self._set = ResolvedSet.read(self._set_folder, SET_FILE)
        self._device = stage_device(job)
        self._closeness = Closeness(self._protocol, self._device)
        with scratch_folder() as scratch:
            model = job.input(MODEL_INPUT).local_folder(Path(scratch) / MODEL_INPUT)
            self._tokenizer = TokenizerRunner(local_tokenizer(model), self._device, self._protocol.precision)
            self._unified = self._open_unified(model) if self._of_unified() else None
        self._understanding = self._open_teacher(job) if needs_teacher(self._protocol) else None
        self._feature_network = self._open_feature_network() if "fd" in self._metrics else None

    def _open_teacher(self, job: StageJob[EvaluationConfig]) -> Understanding:
        with scratch_folder() as scratch:
            folder = job.input(TEACHER_INPUT).local_folder(Path(scratch) / TEACHER_INPUT)
            teacher = TeacherRunner(folder, self._device, self._protocol.precision)
        return Understanding(self._tokenizer, teacher, self._set.class_names, self._protocol.templates)

    def _open_unified(self, model: Path) -> "UnifiedColumns":
        # transformers takes seconds, which tokenizers need not wait for.
        from dualtoken.pipelines.evaluation.unified_columns import UnifiedColumns  # noqa: PLC0415

        return UnifiedColumns(model, self._protocol, self._device)

    def _open_feature_network(self) -> FeatureNetwork:
        assert self._protocol.features is not None, "the protocol requires it"
        return FeatureNetwork(self._protocol.features, self._device)

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write a unit's scores and states."""
        table = read_unit(self._set_folder, unit.id, scratch)
        samples, ledger = self._decoded(table)
        scores = [self._score_table([], dict.fromkeys(self._per_sample(), np.zeros(0, np.float64)))]
        states: list[dict[str, Tensor]] = []
        codes: list[StreamCodes] = []
        for part in batched(samples, self._protocol.batch_size):
            batch = EvaluatedBatch(part, self._tokenizer, self._protocol)
            embeddings = _Embeddings(batch, self._understanding)
            scores.append(self._score_table(part, self._columns(batch, embeddings)))
            states.append(self._states(batch, embeddings))
            codes.append(batch.own_codes())
        (scratch / "scores").mkdir()
        (scratch / "states").mkdir()
        whole = pa.concat_tables(scores)
        _require_each_once(whole["key"].to_pylist(), [sample.key for sample in samples])
        for name, values in self._unified_columns(unit, samples, codes, scratch).items():
            whole = whole.append_column(name, score_column(values))
        pq.write_table(whole, scratch / score_file(unit.id), compression="zstd")
        save_file(_merged(states), scratch / state_file(unit.id))
        facts = describe_device(self._device).present()
        return UnitOutput((score_file(unit.id), state_file(unit.id)), ledger, facts=facts)

    def _decoded(self, table: pa.Table) -> tuple[list[EvaluatedSample], pa.Table]:
        samples: list[EvaluatedSample] = []
        verdicts: list[Verdict] = []
        for row in table.to_pylist():
            try:
                samples.append(self._sample(row))
            except UnreadableImageError as error:
                verdicts.append(Verdict(Status.FAILED, UNDECODABLE, f"{row['name']}: {error}"))
                continue
            verdicts.append(OK_VERDICT)
        return samples, ledger_table(table["key"].to_pylist(), verdicts)

    def _sample(self, row: Mapping[str, Any]) -> EvaluatedSample:
        """Return a row's sample; raises `UnreadableImageError` where its image gives no picture."""
        picture = decode_rgb(row["image"])
        return EvaluatedSample(
            key=row["key"],
            picture=first_view(picture, (self._protocol.view,), row["key"]),
            captions=row["captions"],
            label=row["label"],
            cluster=row["cluster"],
            description=row["description"],
            questions=tuple(read_questions(row.get(QUESTIONS.name))),
        )

    def _per_sample(self) -> list[MetricName]:
        """Return the metrics of tokenizers that each sample has by itself."""
        names: list[MetricName] = []
        for name in self._metrics:
            metric = CATALOGUE[name]
            if metric.is_per_sample and not metric.needs_every_sample and name not in UNIFIED_METRICS:
                names.append(name)
        return names

    def _of_unified(self) -> list[MetricName]:
        """Return the metrics of unified models."""
        return [name for name in self._metrics if name in UNIFIED_METRICS]

    def _unified_columns(
        self, unit: Unit, samples: Sequence[EvaluatedSample], codes: Sequence[StreamCodes], scratch: Path
    ) -> Mapping[MetricName, Column]:
        """Return the values of these metrics."""
        names = self._of_unified()
        if self._unified is None or not samples:
            return dict.fromkeys(names, np.zeros(0, np.float64))
        following = self._following(unit, samples, scratch)
        # In a batch of its own, as large as the others.
        next_codes = EvaluatedBatch([following], self._tokenizer, self._protocol).own_codes()
        return self._unified.columns(names, samples, following, joined_codes([*codes, next_codes]))

    def _following(self, unit: Unit, samples: Sequence[EvaluatedSample], scratch: Path) -> EvaluatedSample:
        """Return the set's next sample after those of a unit; after the last one, the first."""
        units = list(self._set.units)
        place = units.index(unit.id)
        for later in [*units[place + 1 :], *units[:place]]:
            for row in read_unit(self._set_folder, later, scratch).to_pylist():
                with suppress(UnreadableImageError):
                    return self._sample(row)
        return samples[0]

    def _columns(self, batch: EvaluatedBatch, embeddings: "_Embeddings") -> dict[str, Column]:
        """Return the values of these metrics."""
        columns: dict[str, Column] = {}
        for name in self._per_sample():
            base = name.removesuffix(TEACHER)
            if name in METRICS:
                columns[name] = self._close(name, batch)
            elif name == "objects_read":
                columns[name] = _objects_read(batch.reconstructions[: batch.size], batch.samples)
            elif name == "objects_read_original":
                columns[name] = _objects_read(batch.originals[: batch.size], batch.samples)
            elif CATALOGUE[name].needs_teacher:
                columns[name] = embeddings.column(base, by_teacher=name.endswith(TEACHER))
            else:
                columns[name] = _agreement(name, batch)
        return columns

    def _close(self, name: str, batch: EvaluatedBatch) -> Column:
        reconstructions = self._closeness.compared(batch.reconstructions[: batch.size])
        originals = self._closeness.compared(batch.originals[: batch.size])
        return self._closeness.values(name, reconstructions, originals)

    def _states(self, batch: EvaluatedBatch, embeddings: "_Embeddings") -> dict[str, Tensor]:
        """Return what the metrics of the whole set are made from: counts that add up, rows that follow."""
        states: dict[str, Tensor] = {}
        if any(name.startswith(_MADE_OF_COUNTS) for name in self._metrics):
            for stream in STREAMS:
                ids = torch.from_numpy(getattr(batch.codes, stream)[: batch.size].astype(np.int64))
                num_codes = getattr(self._tokenizer.config, stream).num_codes
                states[f"counts_{stream}"] = count_codes(ids, num_codes)
        if self._feature_network is not None:
            originals = self._closeness.compared(batch.originals)
            reconstructions = self._closeness.compared(batch.reconstructions)
            states |= self._feature_network.states(originals, reconstructions, batch.size)
        late: list[MetricName] = []
        for name in self._metrics:
            if CATALOGUE[name].needs_every_sample and CATALOGUE[name].needs_teacher:
                late.append(name)
        if late:
            states |= embeddings.rows(late)
        if late and "labels" in self._set.has:
            states["rows_labels"] = torch.tensor([sample.label for sample in batch.samples])
        return states

    def _score_table(self, samples: Sequence[EvaluatedSample], columns: dict[str, Column]) -> pa.Table:
        table = pa.table({"key": pa.array([sample.key for sample in samples], pa.binary(KEY_BYTES))})
        if "clusters" in self._set.has:
            clusters = pa.array([sample.cluster for sample in samples], pa.string())
            table = table.append_column("cluster", clusters)
        for name, values in columns.items():
            table = table.append_column(name, score_column(values))
        return table


class _Embeddings:
    """A batch's embeddings, each made once and only where a metric asks for it."""

    def __init__(self, batch: EvaluatedBatch, understanding: Understanding | None) -> None:
        self._batch = batch
        self._understanding = understanding
        self._images: dict[bool, Tensor] = {}

    def images(self, *, by_teacher: bool) -> Tensor:
        """Return unit embeddings of the images."""
        assert self._understanding is not None
        if by_teacher not in self._images:
            self._images[by_teacher] = self._understanding.images(self._batch, by_teacher=by_teacher)
        return self._images[by_teacher]

    def column(self, metric: str, *, by_teacher: bool) -> Column:
        """Return the values of a metric of understanding."""
        assert self._understanding is not None
        images = self.images(by_teacher=by_teacher)
        if metric == "zero_shot":
            return self._understanding.is_class_right(self._batch, images)
        attribute = cast("Attribute", metric.removeprefix("attribute_"))
        return self._understanding.attribute_shares(self._batch, images, attribute)

    def rows(self, metrics: Sequence[str]) -> dict[str, Tensor]:
        """Return the embeddings that metrics of the whole set need."""
        assert self._understanding is not None
        rows = {"rows_codes": self.images(by_teacher=False), "rows_teacher": self.images(by_teacher=True)}
        samples = self._batch.samples
        if any("text" in name for name in metrics):
            rows["rows_texts"] = self._understanding.texts(
                [caption for sample in samples for caption in sample.captions]
            )
            rows["rows_num_texts"] = torch.tensor([len(sample.captions) for sample in samples])
        if "fd_teacher" in metrics:
            rows["rows_reconstructions"] = self._understanding.reconstructions(self._batch)
        return rows


def score_column(values: Column) -> pa.Array:
    """Return a column of a score table; NaN, of samples that a metric leaves out, is null there."""
    return pa.array(values, pa.float64(), mask=np.isnan(values))


def joined_codes(parts: Sequence[StreamCodes]) -> StreamCodes:
    """Return codes of images, one part after the other."""
    return StreamCodes(
        semantic=np.concatenate([part.semantic for part in parts]),
        pixel=np.concatenate([part.pixel for part in parts]),
    )


def _require_each_once(scored: Sequence[bytes], keys: Sequence[bytes]) -> None:
    """Fail where a sample was scored twice, or not at all: means would be of other samples than they say."""
    for key in keys:
        count = scored.count(key)
        assert count == 1, f"the sample {key.hex()} was scored {count} times: the evaluator is at fault"


def _merged(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return a unit's states: sums of counts, and rows one after the other."""
    merged: dict[str, Tensor] = {}
    for name in states[0] if states else ():
        parts = [state[name] for state in states]
        merged[name] = torch.stack(parts).sum(dim=0) if name.startswith("counts_") else torch.cat(parts)
    return {name: value.contiguous() for name, value in merged.items()}


def _agreement(metric: str, batch: EvaluatedBatch) -> Column:
    """Return the share of each image's codes of a stream that another encoding gives again."""
    kind, _, stream = metric.rpartition("_")
    others: dict[str, str] = {
        "idempotence": "codes_of_reconstructions",
        "jpeg_agreement": "codes_through_jpeg",
        "batch_agreement": "codes_alone",
    }
    again: StreamCodes = getattr(batch, others[kind])
    equal = getattr(batch.codes, stream)[: batch.size] == getattr(again, stream)[: batch.size]
    return equal.reshape(batch.size, -1).mean(axis=1, dtype=np.float64)


def _objects_read(pictures: UInt8[Tensor, "B 3 64 64"], samples: Sequence[EvaluatedSample]) -> Column:
    """Return the share of the attributes of each scene's objects that the oracle reads as they were drawn."""
    shares: list[float] = []
    for found, sample in zip(read_scenes(pictures), samples, strict=True):
        counter = AttributeCounter()
        counter.add(found, json.loads(sample.description)["objects"])
        shares.append(float(np.mean([counter.accuracy(attribute) for attribute in CHANCE])))
    return np.array(shares, np.float64)
