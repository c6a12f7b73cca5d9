"""Measures a tokenizer on held-out samples, from the tokens that were stored: decodes them, and reads meaning off them."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from dualtoken.model.metrics.codebook import codebook_use, count_codes
from dualtoken.model.metrics.reconstruction import psnr_per_image, ssim
from dualtoken.model.metrics.retrieval import choice_accuracy
from dualtoken.pipelines.config.corpora import ScenesSource
from dualtoken.pipelines.config.pretokenize import PretokenizeConfig
from dualtoken.pipelines.core.receipts import read_manifest
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.evaluation.report_data import (
    AttributeAccuracy,
    CodebookUsage,
    Pair,
    Reconstruction,
    Retrieval,
    Stream,
    ZeroShot,
)
from dualtoken.pipelines.images.crops import first_view
from dualtoken.pipelines.images.samples import batched, decode_rgb, is_heldout, open_image_shard
from dualtoken.pipelines.images.scene_generator import Attribute, attribute_choices
from dualtoken.pipelines.images.shards import ImageShard
from dualtoken.pipelines.inference.networks import TeacherRunner, TokenizerRunner
from dualtoken.pipelines.tokens.shards import Ids, codes_of, data_path, read_data_shard

ATTRIBUTES: tuple[Attribute, ...] = ("shape", "colour", "size")
CHANCE = {"shape": 1 / 6, "colour": 1 / 8, "size": 1 / 2}


class HeldoutBatch(NamedTuple):
    """Held-out samples with their stored codes."""

    keys: list[bytes]
    captions: list[str]
    pictures: list[Image.Image]
    semantic: Ids
    """(B, codes of a row)"""
    pixel: Ids
    """(B, codes of a row)"""
    descriptions: list[dict[str, Any]]
    """What each scene shows; empty for images that nobody described."""


def heldout_batches(job: StageJob, scratch: Path, size: int) -> Iterator[HeldoutBatch]:
    """Yield the held-out samples that reached the token shards, in order."""
    settings = job.recipe.pretokenize
    for corpus in job.recipe.heldout_corpora:
        tokens, images = job.input("pretokenize", corpus), job.input("download", corpus)
        scenes = isinstance(job.recipe.corpora[corpus].source, ScenesSource)
        manifest = read_manifest(tokens)
        assert manifest is not None, "a report is planned on finished inputs"
        for name in manifest.units:
            table = read_data_shard(tokens.local_copy(data_path(name), scratch / corpus))
            shard = open_image_shard(images, name, scratch / corpus)
            keys = table["key"].to_pylist()
            # Of the variants of a sample the first.
            rows = [
                row
                for row in range(0, len(keys), settings.num_variants)
                if is_heldout(job.recipe, corpus, keys[row])
            ]
            for batch in batched(rows, size):
                yield _batch(table.take(pa.array(batch, pa.int64())), shard, settings, scenes=scenes)


def _batch(table: pa.Table, shard: ImageShard, settings: PretokenizeConfig, *, scenes: bool) -> HeldoutBatch:
    places = {key: row for row, key in enumerate(shard.keys)}
    keys = table["key"].to_pylist()
    rows = [places[key] for key in keys]
    pictures = [
        first_view(decode_rgb(shard.image(row)), settings.crops, key)
        for row, key in zip(rows, keys, strict=True)
    ]
    described = shard.metadata["description"].take(pa.array(rows, pa.int64())).to_pylist() if scenes else []
    return HeldoutBatch(
        keys,
        [shard.captions[row] for row in rows],
        pictures,
        codes_of(table, "semantic"),
        codes_of(table, "pixel"),
        [json.loads(description) for description in described],
    )


class Evaluation:
    """Adds up figures over batches of held-out samples."""

    def __init__(self, tokenizer: TokenizerRunner, teacher: TeacherRunner, num_pairs: int) -> None:
        self._tokenizer, self._teacher, self._num_pairs = tokenizer, teacher, num_pairs
        self._psnr: list[float] = []
        self._ssim: list[float] = []
        self._counts: dict[Stream, Tensor] = {}
        self._teacher_images: list[Tensor] = []
        self._quantised_images: list[Tensor] = []
        self._texts: list[Tensor] = []
        self._descriptions: list[dict[str, Any]] = []
        self.keys: list[bytes] = []
        self.pairs: list[Pair] = []

    def add(self, batch: HeldoutBatch) -> None:
        """Take a batch in."""
        config = self._tokenizer.config
        grid = (len(batch.keys), config.grid_size, config.grid_size, config.pixel.depth)
        originals, reconstructions = (
            self._tokenizer.levels(batch.pictures),
            self._tokenizer.decode(batch.pixel.reshape(grid)),
        )
        values = psnr_per_image(reconstructions, originals)
        self._psnr += values.tolist()
        self._ssim += ssim(reconstructions, originals).reshape(-1).tolist()
        for stream, ids, num_codes in self._streams(batch):
            counts = count_codes(
                torch.from_numpy(ids.astype(np.int64)).reshape(-1, config.pixel.depth), num_codes
            )
            self._counts[stream] = self._counts.get(stream, torch.zeros_like(counts)) + counts
        self._teacher_images.append(self._teacher.images(batch.pictures))
        self._quantised_images.append(
            self._teacher.project(self._tokenizer.embed(batch.semantic.reshape(grid)))
        )
        self._texts.append(self._teacher.texts(batch.captions))
        self.keys += batch.keys
        self._descriptions += batch.descriptions
        for row in range(min(len(batch.keys), self._num_pairs - len(self.pairs))):
            images = (_png(originals[row]), _png(reconstructions[row]))
            self.pairs.append(
                Pair(
                    caption=batch.captions[row],
                    key=batch.keys[row].hex(),
                    original=images[0],
                    reconstruction=images[1],
                    psnr=values[row].item(),
                )
            )

    def _streams(self, batch: HeldoutBatch) -> list[tuple[Stream, Ids, int]]:
        config = self._tokenizer.config
        return [
            ("semantic", batch.semantic, config.semantic.num_codes),
            ("pixel", batch.pixel, config.pixel.num_codes),
        ]

    def reconstruction(self) -> Reconstruction | None:
        """Return how close the decoded images are."""
        if not self.keys:
            return None
        return Reconstruction(
            psnr=float(np.mean(self._psnr)),
            ssim=float(np.mean(self._ssim)),
            psnr_per_image=tuple(self._psnr),
            ssim_per_image=tuple(self._ssim),
        )

    def usage(self) -> tuple[CodebookUsage, ...]:
        """Return how evenly each stream's codes are used."""
        return tuple(_usage(stream, counts) for stream, counts in self._counts.items())

    def retrieval(self) -> Retrieval | None:
        """Return how often an image's own caption is the nearest of all held-out ones."""
        if not self.keys:
            return None
        texts = torch.cat(self._texts)
        own = torch.arange(len(texts), device=texts.device)
        hits = [
            ((torch.cat(images) @ texts.T).argmax(dim=1) == own).double().mean().item()
            for images in self._embeddings()
        ]
        return Retrieval(num_pairs=len(self.keys), teacher=hits[0], quantised=hits[1])

    def _embeddings(self) -> tuple[list[Tensor], list[Tensor]]:
        return self._teacher_images, self._quantised_images

    def zero_shot(self) -> ZeroShot | None:
        """Return whether embeddings still tell a scene's attributes; None where some samples are no scenes."""
        if not self.keys or len(self._descriptions) < len(self.keys):
            return None
        images = tuple(torch.cat(embeddings).repeat_interleave(2, dim=0) for embeddings in self._embeddings())
        attributes = tuple(self._attribute(name, images) for name in ATTRIBUTES)
        return ZeroShot(
            num_images=len(self.keys),
            attributes=attributes,
            teacher=float(np.mean([attribute.teacher for attribute in attributes])),
            quantised=float(np.mean([attribute.quantised for attribute in attributes])),
            chance=float(np.mean([attribute.chance for attribute in attributes])),
        )

    def _attribute(self, name: Attribute, images: tuple[Tensor, ...]) -> AttributeAccuracy:
        asked = [
            attribute_choices(description, thing, name)
            for description in self._descriptions
            for thing in range(2)
        ]
        captions = [caption for choices, _ in asked for caption in choices]
        places = {
            caption: place for place, caption in enumerate(dict.fromkeys(captions))
        }  # few of them differ
        distinct = torch.cat([self._teacher.texts(batch) for batch in batched(list(places), 512)])
        texts = distinct[[places[caption] for caption in captions]].unflatten(0, (len(asked), -1))
        right = torch.tensor([right for _, right in asked], device=texts.device)
        teacher, quantised = (choice_accuracy(embeddings, texts, right).item() for embeddings in images)
        return AttributeAccuracy(name=name, teacher=teacher, quantised=quantised, chance=CHANCE[name])


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
