"""Exact squared errors, and the PSNR of them, against whole numbers, torchmetrics and the form for arrays."""

import pytest
import torch
from torch import Tensor

from dualtoken.model.metrics import MAX_PSNR, psnr
from dualtoken.model.metrics.reconstruction import psnr_from, squared_errors
from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from torchmetrics.functional.image import peak_signal_noise_ratio


@pytest.fixture
def pictures() -> tuple[Tensor, Tensor]:
    """Return images beside references: unlike, nearly alike, alike, and as far apart as can be."""
    generator = torch.Generator().manual_seed(0)
    references = torch.randint(0, 256, (4, 3, 40, 31), dtype=torch.uint8, generator=generator)
    images = references.clone()
    images[0] = images[0].flip(1)
    images[1, 2, 7, 9] ^= 1
    references[3] = 0
    images[3] = 255
    return images, references


def test_squared_errors_are_whole_numbers_without_rounding(pictures: tuple[Tensor, Tensor]) -> None:
    images, references = pictures
    expected = []
    for image, reference in zip(images.flatten(1).tolist(), references.flatten(1).tolist(), strict=True):
        expected.append(sum((a - b) ** 2 for a, b in zip(image, reference, strict=True)))
    assert squared_errors(images, references).tolist() == expected
    assert squared_errors(references, images).tolist() == expected


def test_squared_errors_of_large_images_do_not_overflow() -> None:
    # 255 squared over these values is more than an int32 holds.
    images = torch.full((1, 3, 256, 256), 255, dtype=torch.uint8)
    assert squared_errors(images, torch.zeros_like(images)).tolist() == [255**2 * images.numel()]


def test_psnr_of_errors_is_that_of_torchmetrics_and_of_arrays(pictures: tuple[Tensor, Tensor]) -> None:
    images, references = pictures
    found = psnr_from(squared_errors(images, references), images[0].numel())
    assert found.dtype == torch.float64
    by_array = [psnr(a.numpy(), b.numpy()) for a, b in zip(images, references, strict=True)]
    assert found.tolist() == pytest.approx(by_array, rel=1e-15, abs=0)
    # It divides in float32.
    by_peer = peak_signal_noise_ratio(
        images.double(), references.double(), data_range=255.0, reduction="none", dim=(1, 2, 3)
    )
    assert found.tolist() == pytest.approx(by_peer.clamp(max=MAX_PSNR).tolist(), rel=1e-6, abs=1e-6)
    assert found[2:].tolist() == [MAX_PSNR, 0]


def test_psnr_of_no_values_is_refused() -> None:
    with pytest.raises(ValueError, match="num_values=0: give how many values"):
        psnr_from(torch.tensor([0]), 0)
