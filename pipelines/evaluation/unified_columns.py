"""Scores of a unified model: each sample's answers, description and drawing, and their shuffled controls.

The control of a sample is the next one of the set: its image is asked about in place of the own one, and its
contents are looked for in the own description and drawing. N samples of a unit.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from dualtoken.model.mllm.saved import OpenedMllm, open_mllm
from dualtoken.pipelines.config.evaluation import EvaluationProtocol, MetricName
from dualtoken.pipelines.evaluation.asked_questions import are_answered
from dualtoken.pipelines.evaluation.described_scenes import describe
from dualtoken.pipelines.evaluation.evaluated_batch import Column, EvaluatedSample
from dualtoken.pipelines.evaluation.metric_catalogue import SHUFFLED
from dualtoken.pipelines.evaluation.scene_oracle import ReadObject, read_scenes_alike
from dualtoken.pipelines.evaluation.scene_readings import anywhere_shares, attribute_shares
from dualtoken.pipelines.images.image_questions import Asked, one_of_each_kind
from dualtoken.pipelines.images.scene_captions import Described
from dualtoken.pipelines.images.scene_grammar import parse_caption
from dualtoken.pipelines.inference.networks import StreamCodes
from dualtoken.pipelines.inference.unified import ImageCodes, draw_numbered, draw_settings


class UnifiedColumns:
    """A unified model that samples are shown to."""

    def __init__(self, folder: Path, protocol: EvaluationProtocol, device: torch.device) -> None:
        self._opened = open_mllm(str(folder), device)
        self._protocol = protocol

    def columns(
        self,
        names: Sequence[MetricName],
        samples: Sequence[EvaluatedSample],
        following: EvaluatedSample,
        codes: StreamCodes,
    ) -> dict[MetricName, Column]:
        """Return metrics of a unit's samples; `following` is the set's next one, and `codes` has it too."""
        unit = _Unit(samples, following, image_codes(codes))
        shown = _Shown(self._opened, self._protocol, unit)
        return {name: shown.column(name) for name in names}


class _Unit:
    """Samples of a unit, each with the next one."""

    def __init__(
        self, samples: Sequence[EvaluatedSample], following: EvaluatedSample, codes: ImageCodes
    ) -> None:
        self.samples = samples
        self.codes = codes
        self._with_next = [*samples, following]

    def own_codes(self) -> ImageCodes:
        """Return the codes of the samples without the one that follows them."""
        return {stream: of_stream[: len(self.samples)] for stream, of_stream in self.codes.items()}

    def objects(self, *, is_shuffled: bool) -> list[Sequence[dict[str, Any]]]:
        """Return the objects of each sample's scene, or of the next one's."""
        told: list[Sequence[dict[str, Any]]] = []
        for place in range(len(self.samples)):
            told.append(json.loads(self._with_next[place + is_shuffled].description)["objects"])
        return told


class _Shown:
    """What the model makes of a unit's samples, each made once and only where a metric asks for it."""

    def __init__(self, opened: OpenedMllm, protocol: EvaluationProtocol, unit: _Unit) -> None:
        self._opened = opened
        self._protocol = protocol
        self._unit = unit
        self._right: dict[bool, list[bool]] = {}

    def column(self, name: MetricName) -> Column:
        """Return a metric's values."""
        is_shuffled = name.endswith(SHUFFLED)
        kind, _, subject = name.removesuffix(SHUFFLED).partition("_")
        if kind == "answer":
            return self._answers(subject, is_shuffled=is_shuffled)
        if name == "described_grammar":
            return np.array([parsed is not None for parsed in self._parsed], np.float64)
        found = self._read if kind == "drawn" else [parsed or () for parsed in self._parsed]
        shares = anywhere_shares if subject in ("object", "binding") else attribute_shares
        return self._shares(found, subject, shares, is_shuffled=is_shuffled)

    def _shares(
        self,
        found: Iterable[Sequence[Described]],
        subject: str,
        shares: Callable[..., dict[str, float]],
        *,
        is_shuffled: bool,
    ) -> Column:
        objects = self._unit.objects(is_shuffled=is_shuffled)
        values = [shares(one, told)[subject] for one, told in zip(found, objects, strict=True)]
        return np.array(values, np.float64)

    @cached_property
    def _questions(self) -> list[tuple[int, Asked]]:
        """The questions that are asked, each with the place of its sample."""
        asked: list[tuple[int, Asked]] = []
        for place, sample in enumerate(self._unit.samples):
            asked += [(place, question) for question in one_of_each_kind(sample.questions, sample.key)]
        return asked

    def _answers(self, kind: str, *, is_shuffled: bool) -> Column:
        """Return the share of each sample's questions of a kind, or of all, whose answer is the likeliest."""
        if is_shuffled not in self._right:
            self._right[is_shuffled] = are_answered(
                self._opened,
                self._unit.codes,
                [asked for _, asked in self._questions],
                [place + is_shuffled for place, _ in self._questions],
                self._protocol.batch_size,
            )
        num_right = np.zeros(len(self._unit.samples), np.float64)
        num_asked = np.zeros(len(self._unit.samples), np.float64)
        for (place, asked), is_right in zip(self._questions, self._right[is_shuffled], strict=True):
            if not kind or asked.kind == kind:
                num_right[place] += is_right
                num_asked[place] += 1
        num_asked[num_asked == 0] = np.nan
        return num_right / num_asked

    @cached_property
    def _parsed(self) -> list[Sequence[Described] | None]:
        """The objects that each description names; None where the grammar knows no such caption."""
        texts = describe(self._opened, self._unit.own_codes(), self._protocol.batch_size)
        return [parse_caption(text) for text in texts]

    @cached_property
    def _read(self) -> list[list[ReadObject]]:
        """The objects that the oracle reads in each drawing."""
        captions = [sample.captions[0] for sample in self._unit.samples]
        keys = [sample.key for sample in self._unit.samples]
        return read_scenes_alike(draw_captions(self._opened, captions, keys, self._protocol))


def draw_captions(
    opened: OpenedMllm, captions: Sequence[str], keys: Sequence[bytes], protocol: EvaluationProtocol
) -> UInt8[Tensor, "N 3 S S"]:
    """Draw a caption of each sample as a protocol says, with noise that follows from the sample's key."""
    drawing = protocol.drawing
    settings = draw_settings(drawing, drawing.seed, protocol.batch_size)
    return draw_numbered(opened, captions, [int.from_bytes(key, "big") for key in keys], settings)


def image_codes(codes: StreamCodes) -> ImageCodes:
    """Return codes as the model reads them, (N, positions, depth)."""
    found: dict[str, Tensor] = {}
    for stream, ids in codes._asdict().items():
        found[stream] = torch.from_numpy(ids.astype(np.int64)).flatten(1, 2)
    return found
