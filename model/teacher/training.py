"""Training of a small SigLIP teacher, for where no weights can be had (arXiv 2303.15343).

B pairs of an image of S by S pixels and a text of L tokens.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from dualtoken.model.config.teacher import TeacherTrainingConfig
from dualtoken.model.optimizer import build_optimizer, learning_rate_at, set_learning_rate
from dualtoken.model.teacher.teacher import build_teacher
from dualtoken.model.vision.imports import vision_imports
from dualtoken.model.vision.transform import normalize

with vision_imports():
    from open_clip import CustomTextCLIP
    from open_clip.loss import SigLipLoss

_LOGIT_RATE = 10.0


class TeacherMetrics(NamedTuple):
    """Figures of one step."""

    loss: float  # SigLIP's: summed over texts, mean over images
    accuracy: float  # share of images whose own text is nearest among the batch's
    learning_rate: float


class TeacherTrainer:
    """A teacher under training, with its optimiser and the number of steps done."""

    def __init__(self, settings: TeacherTrainingConfig, device: str | torch.device = "cpu") -> None:
        self.settings, self.step = settings, 0
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            self.model = build_teacher(settings).to(device)
        self.optimizer = build_optimizer(
            self.model,
            learning_rate=settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
        )
        _quicken_logits(self.optimizer, self.model)

    def train_step(self, images: UInt8[Tensor, "B 3 S S"], tokens: Int[Tensor, "B L"]) -> TeacherMetrics:
        """Take the next step, on levels 0 to 255 and the token ids of `teacher.tokenize`."""
        rate = learning_rate_at(
            self.step,
            peak=self.settings.learning_rate,
            warmup_steps=self.settings.warmup_steps,
            steps=self.settings.steps,
        )
        metrics = teacher_step(self.model, self.optimizer, normalize(images), tokens, learning_rate=rate)
        self.step += 1
        return metrics


def _quicken_logits(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Let the loss's scale and bias move at `_LOGIT_RATE` times the rate: in a few hundred steps they must go far."""
    logits = [model.get_parameter(name) for name in ("logit_scale", "logit_bias")]
    for group in optimizer.param_groups:
        group["params"] = [
            parameter for parameter in group["params"] if not any(parameter is logit for logit in logits)
        ]
    optimizer.add_param_group({"params": logits, "weight_decay": 0.0, "lr_scale": _LOGIT_RATE})


def teacher_step(
    model: CustomTextCLIP,
    optimizer: torch.optim.Optimizer,
    images: Float[Tensor, "B 3 S S"],
    tokens: Int[Tensor, "B L"],
    *,
    learning_rate: float,
) -> TeacherMetrics:
    """Take one step on SigLIP's loss. Raises FloatingPointError, before any weight changes, if the loss is not finite."""
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
        right = (image_features @ text_features.T).argmax(dim=1) == torch.arange(
            len(images), device=images.device
        )
    return TeacherMetrics(loss.item(), right.float().mean().item(), learning_rate)
