"""A training step of the unified model: micro-batches of packed documents, one update.

DualToken's four phases (arXiv 2503.14324, appendix): 1 trains the projector, 2 projector and trunk, 3 the
heads, 4 all. Code vectors are the tokenizer's own and never move.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dualtoken.model.config.mllm import MllmTrainingConfig
from dualtoken.model.data_parallel import gradient_sync, total_gradient_norm
from dualtoken.model.mllm.lora import step_dropout
from dualtoken.model.mllm.losses import LossSums, MllmBatch, PackedLosses, TargetCounts
from dualtoken.model.mllm.modeling import UnifiedModel
from dualtoken.model.optimizer import (
    StepCheck,
    build_optimizer,
    freeze_groups,
    learning_rate_at,
    require_finite,
    set_learning_rate,
)
from dualtoken.model.precision import tower_precision


class MllmMetrics(NamedTuple):
    """Metrics of one step, each a mean over all targets of the step on all ranks."""

    loss: float
    """Weighted sum of the losses."""
    text: float
    """Cross-entropy of a text id, nats."""
    semantic: float
    """Cross-entropy of a semantic code, nats; 0 where none is a target."""
    pixel: float
    """Cross-entropy of a pixel code, nats; 0 where none is a target."""
    gradient_norm: float
    """Norm of the gradient before it is clipped."""
    learning_rate: float
    """Learning rate of the step."""
    num_text: int
    """Text targets of the step."""
    num_visual: int
    """Image positions of the step whose codes were targets."""


class MllmTrainer:
    """A model under training, with its optimiser and the number of steps done.

    `wrap` puts the model with its losses into DistributedDataParallel or shards it. Ranks then take the step
    of one that has all their documents. Raises ValueError for a group of `config.parameters` that no
    parameter belongs to.
    """

    def __init__(
        self,
        model: UnifiedModel,
        config: MllmTrainingConfig,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        self.config = config
        self.step = 0
        self.model = model
        freeze(model, config)
        losses = PackedLosses(model, config.losses, config.depth_share)
        self._losses = wrap(losses) if wrap else losses
        self.optimizer = build_optimizer(
            model,
            config.optimizer,
            learning_rate=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            groups=config.parameters,
        )

    def train_step(self, batches: Sequence[MllmBatch], check: StepCheck = require_finite) -> MllmMetrics:
        """Take the next step on this rank's micro-batches.

        `check` is called before any weight changes; by default it raises FloatingPointError if the gradient
        is not finite.
        """
        config = self.config
        rate = learning_rate_at(
            self.step,
            peak=config.learning_rate,
            warmup_steps=config.warmup_steps,
            steps=config.steps,
            schedule=config.schedule,
        )
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad()
        self.model.train()
        counts = _global_counts(batches)
        with step_dropout(config.lora, batches[0].input_ids.device, self._dropout_seed()):
            terms = self._backward(batches, counts)
        norm = total_gradient_norm(self.model)
        metrics = self._metrics(terms, counts, norm, rate)
        check(metrics.gradient_norm, self._problem(metrics))
        if config.max_gradient_norm is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), config.max_gradient_norm, norm)
        self.optimizer.step()
        self.step += 1
        return metrics

    def _backward(self, batches: Sequence[MllmBatch], counts: TargetCounts) -> dict[str, Tensor]:
        """Add up the gradients of micro-batches, and return their summed terms of the loss."""
        terms: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, start=1):
            with gradient_sync(self._losses, last=number == len(batches)):
                sums = self._forward(batch, counts)
                # Ranks average their gradients, and the sums are already over the counts of all ranks.
                (sums.total * _num_ranks()).backward()
            for name, term in sums.terms.items():
                terms[name] = terms.get(name, 0) + term
        return terms

    def _dropout_seed(self) -> int:
        """Return another seed for each step and rank."""
        rank = dist.get_rank() if dist.is_initialized() else 0
        words = np.random.SeedSequence([self.config.seed, self.step, rank]).generate_state(1, np.uint64)
        return int(words[0] >> 1)

    def _forward(self, batch: MllmBatch, counts: TargetCounts) -> LossSums:
        with tower_precision(batch.input_ids.device, self.config.precision):
            return self._losses(batch, counts)

    def _metrics(
        self, terms: dict[str, Tensor], counts: TargetCounts, norm: Tensor, rate: float
    ) -> MllmMetrics:
        """Bring a step's figures off the device, summed over ranks."""
        names = ("text", "semantic", "pixel")
        parts = torch.stack([terms.get(name, norm.new_zeros(())) for name in names])
        if dist.is_initialized():
            dist.all_reduce(parts)
        *values, gradient_norm = torch.cat([parts, norm[None]]).tolist()
        by_name = dict(zip(names, values, strict=True))
        weights = self.config.losses
        loss = sum(getattr(weights, name) * value for name, value in by_name.items())
        return MllmMetrics(
            loss,
            **by_name,
            gradient_norm=gradient_norm,
            learning_rate=rate,
            num_text=counts.text,
            num_visual=counts.visual,
        )

    def _problem(self, metrics: MllmMetrics) -> str:
        if math.isfinite(metrics.loss) and math.isfinite(metrics.gradient_norm):
            return ""
        return (
            f"step {self.step} has loss {metrics.loss} and gradient norm {metrics.gradient_norm}: "
            "lower mllm.learning_rate"
        )


def freeze(model: UnifiedModel, config: MllmTrainingConfig) -> None:
    """Let only those parameters have gradients that the phase trains, and that no group freezes.

    Of a trunk with adapters these alone are trained.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(config.trains(name))
    freeze_groups(model, config.parameters)


def split_batch(batch: MllmBatch, parts: int) -> Iterator[MllmBatch]:
    """Yield a batch's sequences in so many parts; raises ValueError where they are fewer."""
    num_rows, length = batch.input_ids.shape
    if num_rows % parts:
        raise ValueError(f"accumulate_steps={parts} does not divide {num_rows} sequences: change one of them")
    rows_per_part = num_rows // parts
    num_visual = batch.is_visual.sum(dim=1)
    first_visual = 0
    for first in range(0, num_rows, rows_per_part):
        rows = slice(first, first + rows_per_part)
        end_visual = first_visual + int(num_visual[rows].sum())
        images = slice(first_visual, end_visual)
        first_visual = end_visual
        yield MllmBatch(
            input_ids=batch.input_ids[rows],
            codes={stream: codes[images] for stream, codes in batch.codes.items()},
            segments=batch.segments.between(first * length, (first + rows_per_part) * length),
            is_visual=batch.is_visual[rows],
            text_targets=batch.text_targets[rows],
            visual_targets=batch.visual_targets[images],
            all_depths=batch.all_depths[images],
            unread=None if batch.unread is None else batch.unread[images],
        )


def _global_counts(batches: Sequence[MllmBatch]) -> TargetCounts:
    """Return the step's numbers of targets, over all ranks and micro-batches."""
    text = sum(int(batch.text_targets.sum()) for batch in batches)
    visual = sum(int(batch.visual_targets.sum()) for batch in batches)
    if not dist.is_initialized():
        return TargetCounts(text, visual)
    counts = torch.tensor([text, visual], device=batches[0].input_ids.device)
    dist.all_reduce(counts)
    return TargetCounts(*counts.tolist())


def _num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
