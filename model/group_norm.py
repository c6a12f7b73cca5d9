"""GroupNorm (arXiv 1803.08494) that returns the type that it takes, under autocast too. C channels.

On GPUs autocast runs norms in float32, so each would read bfloat16 and write twice the bytes; at 384 pixels
the decoder's norms alone would move 69 GB a step of 32 images. Statistics are sums in float32 in either case:
PyTorch's kernels accumulate so (aten/src/ATen/native/cuda/group_norm_kernel.cu, `at::acc_type`).

A convolution mostly reads SiLU (arXiv 1606.08415) of a norm. As two operations they keep the norm's input and
its output for the backward pass; `norm_silu` keeps the input alone, and computes the other again.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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


def norm_silu(values: Float[Tensor, "B C *S"], norm: GroupNorm) -> Float[Tensor, "B C *S"]:
    """Return SiLU of a norm: the bits of both operations, value and gradients, with half of what they keep.

    Costs a norm's forward pass in the backward pass. No gradient of its gradients can be taken.
    """
    # A compiler decides by itself what it computes again, and exported graphs have no gradients.
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return F.silu(norm(values))
    weight = norm.weight
    bias = norm.bias
    if values.dtype != weight.dtype and values.device.type != "cpu":
        weight = weight.to(values.dtype)
        bias = bias.to(values.dtype)
    with without_autocast(values.device):
        return _NormSilu.apply(values, weight, bias, norm.num_groups, norm.eps)


class _NormSilu(torch.autograd.Function):
    """SiLU of a group norm that computes the norm's output again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  (PyTorch gives it no type)
        values: Tensor,
        weight: Tensor,
        bias: Tensor,
        num_groups: int,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(values, weight, bias)
        ctx.num_groups = num_groups
        ctx.eps = eps
        normed, _, _ = _native_norm(_as_kernels_want(values), weight, bias, num_groups, eps)
        return F.silu(normed, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # PyTorch passes both by place
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor | None, ...]:
        saved, weight, bias = ctx.saved_tensors
        values = _as_kernels_want(saved)
        normed, mean, inverse_deviation = _native_norm(values, weight, bias, ctx.num_groups, ctx.eps)
        # As the norm of the pair gets it: in the layout of its output.
        of_normed = torch.ops.aten.silu_backward(gradient, normed)
        batch, channels = values.shape[:2]
        of_values, of_weight, of_bias = torch.ops.aten.native_group_norm_backward(
            of_normed.contiguous(memory_format=_memory_format(values)),
            values,
            mean,
            inverse_deviation,
            weight,
            batch,
            channels,
            values[0, 0].numel(),
            ctx.num_groups,
            ctx.needs_input_grad[:3],
        )
        return of_values, of_weight, of_bias, None, None


def _native_norm(
    values: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a norm's output, and each group's mean and inverse standard deviation."""
    batch, channels = values.shape[:2]
    return torch.native_group_norm(
        values, weight, bias, batch, channels, values[0, 0].numel(), num_groups, eps
    )


def _as_kernels_want(values: Tensor) -> Tensor:
    """Return values in the layout that `torch.group_norm` hands its kernel."""
    return values.contiguous(memory_format=_memory_format(values))


def _memory_format(values: Tensor) -> torch.memory_format:
    """Return the layout for a device: only the kernel of CPUs takes channels last."""
    is_last = values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last)
    if values.device.type == "cpu" and is_last and not values.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format
