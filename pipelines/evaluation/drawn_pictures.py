"""Tells how near drawings of held-out captions are to the true pictures, by their semantic features.

A drawing is encoded, as any picture is, and its semantic codes are embedded; those of the true pictures are
the stored ones. So the features are the teacher's, as the tokenizer has learnt them, and what the model means
to draw counts for nothing: only what can be seen does.

B drawings, N held-out pictures, W channels of an embedding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64, UInt8
from torch import Tensor

from dualtoken.model.metrics.ranking import ranks
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.pipelines.evaluation.examination import MedianRank, NearestPictures, Score
from dualtoken.pipelines.evaluation.other_samples import other_samples

EMBEDDED_TOGETHER = 64
"""Pictures that are embedded together."""
NEAREST = {1: "nearest", 5: "among the 5 nearest"}
"""Names of the shares, by the places that count."""


class DrawnPictures(NamedTuple):
    """Embeddings of the same captions' pictures, each as it came to be."""

    guided: Float[Tensor, "B W"]
    unguided: Float[Tensor, "B W"]
    reconstructed: Float[Tensor, "B W"]
    """Of the true pictures, by way of their codes."""


def embed_codes(vision: DualTokenizer, semantic: Int[Tensor, "N P D"]) -> Float[Tensor, "N W"]:
    """Return the image embeddings of semantic codes of P positions, on the CPU."""
    side = vision.config.grid_size
    device = next(vision.parameters()).device
    embedded: list[Tensor] = []
    for codes in semantic.split(EMBEDDED_TOGETHER):
        features = vision.semantic_features(codes.to(device).unflatten(1, (side, side)))
        embedded.append(features.pooled.cpu())
    return torch.cat(embedded)


def embed_pictures(vision: DualTokenizer, levels: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B W"]:
    """Return the image embeddings of pictures, on the CPU."""
    device = next(vision.parameters()).device
    embedded: list[Tensor] = []
    for some in levels.split(EMBEDDED_TOGETHER):
        codes = vision.encode(vision.transform.normalize(some.to(device)))
        embedded.append(vision.semantic_features(codes.semantic).pooled.cpu())
    return torch.cat(embedded)


def picture_ranks(
    drawn: Float[Tensor, "B W"], pictures: Float[Tensor, "N W"], own: Int[Tensor, " B"]
) -> Int64[Tensor, " B"]:
    """Return the place of each drawing's own picture among all by cosine, 1 the nearest.

    Of pictures that are equally near the first one comes first.
    """
    cosines = F.normalize(drawn.double(), dim=-1) @ F.normalize(pictures.double(), dim=-1).T
    return ranks(cosines, own) + 1


def nearest_pictures(
    drawn: DrawnPictures, pictures: Float[Tensor, "N W"], own: Sequence[int]
) -> NearestPictures | None:
    """Return how often drawings' own pictures are the nearest; None for fewer than two drawings.

    `own` are the places of the drawings' true pictures among all. Shuffled, a drawing is that of another
    caption. The ceiling are the reconstructions.
    """
    if len(own) < 2:
        return None
    places = torch.tensor(own)
    guided = picture_ranks(drawn.guided, pictures, places)
    unguided = picture_ranks(drawn.unguided, pictures, places)
    reconstructed = picture_ranks(drawn.reconstructed, pictures, places)
    shuffled = picture_ranks(drawn.guided[other_samples(len(own))], pictures, places)
    shares: list[Score] = []
    for most, name in NEAREST.items():
        share = Score(
            name=name,
            accuracy=_share(guided <= most),
            shuffled=_share(shuffled <= most),
            chance=min(1.0, most / len(pictures)),
            ceiling=_share(reconstructed <= most),
            unguided=_share(unguided <= most),
            count=len(own),
        )
        shares.append(share)
    median_rank = MedianRank(
        guided=_median(guided),
        unguided=_median(unguided),
        shuffled=_median(shuffled),
        chance=(len(pictures) + 1) / 2,
        ceiling=_median(reconstructed),
    )
    return NearestPictures(num_pictures=len(pictures), shares=tuple(shares), median_rank=median_rank)


def _share(is_right: Tensor) -> float:
    return is_right.double().mean().item()


def _median(values: Int64[Tensor, " B"]) -> float:
    """Return the median; of an even number of values the mean of the two in the middle."""
    return values.double().quantile(0.5).item()
