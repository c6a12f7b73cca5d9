"""Figures of the report, against hand-made cases."""

import math

import pytest
import torch

from dualtoken.model.metrics import MAX_PSNR, perplexity, psnr
from dualtoken.model.metrics.codebook import codebook_use, count_codes
from dualtoken.model.metrics.reconstruction import psnr_per_image


def test_psnr_is_that_of_the_formula_per_image() -> None:
    reference = torch.full((3, 3, 16, 16), 100, dtype=torch.uint8)
    images = reference.clone()
    images[0] += 10
    images[1] += 51
    assert psnr_per_image(images, reference).tolist() == pytest.approx(
        [20 * math.log10(25.5), 20 * math.log10(5), math.inf]
    )


def test_counts_of_batches_add_up() -> None:
    ids = torch.randint(0, 7, (4, 5, 3), generator=torch.Generator().manual_seed(0))
    assert torch.equal(count_codes(ids, 7), count_codes(ids[:1], 7) + count_codes(ids[1:], 7))
    assert count_codes(ids, 7)[2, 4] == (ids[..., 2] == 4).sum()


def test_perplexity_counts_evenly_used_codes() -> None:
    use = codebook_use(count_codes(torch.tensor([[0, 5], [1, 5], [2, 5], [3, 5]]), 8))
    assert use.usage_per_depth.tolist() == [0.5, 0.125]
    assert use.perplexity_per_depth.tolist() == pytest.approx([4, 1])
    assert use.usage.item() == 5 / 8


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
