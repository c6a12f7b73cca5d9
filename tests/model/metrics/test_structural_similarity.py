"""SSIM and MS-SSIM are those of torchmetrics for images in float64."""

import pytest
import torch
from torch import Tensor

from dualtoken.model.metrics.structural_similarity import ms_ssim, structural_similarity
from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure,
        structural_similarity_index_measure,
    )


def pictures(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return images beside references: alike, inverted, flat, nearly flat, and unlike."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (6, 3, height, width), dtype=torch.uint8, generator=generator)
    references = torch.nn.functional.avg_pool2d(noise.float(), 5, 1, 2).to(torch.uint8)
    changes = torch.randint(-20, 21, references.shape, generator=generator)
    images = (references + changes).clamp(0, 255).to(torch.uint8)
    images[1] = 255 - references[1]
    images[2] = references[2] = 255
    images[3] = references[3] = 128
    images[3, :, 5, 5] = 130
    images[4] = noise[5]
    return images, references


# Sides of less than a chunk of the products, of whole chunks, and of some more; not square.
@pytest.mark.parametrize(("height", "width"), [(6, 7), (32, 64), (65, 100)])
def test_ssim_is_that_of_torchmetrics(height: int, width: int) -> None:
    images, references = pictures(height, width)
    expected = structural_similarity_index_measure(
        images.double() / 255, references.double() / 255, data_range=1.0, reduction="none"
    )
    found = structural_similarity(images, references)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(176, 177), (191, 260)])
def test_ms_ssim_is_that_of_torchmetrics(height: int, width: int) -> None:
    images, references = pictures(height, width)
    expected = multiscale_structural_similarity_index_measure(
        images.double() / 255, references.double() / 255, data_range=1.0, reduction="none"
    )
    found = ms_ssim(images, references)
    # Its exponents are float32, and so are the last digits.
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)
    assert found[1].item() == 0
    assert found[2].item() == pytest.approx(1, abs=1e-15)


def test_an_image_has_the_same_bits_in_any_batch() -> None:
    images, references = pictures(176, 180)
    for metric in (structural_similarity, ms_ssim):
        together = metric(images, references)
        alone = [metric(images[row : row + 1], references[row : row + 1]) for row in range(len(images))]
        assert torch.equal(torch.cat(alone), together)
        assert metric(images[:0], references[:0]).shape == (0,)


def test_images_that_are_too_small_are_refused_with_the_least_side() -> None:
    images, references = pictures(175, 300)
    with pytest.raises(ValueError, match=r"MS-SSIM needs images of at least 176 pixels a side.*175 by 300"):
        ms_ssim(images, references)
    images, references = pictures(6, 7)
    with pytest.raises(ValueError, match=r"SSIM needs images of at least 6 pixels a side.*5 by 7"):
        structural_similarity(images[:, :, :5], references[:, :, :5])
