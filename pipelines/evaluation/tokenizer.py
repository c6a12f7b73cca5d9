"""Evaluation of a tokenizer on held-out samples, from their stored tokens.

Pixel codes are decoded and compared with the images; semantic codes are embedded and compared with the
captions. B samples, N embeddings of W channels.
"""

import io
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dualtoken.model.metrics.codebook import codebook_use, count_codes
from dualtoken.model.metrics.reconstruction import psnr_per_image, ssim
from dualtoken.pipelines.evaluation.heldout import HeldoutBatch
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
from dualtoken.pipelines.images.samples import batched
from dualtoken.pipelines.images.scene_generator import IMAGE_SIZE
from dualtoken.pipelines.inference.networks import TeacherRunner, TokenizerRunner
from dualtoken.pipelines.inference.scene_questions import ATTRIBUTES, SceneQuestions
from dualtoken.pipelines.tokens.shards import Ids

TEXT_BATCH = 512
"""Captions that are embedded together."""


class _ImageEmbeddings(NamedTuple):
    """Embeddings of the same images, before and after quantisation."""

    teacher: Tensor
    """(N, W)"""
    quantised: Tensor
    """(N, W)"""


class Evaluation:
    """Accumulates figures over batches of held-out samples."""

    def __init__(self, tokenizer: TokenizerRunner, teacher: TeacherRunner, num_pairs: int) -> None:
        self._tokenizer = tokenizer
        self._teacher = teacher
        self._num_pairs = num_pairs
        self._psnr: list[float] = []
        self._ssim: list[float] = []
        self._original_readings = ReadingCounter()
        self._reconstruction_readings = ReadingCounter()
        self._counts: dict[Stream, Tensor] = {}
        self._teacher_images: list[Tensor] = []
        self._quantised_images: list[Tensor] = []
        self._texts: list[Tensor] = []
        self._descriptions: list[dict[str, Any]] = []
        self.keys: list[bytes] = []
        self.pairs: list[Pair] = []

    def add(self, batch: HeldoutBatch) -> None:
        """Add a batch to all figures."""
        config = self._tokenizer.config
        self._add_reconstructions(batch)
        self._add_counts("semantic", batch.semantic, config.semantic.num_codes)
        self._add_counts("pixel", batch.pixel, config.pixel.num_codes)
        self._add_embeddings(batch)
        self.keys += batch.keys
        self._descriptions += batch.descriptions

    def _as_grids(self, codes: Ids) -> Ids:
        """Return rows of codes as (B, H, W, D)."""
        config = self._tokenizer.config
        return codes.reshape(len(codes), config.grid_size, config.grid_size, config.pixel.depth)

    def _add_reconstructions(self, batch: HeldoutBatch) -> None:
        originals = batch.levels.to(self._tokenizer.device)
        reconstructions = self._tokenizer.decode(self._as_grids(batch.pixel))
        ratios = psnr_per_image(reconstructions, originals)
        self._psnr += ratios.tolist()
        self._ssim += ssim(reconstructions, originals).reshape(-1).tolist()
        readings = self._readings(batch, originals, reconstructions)
        num_shown = min(len(batch.keys), self._num_pairs - len(self.pairs))
        for row in range(num_shown):
            reading = readings[row]
            pair = Pair(
                caption=batch.captions[row],
                key=batch.keys[row].hex(),
                original=_png(originals[row]),
                reconstruction=_png(reconstructions[row]),
                psnr=ratios[row].item(),
                reading=reading.text,
                is_read_right=reading.is_right,
            )
            self.pairs.append(pair)

    def _readings(
        self, batch: HeldoutBatch, originals: Tensor, reconstructions: Tensor
    ) -> list[PictureReading]:
        """Read scenes in a batch's pictures, and return what is read in the reconstructions."""
        is_drawn_size = originals.shape[2:] == (IMAGE_SIZE, IMAGE_SIZE)
        if not batch.are_whole_scenes or not is_drawn_size:
            return [PictureReading("", is_right=False)] * len(batch.keys)
        self._original_readings.add(originals.cpu(), batch.descriptions)
        return self._reconstruction_readings.add(reconstructions.cpu(), batch.descriptions)

    def _add_counts(self, stream: Stream, codes: Ids, num_codes: int) -> None:
        ids = torch.from_numpy(codes.astype(np.int64)).reshape(-1, self._tokenizer.config.pixel.depth)
        counts = count_codes(ids, num_codes)
        if stream in self._counts:
            counts += self._counts[stream]
        self._counts[stream] = counts

    def _add_embeddings(self, batch: HeldoutBatch) -> None:
        self._teacher_images.append(self._teacher.images(batch.teacher_levels))
        quantised_features = self._tokenizer.embed(self._as_grids(batch.semantic))
        self._quantised_images.append(self._teacher.project(quantised_features))
        self._texts.append(self._teacher.texts(batch.captions))

    def reconstruction(self) -> Reconstruction | None:
        """Return how close the decoded images are; None without images."""
        if not self.keys:
            return None
        return Reconstruction(
            psnr=float(np.mean(self._psnr)),
            ssim=float(np.mean(self._ssim)),
            psnr_per_image=tuple(self._psnr),
            ssim_per_image=tuple(self._ssim),
        )

    def readings(self) -> SceneReadings | None:
        """Return how well objects can be read in the reconstructions; None without whole scenes."""
        return compared_readings(self._original_readings, self._reconstruction_readings)

    def usage(self) -> tuple[CodebookUsage, ...]:
        """Return how evenly each stream's codes are used."""
        return tuple(_usage(stream, counts) for stream, counts in self._counts.items())

    def retrieval(self) -> Retrieval | None:
        """Return how often an image's own caption is the nearest of all; None without images."""
        if not self.keys:
            return None
        images = self._image_embeddings()
        texts = torch.cat(self._texts)
        return Retrieval(
            num_pairs=len(self.keys),
            teacher=_recall_at_1(images.teacher, texts),
            quantised=_recall_at_1(images.quantised, texts),
        )

    def _image_embeddings(self) -> _ImageEmbeddings:
        return _ImageEmbeddings(torch.cat(self._teacher_images), torch.cat(self._quantised_images))

    def zero_shot(self) -> ZeroShot | None:
        """Return how well embeddings tell the attributes of things; None unless all samples are scenes."""
        if not self.keys or len(self._descriptions) < len(self.keys):
            return None
        images = self._image_embeddings()
        questions = SceneQuestions(self._descriptions)
        texts = torch.cat([self._teacher.texts(batch) for batch in batched(questions.captions, TEXT_BATCH)])
        teacher = questions.accuracies(images.teacher, texts)
        quantised = questions.accuracies(images.quantised, texts)
        attributes: list[AttributeAccuracy] = []
        for name in ATTRIBUTES:
            accuracy = AttributeAccuracy(
                name=name, teacher=teacher[name], quantised=quantised[name], chance=CHANCE[name]
            )
            attributes.append(accuracy)
        return ZeroShot(
            num_images=len(self.keys),
            attributes=tuple(attributes),
            teacher=float(np.mean(list(teacher.values()))),
            quantised=float(np.mean(list(quantised.values()))),
            chance=float(np.mean([CHANCE[name] for name in ATTRIBUTES])),
        )


def _recall_at_1(images: Tensor, texts: Tensor) -> float:
    """Return how often the nearest of the texts is the image's own, which has its row."""
    own = torch.arange(len(texts), device=texts.device)
    nearest = (images @ texts.T).argmax(dim=1)
    return (nearest == own).double().mean().item()


def _usage(stream: Stream, counts: Tensor) -> CodebookUsage:
    use = codebook_use(counts)
    return CodebookUsage(
        stream=stream,
        num_codes=counts.shape[1],
        usage=use.usage.item(),
        usage_per_depth=tuple(use.usage_per_depth.tolist()),
        perplexity_per_depth=tuple(use.perplexity_per_depth.tolist()),
    )


def _png(levels: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(levels.permute(1, 2, 0).cpu().numpy()).save(buffer, "PNG")
    return buffer.getvalue()
