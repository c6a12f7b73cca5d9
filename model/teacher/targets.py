"""What the teacher gives the tokenizer's loss for a batch."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class TeacherTargets(NamedTuple):
    """What the tokenizer learns to predict."""

    pooled: Float[Tensor, "B E"]  # the teacher's pooled output, of any length
    dense: Float[Tensor, "B N W"]  # its tokens after the semantic block
