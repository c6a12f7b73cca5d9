"""The tokenizer's loss: stages 0, 1 and 2 of the released DualToken code, less the GAN term, which `adversary.py` has.

B images, N tokens, W channels of a tower, E of an embedding. Cosine terms are 1 - cos where the paper has -cos: the same
gradient, and zero is perfect. Which terms there are depends on the streams that run: a term that is not computed is None.
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
    """A distance of pictures beside that of their pixels."""

    distance: Callable[[Float[Tensor, "B 3 S S"], Float[Tensor, "B 3 S S"]], Float[Tensor, ""]]
    weight: float


class TokenizerLoss(NamedTuple):
    """The weighted total and its terms before weighting; all at least 0."""

    total: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""] | None  # mean squared error of images of -1 to 1
    perceptual: Float[Tensor, ""] | None  # LPIPS of the same
    semantic: (
        Float[Tensor, ""] | None
    )  # of semantic tokens against the teacher's: mean squared error + 1 - cosine
    pooled: Float[Tensor, ""] | None  # of image embeddings against the teacher's, likewise
    commitment: Float[Tensor, ""]  # of all codebooks together


def tokenizer_loss(
    output: TokenizerOutput,
    images: Float[Tensor, "B 3 S S"],
    targets: TeacherTargets,
    weights: LossConfig,
    *,
    stage: Phase = 1,
    perceptual: Perceptual | None = None,
) -> TokenizerLoss:
    """Return the loss of a batch, in float32 but for the perceptual network, which runs in the caller's precision.

    Images are those that went in, -1 to 1. Stage 2 compares semantic tokens by their cosine alone. The stages' weights are the recipe's.
    """
    reconstruction = shown = semantic = pooled = None
    if output.reconstruction is not None:
        reconstruction = F.mse_loss(output.reconstruction.float(), images.float())
        shown = perceptual.distance(output.reconstruction.float(), images.float()) if perceptual else None
    if output.semantic_tokens is not None and output.pooled is not None:
        semantic = _distance(output.semantic_tokens.float(), targets.dense.float(), squared=stage != 2)
        pooled = _distance(output.pooled.float(), targets.pooled.float(), squared=True)
    commitment = _commitment(output)
    terms = (
        (weights.reconstruction, reconstruction),
        (perceptual.weight if perceptual else 0.0, shown),
        (weights.semantic, semantic),
        (weights.pooled, pooled),
        (weights.commitment, commitment),
    )
    # A weight of 0 takes a term out: 0 times what is not finite is not 0.
    total = sum(
        (weight * term for weight, term in terms if term is not None and weight),
        start=commitment.new_zeros(()),
    )
    return TokenizerLoss(total, reconstruction, shown, semantic, pooled, commitment)


def _commitment(output: TokenizerOutput) -> Float[Tensor, ""]:
    """Return the sum over codebooks; one that both streams share counts once."""
    pixel, semantic = output.pixel, output.semantic
    if pixel is None:
        assert semantic is not None, "no stream runs"
        return semantic.commitment
    return (
        pixel.commitment if semantic is None or semantic is pixel else pixel.commitment + semantic.commitment
    )


def _distance(
    ours: Float[Tensor, "*B W"], theirs: Float[Tensor, "*B W"], *, squared: bool
) -> Float[Tensor, ""]:
    """Equation 2 of the paper, plus one; or its cosine alone."""
    error = F.mse_loss(ours, theirs) if squared else 0.0
    return error + 1 - F.cosine_similarity(ours, theirs, dim=-1).mean()
