"""Evaluate stage: one tokenizer on one set by one protocol; a unit is 256 images.

A unit's output is `scores/<unit>.parquet`, a row a sample, and `states/<unit>.safetensors`, the sums and the
embeddings that the metrics of the whole set are made from by `evaluate_finish`. B images a batch, S pixels a
side, E channels of an embedding, D codes a position.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import UInt8
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from dualtoken.infra.scratch import scratch_folder
from dualtoken.model.metrics.classification import class_embeddings, zero_shot_prompts, zero_shot_scores
from dualtoken.model.metrics.codebook import count_codes
from dualtoken.model.vision.faults import UnreadableImageError
from dualtoken.pipelines.config.evaluation import EvaluationConfig, MetricName
from dualtoken.pipelines.core.ledger import KEY_BYTES, OK_VERDICT, Status, Verdict, ledger_table
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.closeness import METRICS, Closeness, as_picture, through_jpeg
from dualtoken.pipelines.evaluation.metric_catalogue import (
    CATALOGUE,
    TEACHER,
    needs_teacher,
)
from dualtoken.pipelines.evaluation.scene_oracle import read_scenes
from dualtoken.pipelines.evaluation.scene_readings import CHANCE, AttributeCounter
from dualtoken.pipelines.evaluation.sets import SET_FILE, ResolvedSet, read_unit
from dualtoken.pipelines.images.crops import first_view
from dualtoken.pipelines.images.decoding import UNDECODABLE, decode_rgb
from dualtoken.pipelines.images.samples import batched
from dualtoken.pipelines.images.scene_generator import IMAGE_SIZE, Attribute, attribute_choices
from dualtoken.pipelines.inference.networks import (
    StreamCodes,
    TeacherRunner,
    TokenizerRunner,
    describe_device,
    prepare_process,
    stage_device,
)

STAGE = "evaluate"
SET_INPUT = "set"
"""Name of the input with the resolved set."""
MODEL_INPUT = "model"
TEACHER_INPUT = "teacher"
STREAMS = ("semantic", "pixel")
OBJECTS_PER_SCENE = 2
_TEXT_BATCH = 256
_PRUNED = ("usage_", "perplexity_", "bits_")
"""Beginnings of metrics that are made from counts of codes."""

Columns = dict[str, np.ndarray[Any, Any]]
"""Values by metric, a float64 for each sample of a batch."""


def score_file(unit: str) -> str:
    """Name a unit's scores."""
    return f"scores/{unit}.parquet"


def state_file(unit: str) -> str:
    """Name a unit's sums and embeddings."""
    return f"states/{unit}.safetensors"


class _Sample(NamedTuple):
    """A sample whose image gave a picture."""

    key: bytes
    picture: Image.Image
    captions: list[str]
    label: int | None
    cluster: str | None
    description: str


class _Batch(NamedTuple):
    """Samples as the networks see them; those that pad the batch stand last."""

    samples: Sequence[_Sample]
    """The samples, without the padding."""
    pictures: list[Image.Image]
    originals: UInt8[Tensor, "B 3 S S"]
    codes: StreamCodes
    reconstructions: UInt8[Tensor, "B 3 S S"]

    @property
    def size(self) -> int:
        """Number of samples, without the padding."""
        return len(self.samples)


class Worker:
    """Evaluates units; the networks are opened once."""

    def __init__(self, job: StageJob[EvaluationConfig]) -> None:
        # As many threads wherever it runs: others give other last bits.
        prepare_process(threads=int(job.asks.cpus))
        self._job = job
        (self._protocol,) = job.recipe.protocols.values()
        self._metrics: tuple[MetricName, ...] = self._protocol.metrics
        self._set_folder = job.input(SET_INPUT)
        self._set = ResolvedSet.read(self._set_folder, SET_FILE)
        device = stage_device(job)
        self._device = device
        with scratch_folder() as scratch:
            model = job.input(MODEL_INPUT).local_folder(Path(scratch) / MODEL_INPUT)
            self._tokenizer = TokenizerRunner(model, device, self._protocol.precision)
            self._teacher: TeacherRunner | None = None
            if needs_teacher(self._protocol):
                teacher = job.input(TEACHER_INPUT).local_folder(Path(scratch) / TEACHER_INPUT)
                self._teacher = TeacherRunner(teacher, device, self._protocol.precision)
        self._closeness = Closeness(self._protocol, device)
        self._caption_embeddings: dict[str, Tensor] = {}

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write a unit's scores and states."""
        table = read_unit(self._set_folder, unit.id, scratch)
        samples, ledger = self._decoded(table)
        has_clusters = "clusters" in self._set.has
        scores: list[pa.Table] = []
        states: list[dict[str, Tensor]] = []
        for part in batched(samples, self._protocol.batch_size):
            batch = self._batch(part)
            scores.append(_score_table(part, self._columns(batch), has_clusters=has_clusters))
            states.append(self._states(batch))
        (scratch / "scores").mkdir()
        (scratch / "states").mkdir()
        if not scores:
            nothing = dict.fromkeys(self._per_sample(), np.zeros(0, np.float64))
            scores.append(_score_table([], nothing, has_clusters=has_clusters))
        pq.write_table(pa.concat_tables(scores), scratch / score_file(unit.id), compression="zstd")
        save_file(_merged(states), scratch / state_file(unit.id))
        facts = describe_device(self._device).present()
        return UnitOutput((score_file(unit.id), state_file(unit.id)), ledger, facts=facts)

    def _decoded(self, table: pa.Table) -> tuple[list[_Sample], pa.Table]:
        samples: list[_Sample] = []
        verdicts: list[Verdict] = []
        for row in table.to_pylist():
            try:
                picture = decode_rgb(row["image"])
            except UnreadableImageError as error:
                verdicts.append(Verdict(Status.FAILED, UNDECODABLE, f"{row['name']}: {error}"))
                continue
            verdicts.append(OK_VERDICT)
            view = first_view(picture, (self._protocol.view,), row["key"])
            samples.append(
                _Sample(row["key"], view, row["captions"], row["label"], row["cluster"], row["description"])
            )
        return samples, ledger_table(table["key"].to_pylist(), verdicts)

    def _batch(self, samples: Sequence[_Sample]) -> _Batch:
        pictures = [sample.picture for sample in samples]
        # A last batch of another size would round in another way than the others.
        pictures += [pictures[-1]] * (self._protocol.batch_size - len(pictures))
        originals = self._tokenizer.levels(pictures)
        codes = self._tokenizer.encode_levels(originals)
        if self._protocol.cast == "truncate":
            reconstructions = self._tokenizer.decode_truncated(codes.pixel)
        else:
            reconstructions = self._tokenizer.decode(codes.pixel)
        return _Batch(samples, pictures, originals.cpu(), codes, reconstructions.cpu())

    def _per_sample(self) -> list[MetricName]:
        return [
            name
            for name in self._metrics
            if CATALOGUE[name].is_per_sample and not CATALOGUE[name].needs_every_sample
        ]

    def _columns(self, batch: _Batch) -> Columns:
        """Return the values of the metrics that each sample has by itself."""
        columns: Columns = {}
        for name in self._per_sample():
            base = name.removesuffix(TEACHER)
            if name in METRICS:
                columns[name] = self._closeness.values(name, *self._compared(batch))
            elif name.startswith("objects_read"):
                pictures = batch.originals if name == "objects_read_original" else batch.reconstructions
                columns[name] = _objects_read(pictures[: batch.size], batch.samples)
            elif base.startswith("attribute_"):
                attribute = base.removeprefix("attribute_")
                columns[name] = self._attribute(batch, attribute, by_teacher=name.endswith(TEACHER))  # type: ignore[arg-type]
            elif base == "zero_shot":
                columns[name] = self._zero_shot(batch, by_teacher=name.endswith(TEACHER))
            else:
                kind, _, stream = name.rpartition("_")
                columns[name] = _agreement(batch.codes, self._codes_again(batch, kind), stream)[: batch.size]
        return columns

    def _compared(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        """Return reconstructions and images as they are compared, without the padding."""
        reconstructions = self._closeness.compared(batch.reconstructions[: batch.size])
        return reconstructions, self._closeness.compared(batch.originals[: batch.size])

    def _codes_again(self, batch: _Batch, kind: str) -> StreamCodes:
        """Return the codes of a batch's images, encoded in another way."""
        if kind == "idempotence":
            return self._tokenizer.encode_levels(batch.reconstructions)
        if kind == "jpeg_agreement":
            quality = self._protocol.agreement_jpeg_quality
            return self._tokenizer.encode_levels(through_jpeg(batch.originals, quality))
        alone = [self._tokenizer.encode_levels(image[None]) for image in batch.originals[: batch.size]]
        return StreamCodes(
            semantic=np.concatenate([codes.semantic for codes in alone]),
            pixel=np.concatenate([codes.pixel for codes in alone]),
        )

    def _embeddings(self, batch: _Batch, *, by_teacher: bool) -> Tensor:
        """Return unit embeddings of a batch's images, (samples, E): the teacher's own, or the codes'."""
        assert self._teacher is not None
        if by_teacher:
            embeddings = self._teacher.images(self._teacher.levels(batch.pictures))
        else:
            embeddings = self._teacher.project(self._tokenizer.embed(batch.codes.semantic))
        return embeddings[: batch.size].cpu()

    def _texts(self, captions: Sequence[str]) -> Tensor:
        """Return embeddings of texts, each embedded once."""
        assert self._teacher is not None
        missing = [caption for caption in dict.fromkeys(captions) if caption not in self._caption_embeddings]
        for part in batched(missing, _TEXT_BATCH):
            for caption, embedding in zip(part, self._teacher.texts(part).cpu(), strict=True):
                self._caption_embeddings[caption] = embedding
        return torch.stack([self._caption_embeddings[caption] for caption in captions])

    def _attribute(self, batch: _Batch, attribute: Attribute, *, by_teacher: bool) -> np.ndarray[Any, Any]:
        """Return the share of each scene's objects whose caption is nearest of some with other words."""
        images = self._embeddings(batch, by_teacher=by_teacher).double()
        shares: list[float] = []
        for image, sample in zip(images, batch.samples, strict=True):
            description = json.loads(sample.description)
            right = 0
            for number in range(OBJECTS_PER_SCENE):
                captions, place = attribute_choices(description, number, attribute)
                right += int((self._texts(captions).double() @ image).argmax().item() == place)
            shares.append(right / OBJECTS_PER_SCENE)
        return np.array(shares, np.float64)

    @cached_property
    def _classes(self) -> Tensor:
        prompts = zero_shot_prompts(self._set.class_names, self._protocol.templates)
        texts = self._texts(prompts)
        return class_embeddings(texts.unflatten(0, (len(self._set.class_names), -1)))

    def _zero_shot(self, batch: _Batch, *, by_teacher: bool) -> np.ndarray[Any, Any]:
        scores = zero_shot_scores(self._embeddings(batch, by_teacher=by_teacher), self._classes)
        labels = torch.tensor([sample.label for sample in batch.samples])
        return (scores.argmax(dim=1) == labels).double().numpy()

    def _states(self, batch: _Batch) -> dict[str, Tensor]:
        """Return what the metrics of the whole set are made from: counts that add up, rows that follow."""
        states: dict[str, Tensor] = {}
        if any(name.startswith(_PRUNED) for name in self._metrics):
            for stream in STREAMS:
                ids = torch.from_numpy(getattr(batch.codes, stream)[: batch.size].astype(np.int64))
                num_codes = getattr(self._tokenizer.config, stream).num_codes
                states[f"counts_{stream}"] = count_codes(ids, num_codes)
        late = [name for name in self._metrics if CATALOGUE[name].needs_every_sample]
        if not late:
            return states
        states["rows_codes"] = self._embeddings(batch, by_teacher=False)
        states["rows_teacher"] = self._embeddings(batch, by_teacher=True)
        if any("text" in name for name in late):
            captions = [caption for sample in batch.samples for caption in sample.captions]
            states["rows_texts"] = self._texts(captions)
            states["rows_num_texts"] = torch.tensor([len(sample.captions) for sample in batch.samples])
        if "fd_teacher" in late:
            assert self._teacher is not None
            pictures = [as_picture(image) for image in batch.reconstructions]
            embeddings = self._teacher.images(self._teacher.levels(pictures))
            states["rows_reconstructions"] = embeddings[: batch.size].cpu()
        if any(sample.label is not None for sample in batch.samples):
            states["rows_labels"] = torch.tensor([sample.label for sample in batch.samples])
        return states


def _score_table(samples: Sequence[_Sample], columns: Columns, *, has_clusters: bool) -> pa.Table:
    table = pa.table({"key": pa.array([sample.key for sample in samples], pa.binary(KEY_BYTES))})
    if has_clusters:
        clusters = pa.array([sample.cluster for sample in samples], pa.string())
        table = table.append_column("cluster", clusters)
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, pa.float64()))
    return table


def _merged(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return a unit's states: sums of counts, and rows one after the other."""
    merged: dict[str, Tensor] = {}
    for name in states[0] if states else ():
        parts = [state[name] for state in states]
        merged[name] = torch.stack(parts).sum(dim=0) if name.startswith("counts_") else torch.cat(parts)
    return {name: value.contiguous() for name, value in merged.items()}


def _agreement(codes: StreamCodes, others: StreamCodes, stream: str) -> np.ndarray[Any, Any]:
    """Return the share of each image's codes of a stream that two encodings have in common."""
    first = getattr(codes, stream)
    second = getattr(others, stream)
    equal = first[: len(second)] == second
    return equal.reshape(len(equal), -1).mean(axis=1, dtype=np.float64)


def _objects_read(pictures: UInt8[Tensor, "B 3 S S"], samples: Sequence[_Sample]) -> np.ndarray[Any, Any]:
    """Return the share of the attributes of each scene's objects that the oracle reads as they were drawn."""
    if pictures.shape[-1] != IMAGE_SIZE:
        raise UserError(
            f"objects_read reads scenes of {IMAGE_SIZE} pixels a side, the tokenizer's are of "
            f"{pictures.shape[-1]}: leave the metric out"
        )
    shares: list[float] = []
    for found, sample in zip(read_scenes(pictures), samples, strict=True):
        counter = AttributeCounter()
        counter.add(found, json.loads(sample.description)["objects"])
        shares.append(float(np.mean([counter.accuracy(attribute) for attribute in CHANCE])))
    return np.array(shares, np.float64)
