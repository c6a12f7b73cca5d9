"""The tokenizer's loss: stage 1 of the released DualToken code, less its LPIPS and GAN terms.

B images, N tokens, W channels of a tower, E of an embedding. Cosine terms are 1 - cos where the paper has -cos: the same
gradient, and zero is perfect.
"""

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from model.settings import LossWeights
from model.tokenizer import TokenizerOutput


class TeacherTargets(NamedTuple):
    """What the tokenizer learns to predict."""

    pooled: Float[Tensor, "B E"]  # the teacher's pooled output, of any length
    dense: Float[Tensor, "B N W"]  # its tokens after the semantic block


class TokenizerLoss(NamedTuple):
    """The weighted total and its terms before weighting; all at least 0."""

    total: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""]  # mean squared error of images of -1 to 1
    semantic: Float[Tensor, ""]  # of semantic tokens against the teacher's: mean squared error + 1 - cosine
    pooled: Float[Tensor, ""]  # of image embeddings against the teacher's, likewise
    commitment: Float[Tensor, ""]  # both codebooks' together


def tokenizer_loss(
    output: TokenizerOutput, images: Float[Tensor, "B 3 S S"], targets: TeacherTargets, weights: LossWeights
) -> TokenizerLoss:
    """Return the loss of a batch, in float32; images are those that went in, -1 to 1."""
    reconstruction = F.mse_loss(output.reconstruction.float(), images.float())
    semantic = _distance(output.semantic_tokens.float(), targets.dense.float())
    pooled = _distance(output.pooled.float(), targets.pooled.float())
    commitment = output.pixel.commitment + output.semantic.commitment
    total = (
        weights.reconstruction * reconstruction + weights.semantic * semantic + weights.pooled * pooled + weights.commitment * commitment
    )
    return TokenizerLoss(total, reconstruction, semantic, pooled, commitment)


def _distance(ours: Float[Tensor, "*B W"], theirs: Float[Tensor, "*B W"]) -> Float[Tensor, ""]:
    """Equation 2 of the paper, plus one."""
    return F.mse_loss(ours, theirs) + 1 - F.cosine_similarity(ours, theirs, dim=-1).mean()
