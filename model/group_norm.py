"""GroupNorm (arXiv 1803.08494) that returns the type that it takes, under autocast too. C channels.

On GPUs autocast runs norms in float32, so each would read bfloat16 and write twice the bytes; at 384 pixels
the decoder's norms alone would move 69 GB a step of 32 images. Statistics are sums in float32 in either case:
PyTorch's kernels accumulate so (aten/src/ATen/native/cuda/group_norm_kernel.cu, `at::acc_type`).
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dualtoken.model.precision import without_autocast


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm`, with its weights' names, that keeps bfloat16 where a GPU computes in it."""

    def forward(self, input: Float[Tensor, "B C *S"]) -> Float[Tensor, "B C *S"]:  # noqa: A002  (nn's own name)
        """Return the input with each group's mean 0 and variance 1, scaled and shifted by channel."""
        if input.dtype == self.weight.dtype or input.device.type == "cpu":
            return super().forward(input)  # on CPUs, autocast leaves norms alone
        with without_autocast(input.device):
            return group_norm_of(input, self)


def group_norm_of(values: Float[Tensor, "B C *S"], norm: nn.GroupNorm) -> Float[Tensor, "B C *S"]:
    """Apply a norm's weights in the type of the values, as the kernel of GPUs wants it."""
    weight = norm.weight.to(values.dtype)
    bias = norm.bias.to(values.dtype)
    return F.group_norm(values, norm.num_groups, weight, bias, norm.eps)
