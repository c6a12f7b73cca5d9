"""Whether embeddings of images and texts find each other.

E channels; N images and M texts of a whole set.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from dualtoken.model.metrics.ranking import ranks

BLOCK_VALUES = 2**24
"""Similarities that are held at a time: 128 MiB of float64."""


class Retrieved(NamedTuple):
    """How many wrong candidates stand before the best right one of each query."""

    texts: Int64[Tensor, " N"]
    """For each image, of the texts."""
    images: Int64[Tensor, " M"]
    """For each text, of the images."""


def retrieve(
    images: Float[Tensor, "N E"],
    texts: Float[Tensor, "M E"],
    captions: Sequence[str],
    image_rows: Int[Tensor, " M"],
    block_values: int = BLOCK_VALUES,
) -> Retrieved:
    """Rank all texts for each image, and all images for each text, by cosine in float64.

    `captions` are the texts' own words and `image_rows` says which image each belongs to. An image may have
    several. A text whose words are those of one of the image's captions is right as well, whichever image it
    was written for. Of equal similarities the first candidate stands first. Raises ValueError for an image
    without a caption. Similarities are made in blocks of at most `block_values`, or of one query.
    """
    links = _links(captions, image_rows, len(images))
    image_directions = F.normalize(images.double(), dim=-1)
    text_directions = F.normalize(texts.double(), dim=-1)

    def right_texts(first: int, last: int) -> Bool[Tensor, "Q M"]:
        is_in_block = (links.images >= first) & (links.images < last)
        has_words = torch.zeros(last - first, links.num_words, dtype=torch.bool, device=images.device)
        has_words[links.images[is_in_block] - first, links.words[is_in_block]] = True
        return has_words[:, links.text_words]

    def right_images(first: int, last: int) -> Bool[Tensor, "Q N"]:
        words, row_of_text = links.text_words[first:last].unique(return_inverse=True)
        row_of_words = torch.full((links.num_words,), -1, device=images.device)
        row_of_words[words] = torch.arange(len(words), device=images.device)
        rows = row_of_words[links.words]
        has_words = torch.zeros(len(words), len(images), dtype=torch.bool, device=images.device)
        has_words[rows[rows >= 0], links.images[rows >= 0]] = True
        return has_words[row_of_text]

    return Retrieved(
        texts=_best_ranks(image_directions, text_directions, right_texts, block_values),
        images=_best_ranks(text_directions, image_directions, right_images, block_values),
    )


def is_recalled(found: Int64[Tensor, " Q"], k: int) -> Bool[Tensor, " Q"]:
    """Return for each query whether a right candidate is among its first k; their mean is recall at k."""
    return found < k


class _Links(NamedTuple):
    """Which words belong to which image. L pairs of an image and the words of one of its captions."""

    num_words: int
    """Number of unlike captions."""
    text_words: Int64[Tensor, " M"]
    """Number of each text's words: equal for equal captions."""
    images: Int64[Tensor, " L"]
    words: Int64[Tensor, " L"]


def _links(captions: Sequence[str], image_rows: Int[Tensor, " M"], num_images: int) -> _Links:
    if len(captions) != len(image_rows):
        raise ValueError(
            f"{len(captions)} captions and {len(image_rows)} rows of images: give one row a caption"
        )
    rows = image_rows.long()
    if len(rows) and not (rows.min() >= 0 and rows.max() < num_images):
        raise ValueError(
            f"captions belong to rows {int(rows.min())} to {int(rows.max())} of {num_images} images"
        )
    has_caption = torch.zeros(num_images, dtype=torch.bool, device=rows.device)
    has_caption[rows] = True
    if not has_caption.all():
        raise ValueError(
            f"image {int(has_caption.long().argmin())} has no caption: leave it out of retrieval"
        )
    number_by_caption: dict[str, int] = {}
    numbers = [number_by_caption.setdefault(caption, len(number_by_caption)) for caption in captions]
    text_words = torch.tensor(numbers, dtype=torch.int64, device=rows.device)
    return _Links(num_words=len(number_by_caption), text_words=text_words, images=rows, words=text_words)


def _best_ranks(
    queries: Float64[Tensor, "Q E"],
    candidates: Float64[Tensor, "G E"],
    right: Callable[[int, int], Tensor],
    block_values: int,
) -> Int64[Tensor, " Q"]:
    """Return the rank of the best right candidate of each query."""
    found = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    num_rows = max(1, block_values // max(1, len(candidates)))
    for first in range(0, len(queries), num_rows):
        last = min(first + num_rows, len(queries))
        similarities = queries[first:last] @ candidates.T
        is_right = right(first, last)
        # No right candidate is before the best one, so its rank counts wrong ones alone.
        best = similarities.masked_fill(~is_right, -torch.inf).argmax(dim=1)
        found[first:last] = ranks(similarities, best)
    return found
