"""The tokenizer's loss in all phases of the released DualToken code, less the GAN's term (`adversary.py`).

B images, N tokens, W channels of a tower, E of an embedding. Cosine terms are 1 - cos where the paper has
-cos: the gradient is the same, and zero is perfect. A term exists where its stream runs; a term that is not
computed is None.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dualtoken.model.config.training import LossConfig, Phase
from dualtoken.model.teacher.targets import TeacherTargets
from dualtoken.model.tokenizer.dual_tokenizer import TokenizerOutput


class Perceptual(NamedTuple):
    """A distance of pictures beside that of their pixels, and its weight."""

    distance: Callable[[Float[Tensor, "B 3 S S"], Float[Tensor, "B 3 S S"]], Float[Tensor, ""]]
    """Distance of reconstructions from images, both of -1 to 1."""
    weight: float
    """Weight of the distance in the loss."""


class TokenizerLoss(NamedTuple):
    """The weighted total and its terms before weighting; all at least 0."""

    total: Float[Tensor, ""]
    """Sum of the weighted terms."""
    reconstruction: Float[Tensor, ""] | None
    """Mean squared error of images of -1 to 1."""
    perceptual: Float[Tensor, ""] | None
    """LPIPS of the same images."""
    semantic: Float[Tensor, ""] | None
    """Distance of semantic tokens from the teacher's: mean squared error + 1 - cosine."""
    pooled: Float[Tensor, ""] | None
    """Distance of image embeddings from the teacher's, likewise."""
    commitment: Float[Tensor, ""]
    """Commitment of all codebooks together."""

    def terms(self) -> dict[str, Float[Tensor, ""]]:
        """Return the terms that were computed, by name, without the total."""
        terms = self._asdict()
        del terms["total"]
        return {name: term for name, term in terms.items() if term is not None}


def tokenizer_loss(
    output: TokenizerOutput,
    images: Float[Tensor, "B 3 S S"],
    targets: TeacherTargets,
    weights: LossConfig,
    *,
    phase: Phase = 1,
    perceptual: Perceptual | None = None,
    pictures: bool = True,
) -> TokenizerLoss:
    """Return the loss of a batch; without `pictures`, that of all but the pictures.

    It is computed in float32 but for the perceptual network, which runs in the caller's precision. `images`
    are those that went in, -1 to 1. Phase 2 compares semantic tokens by their cosine alone. The weights are
    taken as they are given, whatever the phase.
    """
    reconstruction = None
    distance = None
    if pictures and output.reconstruction is not None:
        reconstruction = F.mse_loss(output.reconstruction.float(), images.float())
        if perceptual:
            distance = perceptual.distance(output.reconstruction.float(), images.float())
    semantic = None
    pooled = None
    if output.semantic_tokens is not None and output.pooled is not None:
        if targets.dense.shape[1]:
            semantic = _distance(output.semantic_tokens.float(), targets.dense.float(), squared=phase != 2)
        pooled = _distance(output.pooled.float(), targets.pooled.float(), squared=True)
    commitment = _commitment(output)

    weighted_terms = (
        (weights.reconstruction, reconstruction),
        (perceptual.weight if perceptual else 0.0, distance),
        (weights.semantic, semantic),
        (weights.pooled, pooled),
        (weights.commitment, commitment),
    )
    total = commitment.new_zeros(())
    for weight, term in weighted_terms:
        # A weight of 0 takes a term out: 0 times what is not finite is not 0.
        if term is not None and weight:
            total = total + weight * term
    return TokenizerLoss(total, reconstruction, distance, semantic, pooled, commitment)


def _commitment(output: TokenizerOutput) -> Float[Tensor, ""]:
    """Return the sum over codebooks; one that both streams share counts once."""
    pixel = output.pixel
    semantic = output.semantic
    if pixel is None:
        assert semantic is not None, "no stream runs"
        return semantic.commitment
    if semantic is None or semantic is pixel:
        return pixel.commitment
    return pixel.commitment + semantic.commitment


def _distance(
    features: Float[Tensor, "*B W"], targets: Float[Tensor, "*B W"], *, squared: bool
) -> Float[Tensor, ""]:
    """Return equation 2 of the paper, plus one; or, unless `squared`, its cosine alone."""
    error = F.mse_loss(features, targets) if squared else 0.0
    return error + 1 - F.cosine_similarity(features, targets, dim=-1).mean()
