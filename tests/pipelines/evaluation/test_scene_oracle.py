"""The oracle reads true renders without a mistake, and blurs worse."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dualtoken.pipelines.evaluation.scene_oracle import read_scenes
from dualtoken.pipelines.images.scene_generator import RADII, RGB, Scene, render, scene, shape_mask

SCENES = [scene("heldout", 3, index) for index in range(200)]


def rendered(scenes: list[Scene]) -> Tensor:
    levels = np.stack([np.asarray(render(drawn)) for drawn in scenes])
    return torch.from_numpy(levels).permute(0, 3, 1, 2)


def num_read(pictures: Tensor) -> dict[str, int]:
    """Return how many objects have each of their attributes read, in the quadrant where they are."""
    counts: dict[str, int] = dict.fromkeys(("quadrant", "shape", "colour", "size"), 0)
    for drawn, found in zip(SCENES, read_scenes(pictures), strict=True):
        by_quadrant = {read.quadrant: read for read in found}
        for placed in drawn.objects:
            read = by_quadrant.get(placed.quadrant)
            for name in counts:
                counts[name] += read is not None and getattr(read, name) == getattr(placed, name)
    return counts


def test_true_renders_are_read_almost_without_a_mistake() -> None:
    for name, count in num_read(rendered(SCENES)).items():
        assert count >= 0.99 * 2 * len(SCENES), name


def test_blurred_shapes_are_mistaken_before_places() -> None:
    small = F.interpolate(rendered(SCENES).float(), size=(10, 10), mode="area")
    counts = num_read(F.interpolate(small, size=(64, 64), mode="bilinear"))
    assert counts["quadrant"] >= 0.95 * 2 * len(SCENES)
    assert counts["shape"] < 0.8 * 2 * len(SCENES)


def test_pictures_of_other_scenes_are_read_as_chance() -> None:
    counts = num_read(rendered(SCENES).roll(1, dims=0))
    # A pair of quadrants agrees in half of its members; shapes and colours then as one in 6 and 8.
    assert counts["shape"] < 0.2 * 2 * len(SCENES)
    assert counts["colour"] < 0.2 * 2 * len(SCENES)


def test_levels_of_bytes_and_floats_are_read_alike() -> None:
    pictures = rendered(SCENES[:8])
    assert list(read_scenes(pictures)) == list(read_scenes(pictures.float()))


def test_evidence_is_all_that_the_object_changes_on_a_sloped_ground() -> None:
    """To the exact square of partly covered pixels: on a ground that the fit finds, nothing is left over."""
    steps = torch.linspace(-1, 1, 64)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    ground = torch.stack([90 + 12 * x - 7 * y, 70 + 5 * x + 9 * y, 110 - 8 * x + 3 * y])
    covered = torch.zeros(64, 64)
    mask = torch.from_numpy(shape_mask("ring", 6))
    covered[41 : 41 + len(mask), 9 : 9 + len(mask)] = mask
    colour = torch.tensor(RGB["cyan"]).float()[:, None, None]
    picture = ground + covered * (colour - ground)
    [[found]] = read_scenes(picture[None], num_objects=1)
    assert (found.shape, found.colour, found.quadrant) == ("ring", "cyan", "bottom left")
    assert 6 in RADII[found.size]
    expected = (picture - ground).square().sum().item()
    assert abs(found.evidence - expected) < 2e-3 * expected


def test_as_many_objects_are_read_as_are_asked_for_however_many_pictures() -> None:
    pictures = rendered(SCENES[:130])
    assert [len(found) for found in read_scenes(pictures, num_objects=4)] == [4] * 130
    assert [len(found) for found in read_scenes(pictures)] == [2] * 130
    for found in read_scenes(pictures[:8], num_objects=4):
        evidence = [read.evidence for read in found]
        assert evidence == sorted(evidence, reverse=True)
        assert len({read.quadrant for read in found}) == 4
