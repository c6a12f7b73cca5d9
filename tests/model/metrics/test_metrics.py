"""Figures of the report, against hand-made cases."""

import math

import pytest
import torch

from dualtoken.model.metrics import MAX_PSNR, perplexity, psnr
from dualtoken.model.metrics.codebook import codebook_use, count_codes
from dualtoken.model.metrics.reconstruction import psnr_per_image, ssim
from dualtoken.model.metrics.retrieval import choice_accuracy


def test_psnr_is_that_of_the_formula_per_image() -> None:
    reference = torch.full((3, 3, 16, 16), 100, dtype=torch.uint8)
    images = reference.clone()
    images[0] += 10
    images[1] += 51
    assert psnr_per_image(images, reference).tolist() == pytest.approx(
        [20 * math.log10(25.5), 20 * math.log10(5), math.inf]
    )


def test_ssim_falls_with_noise_per_image() -> None:
    torch.manual_seed(0)
    reference = torch.randint(60, 200, (2, 3, 16, 16), dtype=torch.uint8)
    images = reference.clone()
    images[1] += torch.randint(0, 50, (3, 16, 16), dtype=torch.uint8)
    equal, noisy = ssim(images, reference).tolist()
    assert equal == pytest.approx(1)
    assert 0.5 < noisy < 0.99


def test_ssim_is_that_of_torchmetrics() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure  # noqa: PLC0415  (its import takes seconds)

    generator = torch.Generator().manual_seed(0)
    references = torch.randint(0, 256, (4, 3, 24, 31), dtype=torch.uint8, generator=generator)
    references[0] = (
        128  # flat, and the picture of it nearly so: the variances that rounding makes negative count as none
    )
    images = (
        (references + torch.randint(-20, 21, references.shape, generator=generator))
        .clamp(0, 255)
        .to(torch.uint8)
    )
    images[0] = 128
    images[0, :, 5, 5] = 130
    expected = structural_similarity_index_measure(
        images / 255, references / 255, data_range=1.0, reduction="none"
    )
    torch.testing.assert_close(ssim(images, references), expected, atol=1e-5, rtol=0)


def test_counts_of_batches_add_up() -> None:
    ids = torch.randint(0, 7, (4, 5, 3), generator=torch.Generator().manual_seed(0))
    assert torch.equal(count_codes(ids, 7), count_codes(ids[:1], 7) + count_codes(ids[1:], 7))
    assert count_codes(ids, 7)[2, 4] == (ids[..., 2] == 4).sum()


def test_perplexity_counts_evenly_used_codes() -> None:
    use = codebook_use(count_codes(torch.tensor([[0, 5], [1, 5], [2, 5], [3, 5]]), 8))
    assert use.usage_per_depth.tolist() == [0.5, 0.125]
    assert use.perplexity_per_depth.tolist() == pytest.approx([4, 1])
    assert use.usage.item() == 5 / 8


def test_choices_are_by_angle_and_not_by_length() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    candidates = torch.tensor([[[0.1, 0.0], [5.0, 5.0]], [[9.0, 1.0], [0.0, 0.1]]])
    assert choice_accuracy(images, candidates, torch.tensor([0, 1])).item() == 1
    assert choice_accuracy(images, candidates, torch.tensor([1, 1])).item() == 0.5


def test_arrays_and_tensors_have_the_same_psnr_but_for_its_bound() -> None:
    references = torch.randint(
        0, 256, (5, 3, 24, 31), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    images = references.clone()
    images[:4, :, :12] //= 2
    by_tensor = psnr_per_image(images, references).tolist()
    by_array = [
        psnr(image.numpy(), reference.numpy()) for image, reference in zip(images, references, strict=True)
    ]
    assert by_array[:4] == pytest.approx(by_tensor[:4], rel=1e-6)
    assert (by_array[4], by_tensor[4]) == (MAX_PSNR, math.inf)


def test_arrays_and_tensors_have_the_same_perplexity() -> None:
    counts = torch.randint(0, 9, (4, 300), generator=torch.Generator().manual_seed(0))
    counts[3] = 0
    by_array = [perplexity(depth.numpy()) for depth in counts]
    assert by_array == pytest.approx(codebook_use(counts).perplexity_per_depth.tolist(), rel=1e-12)
