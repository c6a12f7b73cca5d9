"""Whether embeddings tell classes apart: zero-shot, by nearest neighbours. B images, C classes, E channels.

Everything is float64, deterministic, and gives one truth value for each sample, in the order of the samples.
The linear probe is in `linear_probe.py`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from dualtoken.model.metrics.ranking import ranks

QUERY_BLOCK = 1024
"""Queries that are compared with all neighbours at a time."""


def zero_shot_prompts(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Return every class name in every template, such as "a photo of a {}.": all of the first class first."""
    for template in templates:
        if "{" not in template:
            raise ValueError(f"template {template!r} has no place for the class name: write {{}} into it")
    return [template.format(name) for name in class_names for template in templates]


def class_embeddings(texts: Float[Tensor, "C T E"]) -> Float64[Tensor, "C E"]:
    """Return the embedding of each class, of length 1, from those of its name in T templates.

    As in open_clip's `build_zero_shot_classifier`: each is normalised, then their mean. It is CLIP's ensemble
    of prompts (arXiv 2103.00020, section 3.1.4).
    """
    return F.normalize(F.normalize(texts.double(), dim=-1).mean(dim=1), dim=-1)


def zero_shot_scores(images: Float[Tensor, "B E"], classes: Float64[Tensor, "C E"]) -> Float64[Tensor, "B C"]:
    """Return the cosine of each image and class, -1 to 1: logits without the model's own scale."""
    return F.normalize(images.double(), dim=-1) @ classes.T


def is_in_top(scores: Float[Tensor, "B C"], labels: Int[Tensor, " B"], k: int) -> Bool[Tensor, " B"]:
    """Return whether the right class of each image is among the k of the highest scores.

    Of equal scores the first class stands first. A score that is not a number is wrong; with k of at least C
    every other is right.
    """
    num_classes = scores.shape[1]
    _check_labels(labels, num_classes)
    return ranks(scores, labels) < min(k, num_classes)


def neighbour_classes(
    images: Float[Tensor, "B E"],
    known: Float[Tensor, "N E"],
    known_labels: Int[Tensor, " N"],
    k: int,
) -> Int64[Tensor, " B"]:
    """Return the class that most of the k nearest known images have, by cosine; -1 for an image without one.

    Of equally near images the first counts as nearer; of classes with as many votes the one of the nearest
    image wins. An image whose embedding is not finite has no class. Every vote counts the same, unlike in
    arXiv 1805.01978, which weighs them.
    """
    if not 1 <= k <= len(known):
        raise ValueError(f"k={k} with {len(known)} known images: take from 1 to {len(known)} neighbours")
    directions = F.normalize(_finite(known, "known images"), dim=-1)
    found: list[Tensor] = []
    for block in images.double().split(QUERY_BLOCK):
        nearest = _nearest(F.normalize(block, dim=-1) @ directions.T, k)
        voted = _vote(known_labels.long()[nearest])
        found.append(torch.where(block.isfinite().all(dim=1), voted, -1))
    return torch.cat(found)


def is_neighbour_class(
    images: Float[Tensor, "B E"],
    labels: Int[Tensor, " B"],
    known: Float[Tensor, "N E"],
    known_labels: Int[Tensor, " N"],
    k: int,
) -> Bool[Tensor, " B"]:
    """Return whether `neighbour_classes` finds the right class of each image."""
    return neighbour_classes(images, known, known_labels, k) == labels


def _nearest(similarities: Float64[Tensor, "B N"], k: int) -> Int64[Tensor, "B K"]:
    """Return the k highest of each row, the highest first, and the first of equal ones."""
    if k == similarities.shape[1]:
        return similarities.sort(dim=1, descending=True, stable=True).indices
    top = similarities.topk(k + 1, dim=1)
    # topk promises no order of equal values. Within the k they are sorted; where the last of them equals the
    # first that was left out, the whole row is.
    places = top.indices[:, :k].sort(dim=1).values
    order = similarities.gather(1, places).sort(dim=1, descending=True, stable=True).indices
    nearest = places.gather(1, order)
    is_cut_among_equals = top.values[:, k] == top.values[:, k - 1]
    rows = similarities[is_cut_among_equals]
    nearest[is_cut_among_equals] = rows.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return nearest


def _vote(labels: Int64[Tensor, "B K"]) -> Int64[Tensor, " B"]:
    """Return the most frequent label of each row, of several the one that comes first."""
    votes = (labels[:, :, None] == labels[:, None, :]).sum(dim=2)
    # argmax is that of the first maximum.
    return labels.gather(1, votes.argmax(dim=1, keepdim=True))[:, 0]


def _finite(features: Float[Tensor, "N E"], name: str) -> Float64[Tensor, "N E"]:
    """Return features in float64; raises ValueError, naming the first row that is not finite."""
    is_finite = features.isfinite().all(dim=1)
    if not is_finite.all():
        row = int(is_finite.long().argmin())
        raise ValueError(f"{name}: row {row} holds values that are not finite")
    return features.double()


def _check_labels(labels: Int[Tensor, " B"], num_classes: int) -> None:
    is_class = (labels >= 0) & (labels < num_classes)
    if not is_class.all():
        row = int(is_class.long().argmin())
        raise ValueError(f"label {int(labels[row])} of row {row} is none of {num_classes} classes")
