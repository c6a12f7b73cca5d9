"""Evaluation of a run's tokens on its held-out samples, for the report.

Every figure is made by the code of `evaluate`, from batches whose codes are the stored ones: pixel codes are
decoded and compared with the images, semantic codes are embedded and compared with the captions. B samples a
batch, N samples in all, E channels of an embedding.
"""

import io
import json
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from dualtoken.model.metrics.codebook import codebook_use, count_codes
from dualtoken.model.metrics.retrieval import is_recalled, retrieve
from dualtoken.pipelines.config.evaluation import EvaluationProtocol
from dualtoken.pipelines.evaluation.closeness import Closeness, as_picture
from dualtoken.pipelines.evaluation.evaluated_batch import EvaluatedBatch
from dualtoken.pipelines.evaluation.heldout import HeldoutPart
from dualtoken.pipelines.evaluation.report_data import (
    AttributeAccuracy,
    CodebookUsage,
    Pair,
    Reconstruction,
    Retrieval,
    SceneReadings,
    Stream,
    ZeroShot,
)
from dualtoken.pipelines.evaluation.scene_readings import (
    CHANCE,
    PictureReading,
    ReadingCounter,
    compared_readings,
)
from dualtoken.pipelines.evaluation.understanding import Understanding
from dualtoken.pipelines.images.scene_generator import IMAGE_SIZE, Attribute
from dualtoken.pipelines.inference.networks import StreamCodes, TeacherRunner, TokenizerRunner
from dualtoken.pipelines.inference.scene_questions import ATTRIBUTES
from dualtoken.pipelines.tokens.shards import Ids

CLOSENESS = ("psnr", "ssim")
"""Metrics of reconstructions that a report has."""


class _Understood(NamedTuple):
    """A batch's embeddings, and what they say of its scenes."""

    images: Float[Tensor, "B E"]
    shares: dict[Attribute, np.ndarray[Any, Any]]
    """Share of each scene's objects whose own caption is nearest, by attribute; none for other images."""


class Evaluation:
    """Accumulates figures over held-out samples."""

    def __init__(
        self, tokenizer: TokenizerRunner, teacher: TeacherRunner, num_pairs: int, batch_size: int
    ) -> None:
        self._tokenizer = tokenizer
        self._num_pairs = num_pairs
        self._protocol = EvaluationProtocol(metrics=CLOSENESS, batch_size=batch_size)
        self._closeness = Closeness(self._protocol, tokenizer.device)
        self._understanding = Understanding(tokenizer, teacher, (), self._protocol.templates)
        self._values: dict[str, list[float]] = {metric: [] for metric in CLOSENESS}
        self._original_readings = ReadingCounter()
        self._reconstruction_readings = ReadingCounter()
        self._counts: dict[Stream, Int64[Tensor, "D K"]] = {}
        self._by_teacher: list[_Understood] = []
        self._by_codes: list[_Understood] = []
        self._captions: list[str] = []
        self._num_scenes = 0
        self.pairs: list[Pair] = []

    def add(self, part: HeldoutPart) -> None:
        """Add samples to all figures."""
        stored = StreamCodes(semantic=self._as_grids(part.semantic), pixel=self._as_grids(part.pixel))
        batch = EvaluatedBatch(part.samples, self._tokenizer, self._protocol, stored)
        self._add_reconstructions(batch, are_whole_scenes=part.are_whole_scenes)
        config = self._tokenizer.config
        self._add_counts("semantic", stored.semantic, config.semantic.num_codes)
        self._add_counts("pixel", stored.pixel, config.pixel.num_codes)
        self._by_teacher.append(self._understood(batch, by_teacher=True))
        self._by_codes.append(self._understood(batch, by_teacher=False))
        for sample in part.samples:
            self._captions += sample.captions
            self._num_scenes += bool(sample.description)

    def _as_grids(self, codes: Ids) -> Ids:
        """Return rows of codes as (B, H, W, D)."""
        config = self._tokenizer.config
        return codes.reshape(len(codes), config.grid_size, config.grid_size, config.pixel.depth)

    def _add_reconstructions(self, batch: EvaluatedBatch, *, are_whole_scenes: bool) -> None:
        originals = batch.originals[: batch.size]
        reconstructions = batch.reconstructions[: batch.size]
        for metric in CLOSENESS:
            self._values[metric] += self._closeness.values(metric, reconstructions, originals).tolist()
        readings = [PictureReading("", is_right=False)] * batch.size
        if are_whole_scenes and originals.shape[2:] == (IMAGE_SIZE, IMAGE_SIZE):
            descriptions = [json.loads(sample.description) for sample in batch.samples]
            self._original_readings.add(originals, descriptions)
            readings = self._reconstruction_readings.add(reconstructions, descriptions)
        ratios = self._values["psnr"][-batch.size :]
        num_shown = min(batch.size, self._num_pairs - len(self.pairs))
        for row, sample in enumerate(batch.samples[:num_shown]):
            pair = Pair(
                caption=sample.captions[0],
                key=sample.key.hex(),
                original=_png(originals[row]),
                reconstruction=_png(reconstructions[row]),
                psnr=ratios[row],
                reading=readings[row].text,
                is_read_right=readings[row].is_right,
            )
            self.pairs.append(pair)

    def _add_counts(self, stream: Stream, codes: Ids, num_codes: int) -> None:
        counts = count_codes(torch.from_numpy(codes.astype(np.int64)), num_codes)
        if stream in self._counts:
            counts += self._counts[stream]
        self._counts[stream] = counts

    def _understood(self, batch: EvaluatedBatch, *, by_teacher: bool) -> _Understood:
        images = self._understanding.images(batch, by_teacher=by_teacher)
        shares: dict[Attribute, np.ndarray[Any, Any]] = {}
        if all(sample.description for sample in batch.samples):
            for attribute in ATTRIBUTES:
                shares[attribute] = self._understanding.attribute_shares(batch, images, attribute)
        return _Understood(images, shares)

    def reconstruction(self) -> Reconstruction | None:
        """Return how close the decoded images are; None without images."""
        if not self._captions:
            return None
        return Reconstruction(
            psnr=float(np.mean(self._values["psnr"])),
            ssim=float(np.mean(self._values["ssim"])),
            psnr_per_image=tuple(self._values["psnr"]),
            ssim_per_image=tuple(self._values["ssim"]),
        )

    def readings(self) -> SceneReadings | None:
        """Return how well objects can be read in the reconstructions; None without whole scenes."""
        return compared_readings(self._original_readings, self._reconstruction_readings)

    def usage(self) -> tuple[CodebookUsage, ...]:
        """Return how evenly each stream's codes are used."""
        return tuple(_usage(stream, counts) for stream, counts in self._counts.items())

    def retrieval(self) -> Retrieval | None:
        """Return how often an image's nearest caption is its own; None without images."""
        if not self._captions:
            return None
        return Retrieval(
            num_pairs=len(self._captions),
            teacher=self._recall_at_1(self._by_teacher),
            quantised=self._recall_at_1(self._by_codes),
        )

    def _recall_at_1(self, batches: list[_Understood]) -> float:
        images = torch.cat([batch.images for batch in batches])
        texts = self._understanding.texts(self._captions)
        found = retrieve(images, texts, self._captions, torch.arange(len(images)))
        return is_recalled(found.texts, 1).double().mean().item()

    def zero_shot(self) -> ZeroShot | None:
        """Return how well embeddings tell the attributes of things; None unless all samples are scenes."""
        if not self._captions or self._num_scenes < len(self._captions):
            return None
        attributes: list[AttributeAccuracy] = []
        for name in ATTRIBUTES:
            accuracy = AttributeAccuracy(
                name=name,
                teacher=_mean_share(self._by_teacher, name),
                quantised=_mean_share(self._by_codes, name),
                chance=CHANCE[name],
            )
            attributes.append(accuracy)
        return ZeroShot(
            num_images=len(self._captions),
            attributes=tuple(attributes),
            teacher=float(np.mean([attribute.teacher for attribute in attributes])),
            quantised=float(np.mean([attribute.quantised for attribute in attributes])),
            chance=float(np.mean([attribute.chance for attribute in attributes])),
        )


def _mean_share(batches: list[_Understood], attribute: Attribute) -> float:
    return float(np.mean(np.concatenate([batch.shares[attribute] for batch in batches])))


def _usage(stream: Stream, counts: Int64[Tensor, "D K"]) -> CodebookUsage:
    use = codebook_use(counts)
    return CodebookUsage(
        stream=stream,
        num_codes=counts.shape[1],
        usage=use.usage.item(),
        usage_per_depth=tuple(use.usage_per_depth.tolist()),
        perplexity_per_depth=tuple(use.perplexity_per_depth.tolist()),
    )


def _png(levels: UInt8[Tensor, "3 S S"]) -> bytes:
    buffer = io.BytesIO()
    as_picture(levels).save(buffer, "PNG")
    return buffer.getvalue()
