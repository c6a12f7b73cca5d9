"""Muon (arXiv 2502.16982), fast on every CPU.

torch's own runs its Newton-Schulz iterations in bfloat16. Where a CPU has no such arithmetic it is emulated:
a matrix of 192 x 768 then takes 405 ms, in float32 12 ms (AMD EPYC without AVX-512, one thread, 2026-11-29).

R rows, C columns, M matrices of one shape.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate


class Muon(torch.optim.Muon):
    """torch's Muon with the step sizes of AdamW, in float32 on a CPU; its state is that of torch's.

    Matrices of one shape are brought to their steps together. Sharded ones are gathered for it: their step is
    that of the whole matrix, which every rank computes. On a GPU the step of whole matrices is torch's own.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        ns_steps: int = 5,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            ns_steps=ns_steps,
            adjust_lr_fn="match_rms_adamw",
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every matrix that has a gradient."""
        assert closure is None, "a training step computes its gradients before"
        if all(_is_whole_on_gpu(matrix) for group in self.param_groups for matrix in group["params"]):
            super().step()
            return
        for group in self.param_groups:
            for matrices in _by_shape(group["params"]).values():
                self._move(matrices, group)

    def _move(self, matrices: list[Tensor], group: Mapping[str, Any]) -> None:
        """Move matrices of one shape."""
        updates = torch.stack([_whole(self._update(matrix, group["momentum"])) for matrix in matrices])
        if updates.device.type != "cpu":
            updates = updates.bfloat16()  # as torch's own
        directions = orthogonalized(updates, group["ns_coefficients"], group["ns_steps"]).to(
            matrices[0].dtype
        )
        rate = group["lr"]
        step_size = 0.2 * math.sqrt(max(matrices[0].shape)) * rate
        for matrix, direction in zip(matrices, directions, strict=True):
            matrix.mul_(1 - rate * group["weight_decay"])
            matrix.add_(_sharded_like(matrix, direction), alpha=-step_size)

    def _update(self, matrix: Tensor, momentum: float) -> Float[Tensor, "R C"]:
        """Return Nesterov's update of a matrix, and keep its momentum."""
        assert matrix.grad is not None
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix.grad)
        average = state["momentum_buffer"]
        average.lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(average, momentum)


def _is_whole_on_gpu(matrix: Tensor) -> bool:
    """Tell whether a parameter is a whole tensor in a GPU's memory."""
    return matrix.device.type != "cpu" and not isinstance(matrix, DTensor)


def _whole(update: Tensor) -> Tensor:
    """Return an update as a whole matrix, gathered from all ranks where it is sharded."""
    if isinstance(update, DTensor):
        return update.full_tensor()
    return update


def _sharded_like(matrix: Tensor, direction: Float[Tensor, "R C"]) -> Tensor:
    """Return a direction, which every rank has, in the shards of a parameter."""
    if not isinstance(matrix, DTensor):
        return direction
    mesh = matrix.device_mesh
    replicated = DTensor.from_local(direction, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(mesh, matrix.placements)


def _by_shape(matrices: Iterable[Tensor]) -> dict[torch.Size, list[Tensor]]:
    """Return the matrices that have gradients, by shape."""
    shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for matrix in matrices:
        if matrix.grad is not None:
            shapes[matrix.shape].append(matrix)
    return shapes


def orthogonalized(
    matrices: Float[Tensor, "M R C"], coefficients: tuple[float, float, float], num_iterations: int
) -> Float[Tensor, "M R C"]:
    """Return matrices with the same singular vectors and singular values near 1, 0.5 to 1.5.

    Newton-Schulz iterations of degree five, as in torch.optim.Muon, in the precision of `matrices`.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalized(matrices.mT, coefficients, num_iterations).mT
    first, third, fifth = coefficients
    # The spectral norm is at most the Frobenius norm.
    result = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(num_iterations):
        gram = result @ result.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth)
        result = torch.baddbmm(result, polynomial, result, beta=first)
    return result
