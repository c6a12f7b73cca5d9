"""Training of a small SigLIP teacher, for where no weights can be had (arXiv 2303.15343).

B pairs of an image of S by S pixels and a text of L tokens.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dualtoken.model.config.optimizer import ParameterGroup
from dualtoken.model.config.teacher import TeacherTrainingConfig
from dualtoken.model.optimizer import (
    AnyOptimizer,
    build_optimizer,
    freeze_groups,
    learning_rate_at,
    set_learning_rate,
)
from dualtoken.model.randomness import seeded_weights
from dualtoken.model.teacher.teacher import build_teacher
from dualtoken.model.vision.imports import vision_imports
from dualtoken.model.vision.transform import normalize

with vision_imports():
    from open_clip import CustomTextCLIP
    from open_clip.loss import SigLipLoss

_LOGIT = ParameterGroup(pattern="logit_*", rate=10.0)
"""The loss's scale and bias: they must go far in a few hundred steps."""


class TeacherMetrics(NamedTuple):
    """Metrics of one step."""

    loss: float
    """SigLIP's loss: summed over texts, mean over images."""
    accuracy: float
    """Share of images that are nearest to their own text among the batch's."""
    learning_rate: float
    """Learning rate of the step."""


class TeacherTrainer:
    """A teacher under training, with its optimiser and the number of steps done.

    Raises ValueError for a group of `config.parameters` that no parameter belongs to.
    """

    def __init__(self, config: TeacherTrainingConfig, device: str | torch.device = "cpu") -> None:
        self.config = config
        self.step = 0
        with seeded_weights(config.seed):
            self.model = build_teacher(config).to(device)
        freeze_groups(self.model, config.parameters)
        self.optimizer = build_optimizer(
            self.model,
            config.optimizer,
            learning_rate=config.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
            groups=(*config.parameters, _LOGIT),
        )

    def train_step(self, images: UInt8[Tensor, "B 3 S S"], tokens: Int[Tensor, "B L"]) -> TeacherMetrics:
        """Take the next step, on levels 0 to 255 and the token ids of `teacher.tokenize`."""
        rate = learning_rate_at(
            self.step,
            peak=self.config.learning_rate,
            warmup_steps=self.config.warmup_steps,
            steps=self.config.steps,
            schedule=self.config.schedule,
        )
        metrics = teacher_step(self.model, self.optimizer, normalize(images), tokens, learning_rate=rate)
        self.step += 1
        return metrics


def teacher_step(
    model: CustomTextCLIP,
    optimizer: AnyOptimizer,
    images: Float[Tensor, "B 3 S S"],
    tokens: Int[Tensor, "B L"],
    *,
    learning_rate: float,
) -> TeacherMetrics:
    """Take one step on SigLIP's loss.

    Raises FloatingPointError, before any weight changes, if the loss is not finite.
    """
    model.train()
    set_learning_rate(optimizer, learning_rate)
    image_features, text_features, scale, bias = model(images, tokens)
    loss = SigLipLoss()(image_features, text_features, scale, bias)
    if not loss.isfinite():
        raise FloatingPointError(
            f"the teacher's loss is {loss.item()}: lower teacher.learning_rate, or look for broken images"
        )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        nearest = (image_features @ text_features.T).argmax(dim=1)
        own = torch.arange(len(images), device=images.device)
        accuracy = (nearest == own).float().mean().item()
    return TeacherMetrics(loss.item(), accuracy, learning_rate)
