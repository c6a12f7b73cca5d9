"""Retrieval against rankings that are sorted in Python, with several captions an image and equal ones."""

import math
import sys

import pytest
import torch
from torch import Tensor

from benchmarks.memory import peak_memory
from dualtoken.model.metrics.retrieval import Retrieved, is_recalled, retrieve

CAPTIONS = ["a cat", "one cat", "a dog", "a cat", "a bird", "a red bird", "a dog", "a fish"]
IMAGE_ROWS = [0, 0, 1, 2, 3, 3, 4, 4]


def embeddings(seed: int, num_rows: int) -> Tensor:
    """Return embeddings of small whole numbers, of which many have equal cosines."""
    generator = torch.Generator().manual_seed(seed)
    return torch.eye(4)[torch.randint(0, 4, (num_rows,), generator=generator)]


def sorted_ranks(similarities: Tensor, right: list[set[int]]) -> list[int]:
    order = similarities.argsort(dim=1, descending=True, stable=True).tolist()
    return [
        min(places.index(candidate) for candidate in wanted)
        for places, wanted in zip(order, right, strict=True)
    ]


def right_of(
    captions: list[str], image_rows: list[int], num_images: int
) -> tuple[list[set[int]], list[set[int]]]:
    """Return the right texts of each image, and the right images of each text."""
    words: list[set[str]] = [set() for _ in range(num_images)]
    for caption, row in zip(captions, image_rows, strict=True):
        words[row].add(caption)
    texts = [{number for number, caption in enumerate(captions) if caption in own} for own in words]
    images = [{row for row in range(num_images) if caption in words[row]} for caption in captions]
    return texts, images


@pytest.mark.parametrize("block_values", [1, 13, 2**20])
def test_ranks_are_those_of_sorted_lists_in_blocks_of_any_size(block_values: int) -> None:
    generator = torch.Generator().manual_seed(5)
    num_images = 30
    image_rows = [*range(num_images), *torch.randint(0, num_images, (50,), generator=generator).tolist()]
    captions = [f"caption {number}" for number in torch.randint(0, 25, (80,), generator=generator).tolist()]
    images = embeddings(0, num_images)
    texts = embeddings(1, 80)
    found = retrieve(images, texts, captions, torch.tensor(image_rows), block_values)
    right_texts, right_images = right_of(captions, image_rows, num_images)
    assert found.texts.tolist() == sorted_ranks(images @ texts.T, right_texts)
    assert found.images.tolist() == sorted_ranks(texts @ images.T, right_images)
    assert len(set(found.texts.tolist())) > 3
    assert len(set(found.images.tolist())) > 3


def test_an_equal_caption_of_another_image_is_right() -> None:
    texts = torch.eye(8)
    # Image 0 lies at the cat of image 2, and image 4 at the dog of image 1.
    images = texts[[3, 2, 0, 4, 2]]
    found = retrieve(images, texts, CAPTIONS, torch.tensor(IMAGE_ROWS))
    assert found.texts.tolist() == [0, 0, 0, 0, 0]
    # No image lies at texts 1, 5, 6 and 7: of equals the first stands first. Image 1 is right for text 6.
    assert found.images.tolist() == [0, 0, 0, 0, 0, 3, 1, 4]
    other = [*CAPTIONS]
    other[3] = "another cat"
    assert retrieve(images, texts, other, torch.tensor(IMAGE_ROWS)).texts.tolist()[0] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_similarities_of_all_pairs_never_stand_in_memory() -> None:
    num_rows = 4000
    embedded = torch.randn(num_rows, 8, generator=torch.Generator().manual_seed(0))
    captions = [f"caption {row // 2}" for row in range(num_rows)]
    found: list[Retrieved] = []

    def run() -> None:
        found.append(retrieve(embedded, embedded, captions, torch.arange(num_rows), 2**18))

    # All pairs are 128 MB in float64.
    assert peak_memory(run) < 40
    assert found[0].texts.max() == found[0].images.max() == 0


def test_recall_counts_the_first_k() -> None:
    assert is_recalled(torch.tensor([0, 1, 4, 5, 9, 10]), 1).tolist() == [True] + [False] * 5
    assert is_recalled(torch.tensor([0, 1, 4, 5, 9, 10]), 5).tolist() == [True] * 3 + [False] * 3
    assert is_recalled(torch.tensor([0, 1, 4, 5, 9, 10]), 10).tolist() == [True] * 5 + [False]


def test_an_image_whose_embedding_is_not_a_number_is_not_found() -> None:
    images = torch.eye(8)[[0, 2, 3, 4, 6]]
    images[1] = math.nan
    found = retrieve(images, torch.eye(8), CAPTIONS, torch.tensor(IMAGE_ROWS))
    assert found.texts.tolist() == [0, 8, 0, 0, 0]
    # The broken image stands before all others.
    assert found.images.tolist()[0] == 1


def test_captions_that_fit_no_image_are_refused() -> None:
    images = torch.eye(8)[:5]
    texts = torch.eye(8)
    with pytest.raises(ValueError, match="image 4 has no caption"):
        retrieve(images, texts, CAPTIONS, torch.tensor([0, 0, 1, 2, 3, 3, 3, 3]))
    with pytest.raises(ValueError, match="rows 0 to 5 of 5 images"):
        retrieve(images, texts, CAPTIONS, torch.tensor([0, 1, 2, 3, 4, 4, 4, 5]))
    with pytest.raises(ValueError, match="7 captions and 8 rows"):
        retrieve(images, texts, CAPTIONS[1:], torch.tensor(IMAGE_ROWS))
