"""One step of the tokenizer's training, the same on one process and under DistributedDataParallel.

B images of S by S pixels on this rank.
"""

import math
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.losses import TeacherTargets, tokenizer_loss
from model.optimizer import build_optimizer, learning_rate_at, set_learning_rate
from model.settings import TrainSettings
from model.tokenizer import DualTokenizer, TokenizerOutput


class TrainMetrics(NamedTuple):
    """Figures of one step; losses are this rank's, before weighting but for the total."""

    loss: float
    reconstruction: float
    semantic: float
    pooled: float
    commitment: float
    gradient_norm: float  # over all ranks' mean gradient
    learning_rate: float


class TrainState:
    """Model, optimiser and the number of steps done: all that a resumed run needs, but the data's order.

    Under DistributedDataParallel wrap with broadcast_buffers=False: the codebooks are buffers, and `train_step` keeps them
    equal on all ranks.
    """

    def __init__(self, model: DualTokenizer | DistributedDataParallel, settings: TrainSettings) -> None:
        self.model, self.settings, self.step = model, settings, 0
        self.optimizer = build_optimizer(
            model, learning_rate=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
        )

    @property
    def tokenizer(self) -> DualTokenizer:
        """The model itself, out of any wrapper."""
        return cast("DualTokenizer", self.model.module) if isinstance(self.model, DistributedDataParallel) else self.model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.tokenizer.parameters()).device

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and containers of them: torch.load reads them back with weights_only=True."""
        return {"step": self.step, "model": self.tokenizer.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; the steps that follow are those of a run never stopped, to the bit."""
        self.tokenizer.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def train_step(state: TrainState, images: Float[Tensor, "B 3 S S"], targets: TeacherTargets) -> TrainMetrics:
    """Take one step on images of -1 to 1 and the teacher's targets of the same images.

    Raises FloatingPointError, before any weight changes, if the loss or its gradient is not finite.
    """
    settings = state.settings
    rate = learning_rate_at(state.step, peak=settings.learning_rate, warmup_steps=settings.warmup_steps, steps=settings.steps)
    set_learning_rate(state.optimizer, rate)
    state.model.train()
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=settings.precision == "bfloat16"):
        output = cast("TokenizerOutput", state.model(images))
    loss = tokenizer_loss(output, images, targets, settings.losses)
    state.optimizer.zero_grad()
    loss.total.backward()
    norm = nn.utils.get_total_norm([p.grad for p in state.model.parameters() if p.grad is not None])
    metrics = TrainMetrics._make([*torch.stack((*loss, norm)).tolist(), rate])
    # A norm that is not finite is so on every rank, the gradient being shared: all raise, and none waits for another.
    if not (math.isfinite(metrics.loss) and math.isfinite(metrics.gradient_norm)):
        raise FloatingPointError(
            f"step {state.step} has loss {metrics.loss} and gradient norm {metrics.gradient_norm}: lower train.learning_rate"
        )
    state.optimizer.step()
    _update_codebooks(state, output)
    state.step += 1
    return metrics


def _update_codebooks(state: TrainState, output: TokenizerOutput) -> None:
    tokenizer = state.tokenizer
    # Seeded by the step, so that restarts agree on all ranks and a resumed run needs no generator's state.
    generator = torch.Generator().manual_seed((state.settings.seed << 32) + state.step)
    tokenizer.quantize_pixel.update(output.pixel, generator)
    tokenizer.quantize_semantic.update(output.semantic, generator)
