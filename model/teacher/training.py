"""Training of a small SigLIP teacher, for where no weights can be had (arXiv 2303.15343).

B pairs of an image of S by S pixels and a text of L tokens on this rank; embeddings are E wide.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from dualtoken.model.config.optimizer import ParameterGroup
from dualtoken.model.config.teacher import TeacherTrainingConfig
from dualtoken.model.optimizer import (
    StepCheck,
    build_optimizer,
    freeze_groups,
    learning_rate_at,
    require_finite,
    set_learning_rate,
)
from dualtoken.model.randomness import seeded_weights
from dualtoken.model.teacher.teacher import build_teacher
from dualtoken.model.vision.imports import vision_imports
from dualtoken.model.vision.transform import normalize

with vision_imports():
    from open_clip.loss import SigLipLoss

_LOGIT = ParameterGroup(pattern="logit_*", rate=10.0)
"""The loss's scale and bias: they must go far in a few hundred steps."""


class TeacherMetrics(NamedTuple):
    """Metrics of one step."""

    loss: float
    """SigLIP's loss: summed over all ranks' texts, mean over this rank's images."""
    accuracy: float
    """Share of images that are nearest to their own text among the batch's."""
    learning_rate: float
    """Learning rate of the step."""


class HeldoutPairs(NamedTuple):
    """What pairs of an image and a text give that nothing is learnt from."""

    metrics: dict[str, float]
    """Loss, and the share of images that are nearest to their own text, by name."""
    images: Float[Tensor, "B E"]
    """Unit vectors of the images."""


class TeacherTrainer:
    """A teacher under training, with its optimiser and the number of steps done.

    `wrap` puts the model into DistributedDataParallel where several ranks train it. Each then has its share
    of a batch, and all together take the step of one that has the whole. Raises ValueError for a group of
    `config.parameters` that no parameter belongs to.
    """

    def __init__(
        self,
        config: TeacherTrainingConfig,
        device: str | torch.device = "cpu",
        wrap: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        self.config = config
        self.step = 0
        with seeded_weights(config.seed):
            self.model = build_teacher(config).to(device)
        freeze_groups(self.model, config.parameters)
        self._wrapped = wrap(self.model) if wrap else self.model
        self.optimizer = build_optimizer(
            self.model,
            config.optimizer,
            learning_rate=config.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
            groups=(*config.parameters, _LOGIT),
        )

    def train_step(
        self,
        images: UInt8[Tensor, "B 3 S S"],
        tokens: Int[Tensor, "B L"],
        check: StepCheck = require_finite,
    ) -> TeacherMetrics:
        """Take the next step, on levels 0 to 255 and the token ids of `teacher.tokenize`.

        `check` is called before any weight changes; by default it raises FloatingPointError if the gradient
        is not finite.
        """
        rate = learning_rate_at(
            self.step,
            peak=self.config.learning_rate,
            warmup_steps=self.config.warmup_steps,
            steps=self.config.steps,
            schedule=self.config.schedule,
        )
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad()
        self.model.train()
        image_features, text_features, scale, bias = self._wrapped(normalize(images), tokens)
        loss = _loss(image_features, text_features, scale, bias)
        loss.backward()
        norm = _gradient_norm(self.model)
        problem = ""
        if not math.isfinite(norm):
            problem = (
                f"step {self.step} has loss {loss.item()} and gradient norm {norm}: "
                "lower teacher.learning_rate, or look for broken images"
            )
        check(norm, problem)
        self.optimizer.step()
        self.step += 1
        return TeacherMetrics(loss.item(), _accuracy(image_features, text_features), rate)

    @torch.no_grad()
    def measure_heldout(self, images: UInt8[Tensor, "B 3 S S"], tokens: Int[Tensor, "B L"]) -> HeldoutPairs:
        """Return what pairs give that nothing is learnt from, compared with each other alone."""
        self.model.eval()
        try:
            image_features, text_features, scale, bias = self.model(normalize(images), tokens)
        finally:
            self.model.train()
        nearest = (image_features @ text_features.T).argmax(dim=1)
        own = torch.arange(len(images), device=images.device)
        loss = SigLipLoss()(image_features, text_features, scale, bias)
        accuracy = (nearest == own).float().mean()
        return HeldoutPairs({"loss": loss.item(), "accuracy": accuracy.item()}, image_features)

    @torch.no_grad()
    def embed_texts(self, tokens: Int[Tensor, "T L"]) -> Float[Tensor, "T E"]:
        """Return the unit vectors of texts, by the teacher as it is now."""
        self.model.eval()
        try:
            return self.model.encode_text(tokens, normalize=True)
        finally:
            self.model.train()


def _loss(
    images: Float[Tensor, "B E"], texts: Float[Tensor, "B E"], scale: Float[Tensor, ""], bias: Tensor
) -> Float[Tensor, ""]:
    """Return SigLIP's loss of this rank's images against the texts of all ranks."""
    if not dist.is_initialized():
        return SigLipLoss()(images, texts, scale, bias)
    # Its texts go round from rank to rank, and their gradients come back.
    return SigLipLoss(rank=dist.get_rank(), world_size=dist.get_world_size())(images, texts, scale, bias)


def _gradient_norm(model: nn.Module) -> float:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return nn.utils.get_total_norm(gradients).item()


@torch.no_grad()
def _accuracy(images: Float[Tensor, "B E"], texts: Float[Tensor, "B E"]) -> float:
    """Return the share of this rank's images that are nearest to their own text among those of all ranks."""
    first = 0
    if dist.is_initialized():
        gathered = [torch.empty_like(texts) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, texts.contiguous())
        first = dist.get_rank() * len(images)
        texts = torch.cat(gathered)
    nearest = (images @ texts.T).argmax(dim=1)
    own = first + torch.arange(len(images), device=images.device)
    return (nearest == own).float().mean().item()
