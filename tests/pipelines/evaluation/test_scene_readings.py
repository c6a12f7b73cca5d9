"""What is read in pictures of scenes is counted by attribute, against what was drawn."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dualtoken.pipelines.evaluation.scene_readings import PictureReading, ReadingCounter, compared_readings
from dualtoken.pipelines.images.scene_generator import Scene, canonical_caption, describe, render, scene

SCENES = [scene("heldout", 3, index) for index in range(64)]


def rendered(scenes: list[Scene]) -> Tensor:
    levels = np.stack([np.asarray(render(drawn)) for drawn in scenes])
    return torch.from_numpy(levels).permute(0, 3, 1, 2)


def with_other_shapes(drawn: Scene) -> dict[str, Any]:
    """Return a scene's description with another shape for its first object."""
    description = describe(drawn)
    first = description["objects"][0]
    first["shape"] = "circle" if first["shape"] != "circle" else "cross"
    return description


def read(pictures: Tensor, descriptions: list[dict[str, Any]]) -> tuple[ReadingCounter, list[PictureReading]]:
    counter = ReadingCounter()
    return counter, counter.add(pictures, descriptions)


def test_true_renders_read_as_they_were_drawn() -> None:
    counter, readings = read(rendered(SCENES), [describe(drawn) for drawn in SCENES])
    assert counter.num_pictures == len(SCENES)
    for attribute in ("place", "shape", "colour", "size"):
        assert counter.accuracy(attribute) >= 0.98
    right = [reading.is_right for reading in readings]
    assert sum(right) >= 0.95 * len(SCENES)
    for drawn, reading in zip(SCENES, readings, strict=True):
        in_either_order = {canonical_caption(drawn.objects), canonical_caption(drawn.objects[::-1])}
        assert (reading.text in in_either_order) == reading.is_right


def test_one_wrong_attribute_is_counted_and_no_other() -> None:
    right, _ = read(rendered(SCENES), [describe(drawn) for drawn in SCENES])
    wrong, readings = read(rendered(SCENES), [with_other_shapes(drawn) for drawn in SCENES])
    assert wrong.accuracy("shape") == pytest.approx(right.accuracy("shape") - 0.5, abs=0.02)
    for attribute in ("place", "colour", "size"):
        assert wrong.accuracy(attribute) == right.accuracy(attribute)
    assert not any(reading.is_right for reading in readings)


def test_flat_pictures_are_read_at_chance() -> None:
    flat = torch.full((len(SCENES), 3, 64, 64), 120, dtype=torch.uint8)
    counter, _ = read(flat, [describe(drawn) for drawn in SCENES])
    assert counter.accuracy("shape") < 0.3


def test_accuracies_stand_beside_their_ceiling() -> None:
    originals, _ = read(rendered(SCENES), [describe(drawn) for drawn in SCENES])
    blurred = rendered(SCENES).float()[:, :, ::8, ::8].repeat_interleave(8, 2).repeat_interleave(8, 3)
    reconstructions, _ = read(blurred.to(torch.uint8), [describe(drawn) for drawn in SCENES])
    readings = compared_readings(originals, reconstructions)
    assert readings
    shape = next(accuracy for accuracy in readings.attributes if accuracy.name == "shape")
    assert shape.reconstruction < 0.7 < shape.original
    assert compared_readings(ReadingCounter(), ReadingCounter()) is None
