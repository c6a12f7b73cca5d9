"""Random crops are torchvision's, drawn by a generator of our own."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dualtoken.model.config.training import RandomCropConfig
from dualtoken.model.vision.augment import crop_box, random_crop
from dualtoken.model.vision.imports import vision_imports
from dualtoken.model.vision.transform import to_tensor

with vision_imports():
    import torchvision.transforms.functional as F

WIDE = RandomCropConfig(scale=(0.2, 0.8), ratio=(0.5, 1.5))


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 61, 3), np.uint8))


def test_boxes_have_the_areas_and_ratios_asked_for_and_lie_anywhere() -> None:
    boxes = np.array([crop_box((400, 300), WIDE, np.random.default_rng(seed)) for seed in range(300)])
    left, top, right, bottom = boxes.T
    width = right - left
    height = bottom - top
    share = width * height / (400 * 300)
    ratio = width / height
    assert 0.195 < share.min() < 0.25
    assert 0.7 < share.max() < 0.805
    assert 0.49 < ratio.min() < 0.6
    assert 1.4 < ratio.max() < 1.52
    assert (left.min(), top.min(), right.max(), bottom.max()) == (0, 0, 400, 300)


def test_where_no_draw_fits_the_centre_is_taken() -> None:
    narrow = RandomCropConfig(scale=(1.0, 1.0))
    assert crop_box((400, 100), narrow, np.random.default_rng(0)) == (133, 0, 266, 100)
    assert crop_box((100, 400), narrow, np.random.default_rng(0)) == (0, 133, 100, 266)


def test_a_crop_is_resized_as_torchvision_does(picture: Image.Image) -> None:
    left, top, right, bottom = crop_box(picture.size, WIDE, np.random.default_rng(5))
    pixels: Any = picture  # pictures do, though torchvision says Tensor
    expected = F.resized_crop(
        pixels, top, left, bottom - top, right - left, [16, 16], F.InterpolationMode.BICUBIC
    )
    found = to_tensor([random_crop(picture, 16, WIDE, np.random.default_rng(5))], 16)
    assert torch.equal(found[0], F.pil_to_tensor(expected))


def test_bounds_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scale=\[0\.9, 0\.1\]: put the lower bound first"):
        RandomCropConfig(scale=(0.9, 0.1))
