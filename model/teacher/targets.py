"""Targets of the tokenizer's loss: features of a teacher. B images, N tokens, W and E channels."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class TeacherTargets(NamedTuple):
    """Features of a teacher that the tokenizer learns to predict."""

    pooled: Float[Tensor, "B E"]
    """Pooled output of the teacher's tower, not normalised."""
    dense: Float[Tensor, "B N W"]
    """Tokens of the teacher's tower after the semantic block; N is 0 where no loss compares them."""
