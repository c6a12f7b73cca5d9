"""Whether embeddings of images still tell texts apart. B images, C candidate texts of each, E channels."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def choice_accuracy(
    images: Float[Tensor, "B E"], candidates: Float[Tensor, "B C E"], right: Int[Tensor, " B"]
) -> Float[Tensor, ""]:
    """Return the share of images that are nearest in angle to the right one of their own candidate texts.

    `right` holds the place of the right text, 0 to C - 1. Ties go to the first candidate.
    """
    cosines = torch.cosine_similarity(images[:, None], candidates, dim=-1)
    return (cosines.argmax(dim=1) == right).double().mean()
