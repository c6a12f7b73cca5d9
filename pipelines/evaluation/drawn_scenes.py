"""Lets the unified model draw held-out captions, and reads the drawings by the oracle.

B captions, S by S pixels.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from dualtoken.model.mllm.saved import OpenedMllm
from dualtoken.pipelines.evaluation.examination import Score
from dualtoken.pipelines.evaluation.scene_oracle import ReadObject, read_scenes
from dualtoken.pipelines.evaluation.scene_readings import CHANCE, AttributeCounter
from dualtoken.pipelines.inference.unified import DrawSettings, draw
from dualtoken.pipelines.training.heldout_tokens import HeldoutTokens


class Drawings(NamedTuple):
    """A drawing of each caption."""

    levels: UInt8[Tensor, "B 3 S S"]
    images_per_second: float


def draw_all(opened: OpenedMllm, captions: Sequence[str], settings: DrawSettings) -> Drawings:
    """Draw each caption once."""
    started = time.monotonic()
    levels = torch.cat([drawn.levels for drawn in draw(opened, captions, settings)])
    return Drawings(levels, len(captions) / (time.monotonic() - started))


def count_readings(
    readings: Sequence[Sequence[ReadObject]], heldout: HeldoutTokens, *, shift: int = 0
) -> tuple[AttributeCounter, float]:
    """Count what pictures of the first samples show, against those samples or, shifted, against others.

    The second number is the share of pictures in which everything is as told.
    """
    counter = AttributeCounter()
    num_whole = 0
    for number, found in enumerate(readings):
        objects = heldout.descriptions[(number + shift) % len(readings)]["objects"]
        num_whole += counter.add(found, objects)
    return counter, num_whole / len(readings)


class DrawnScores(NamedTuple):
    """What the oracle reads in drawings."""

    scores: tuple[Score, ...]
    whole: float
    """Share of drawings in which everything is as told."""


def drawing_scores(
    guided: Sequence[Sequence[ReadObject]],
    unguided: Sequence[Sequence[ReadObject]],
    reconstructed: Sequence[Sequence[ReadObject]],
    heldout: HeldoutTokens,
) -> DrawnScores:
    """Return the share of objects drawn as told, by attribute, beside the control and the ceiling."""
    own, whole = count_readings(guided, heldout)
    shuffled, _ = count_readings(guided, heldout, shift=1)
    without, _ = count_readings(unguided, heldout)
    ceiling, _ = count_readings(reconstructed, heldout)
    scores: list[Score] = []
    for name, chance in CHANCE.items():
        score = Score(
            name=name,
            accuracy=own.accuracy(name),
            shuffled=shuffled.accuracy(name),
            chance=chance,
            ceiling=ceiling.accuracy(name),
            unguided=without.accuracy(name),
            count=own.num_objects,
        )
        scores.append(score)
    return DrawnScores(tuple(scores), whole)


def read_all(levels: UInt8[Tensor, "B 3 64 64"]) -> list[list[ReadObject]]:
    """Return the objects that the oracle reads in each picture."""
    return list(read_scenes(levels))
