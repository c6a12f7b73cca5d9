"""The discriminator under training: optimiser, schedule, and the adaptive weight of the generator's loss.

Source: VQGAN, arXiv 2012.09841, eq. 6-7. B images of S by S pixels on this rank.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from dualtoken.model.config.optimizer import CosineSchedule
from dualtoken.model.config.training import GanConfig
from dualtoken.model.optimizer import learning_rate_at, set_learning_rate
from dualtoken.model.randomness import seeded_weights
from dualtoken.model.training.discriminator import PatchDiscriminator, discriminator_loss, generator_loss

_EPSILON = 1e-4
"""Constant added to the generator's gradient norm, as in the released code."""


class LastLayerGradients(NamedTuple):
    """Gradients of two losses at the weight of the decoder's last layer."""

    picture: Tensor
    """Gradient of the picture loss, its parts unweighted."""
    generator: Tensor
    """Gradient of the generator's loss."""


class Adversary:
    """A discriminator that learns beside the tokenizer; the same on all ranks, from its seed on."""

    def __init__(self, config: GanConfig, *, steps: int, seed: int, device: torch.device) -> None:
        self.config = config
        self._steps = steps
        final = min(1.0, config.final_learning_rate / config.learning_rate)
        self._schedule = CosineSchedule(final=final)
        with seeded_weights(seed):
            self.discriminator = PatchDiscriminator(config.width)
        self.discriminator.to(device)
        self.optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=config.learning_rate, betas=config.betas, fused=True
        )

    def takes_part(self, step: int) -> bool:
        """Tell whether the GAN is on in a step; before, neither side of it is computed."""
        return step >= self.config.start_step

    def generator_loss(self, reconstruction: Float[Tensor, "B 3 S S"]) -> Float[Tensor, ""]:
        """Return the tokenizer's loss; no gradient reaches the discriminator."""
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        return generator_loss(functional_call(self.discriminator, frozen, (reconstruction,)))

    def discriminator_loss(
        self, images: Float[Tensor, "B 3 S S"], reconstruction: Float[Tensor, "B 3 S S"]
    ) -> Float[Tensor, ""]:
        """Return the discriminator's own loss; no gradient reaches the tokenizer."""
        scores = self.discriminator(torch.cat((images, reconstruction.detach())))
        real, fake = scores.chunk(2)
        return discriminator_loss(real, fake)

    def adaptive_weight(self, gradients: LastLayerGradients) -> Tensor:
        """Return the ratio of the two gradients' norms, within the bounds of the configuration (eq. 7)."""
        picture, generator = mean_over_ranks(gradients)
        ratio = picture.norm() / (generator.norm() + _EPSILON)
        return ratio.clamp(self.config.min_adaptive_weight, self.config.max_adaptive_weight)

    def finish_backward(self) -> Float[Tensor, ""]:
        """Average the gradients over ranks and return their norm."""
        parameters = list(self.discriminator.parameters())
        gradients = _gradients(parameters)
        # 1.73 M numbers: one all-reduce of them needs no bucketing behind the backward pass.
        for parameter, gradient in zip(parameters, mean_over_ranks(gradients), strict=True):
            parameter.grad = gradient
        return nn.utils.get_total_norm(_gradients(parameters))

    def take_step(self, step: int) -> None:
        """Move the discriminator by the gradients it has; `step` counts the tokenizer's steps."""
        config = self.config
        rate = learning_rate_at(
            step - config.start_step,
            peak=config.learning_rate,
            warmup_steps=config.warmup_steps,
            steps=max(1, self._steps - config.start_step),
            schedule=self._schedule,
        )
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return discriminator and optimiser."""
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def mean_over_ranks(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return tensors averaged over all ranks, with one all-reduce where torch.distributed is initialised."""
    tensors = list(tensors)
    if not dist.is_initialized():
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    averages = (flat / dist.get_world_size()).split([tensor.numel() for tensor in tensors])
    return [average.view_as(tensor) for average, tensor in zip(averages, tensors, strict=True)]
