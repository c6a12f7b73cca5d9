"""One step of the tokenizer's training, the same on one process, under DistributedDataParallel and FSDP2.

B images of S by S pixels on this rank.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualtoken.model.data_parallel import gradient_sync, total_gradient_norm
from dualtoken.model.optimizer import StepCheck, learning_rate_at, require_finite, set_learning_rate
from dualtoken.model.quantize import Quantized
from dualtoken.model.teacher.targets import TeacherTargets
from dualtoken.model.tokenizer.dual_tokenizer import TokenizerOutput
from dualtoken.model.training.adversary import Adversary, LastLayerGradients
from dualtoken.model.training.losses import TokenizerLoss, tokenizer_loss
from dualtoken.model.training.picture_gradients import (
    backward_from_pictures,
    last_layer_gradients,
    picture_gradients,
)
from dualtoken.model.training.state import TrainState


class TrainMetrics(NamedTuple):
    """Metrics of one step; None where there is no such loss.

    Losses are this rank's, and before weighting but for the total.
    """

    loss: float
    """Weighted total, the generator's part included."""
    reconstruction: float | None
    """Mean squared error of pictures."""
    perceptual: float | None
    """LPIPS of pictures."""
    semantic: float | None
    """Distance of semantic tokens from the teacher's."""
    pooled: float | None
    """Distance of image embeddings from the teacher's."""
    commitment: float
    """Commitment of all codebooks together."""
    generator: float | None
    """Generator's loss, before both of its weights."""
    adaptive_weight: float | None
    """Adaptive weight of the generator's loss."""
    discriminator: float | None
    """Discriminator's own loss."""
    gradient_norm: float
    """Norm of the tokenizer's gradient, averaged over all ranks, before clipping."""
    discriminator_gradient_norm: float | None
    """Norm of the discriminator's gradient, averaged over all ranks."""
    learning_rate: float
    """Tokenizer's learning rate in this step."""

    def present(self) -> dict[str, float]:
        """Return the metrics that there are, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class _Batch(NamedTuple):
    images: Float[Tensor, "B 3 S S"]
    targets: TeacherTargets


class _MicroBatchResult(NamedTuple):
    """Detached results of a micro-batch, kept after its backward pass."""

    losses: dict[str, Tensor]
    """Losses by the names of `TrainMetrics`."""
    pixel: Quantized | None
    """Pixel tokens with their codes, for the codebook's update."""
    semantic: Quantized | None
    """Semantic tokens with their codes."""


def train_step(
    state: TrainState,
    images: Float[Tensor, "B 3 S S"],
    targets: TeacherTargets,
    check: StepCheck = require_finite,
) -> TrainMetrics:
    """Take one step on images of -1 to 1 and the teacher's targets of the same images.

    `check` is called before any weight changes; by default it raises FloatingPointError if a loss or its
    gradient is not finite.
    """
    config = state.config
    adversary = _adversary(state)
    rate = learning_rate_at(
        state.step,
        peak=config.learning_rate,
        warmup_steps=config.warmup_steps,
        steps=config.steps,
        schedule=config.schedule,
    )
    set_learning_rate(state.optimizer, rate)
    state.model.train()
    state.optimizer.zero_grad()
    if adversary:
        adversary.optimizer.zero_grad()

    results = _backward_all(state, _split(_Batch(images, targets), state.accumulate_steps))
    figures = _mean_losses(results)
    figures["gradient_norm"] = total_gradient_norm(state.model)
    if adversary:
        figures["discriminator_gradient_norm"] = adversary.finish_backward()
    metrics = _metrics(figures, rate)
    check(metrics.gradient_norm, _problem(metrics, state.step))

    # From here on weights and codebooks change.
    if config.max_gradient_norm is not None:
        nn.utils.clip_grads_with_norm_(
            state.model.parameters(), config.max_gradient_norm, figures["gradient_norm"]
        )
    state.optimizer.step()
    if adversary:
        adversary.take_step(state.step)
    _update_codebooks(state, results)
    if state.average:
        state.average.update_parameters(state.tokenizer)
    state.step += 1
    return metrics


def _adversary(state: TrainState) -> Adversary | None:
    """Return the adversary if it takes part in this step."""
    if state.adversary and state.adversary.takes_part(state.step):
        return state.adversary
    return None


def _split(batch: _Batch, count: int) -> list[_Batch]:
    """Part a batch into micro-batches of one size, so that the mean of their means is the batch's."""
    size, rest = divmod(len(batch.images), count)
    if rest or not size:
        raise ValueError(
            f"accumulate_steps={count} does not divide the {len(batch.images)} images of a rank: "
            "change one of them"
        )
    parts = zip(
        batch.images.split(size),
        batch.targets.pooled.split(size),
        batch.targets.dense.split(size),
        strict=True,
    )
    return [_Batch(images, TeacherTargets(pooled, dense)) for images, pooled, dense in parts]


def _backward_all(state: TrainState, batches: Sequence[_Batch]) -> list[_MicroBatchResult]:
    """Add up the gradients of all micro-batches: those of their mean loss."""
    adversary = _adversary(state)
    adaptive_weight = None
    if adversary and len(batches) > 1:
        adaptive_weight = _adaptive_weight_ahead(state, adversary, batches)
    share = 1 / len(batches)
    results = []
    for number, batch in enumerate(batches, start=1):
        last = number == len(batches)
        results.append(_backward(state, batch, share, adaptive_weight, last=last))
    return results


def _backward(
    state: TrainState, batch: _Batch, share: float, adaptive_weight: Tensor | None, *, last: bool
) -> _MicroBatchResult:
    """Add a micro-batch's gradients, the tokenizer's and the discriminator's.

    Ranks average the tokenizer's in the last micro-batch only.
    """
    adversary = _adversary(state)
    losses: dict[str, Tensor] = {}
    with gradient_sync(state.model, last=last):
        output, loss = state.compiled(forward_losses, calls_model=True)(
            state, batch.images, batch.targets, pictures=adversary is None
        )
        if adversary is None:
            losses["loss"] = loss.total
            (loss.total * share).backward()
        else:
            picture = picture_gradients(state, adversary, output, batch.images)
            if adaptive_weight is None:
                adaptive_weight = adversary.adaptive_weight(
                    last_layer_gradients(state.tokenizer, output, picture)
                )
            generator_weight = adversary.config.weight * adaptive_weight
            gradient = picture.weighted + generator_weight * picture.generator
            losses |= picture.losses
            losses["adaptive_weight"] = adaptive_weight
            losses["loss"] = (
                loss.total.detach() + picture.total + generator_weight * picture.losses["generator"]
            )
            # Through the network once, from the pictures and from all other losses.
            backward_from_pictures(output, gradient * share, loss.total * share)
    if adversary and output.reconstruction is not None:
        with state.autocast():
            losses["discriminator"] = state.compiled(adversary.discriminator_loss)(
                batch.images, output.reconstruction.detach().float()
            )
        (losses["discriminator"] * share).backward()

    losses |= loss.terms()
    return _MicroBatchResult(
        losses={name: value.detach() for name, value in losses.items()},
        pixel=_detached(output.pixel),
        semantic=_detached(output.semantic),
    )


def forward_losses(
    state: TrainState, images: Float[Tensor, "B 3 S S"], targets: TeacherTargets, *, pictures: bool = True
) -> tuple[TokenizerOutput, TokenizerLoss]:
    """Run the streams that train, and return what they give and their loss, all but the GAN's.

    Without `pictures` the loss leaves those of pictures out.
    """
    with state.autocast():
        output = cast("TokenizerOutput", state.model(images, **state.streams._asdict()))
        loss = tokenizer_loss(
            output,
            images,
            targets,
            state.config.losses,
            phase=state.config.stage,
            perceptual=state.perceptual,
            pictures=pictures,
        )
    return output, loss


def _adaptive_weight_ahead(state: TrainState, adversary: Adversary, batches: Sequence[_Batch]) -> Tensor:
    """Return the adaptive weight of a batch in parts.

    It is a ratio of norms, which no mean of the parts' ratios gives. It costs one more forward pass, without
    a graph.
    """
    sums: LastLayerGradients | None = None
    for batch in batches:
        with torch.no_grad(), state.autocast():
            output = state.tokenizer(batch.images, pixel=True, semantic=False)
        pictures = picture_gradients(state, adversary, output, batch.images)
        gradients = last_layer_gradients(state.tokenizer, output, pictures)
        if sums is None:
            sums = gradients
        else:
            sums = LastLayerGradients(sums.picture + gradients.picture, sums.generator + gradients.generator)
    assert sums is not None
    return adversary.adaptive_weight(
        LastLayerGradients(sums.picture / len(batches), sums.generator / len(batches))
    )


def _mean_losses(results: Sequence[_MicroBatchResult]) -> dict[str, Tensor]:
    """Return each loss averaged over the micro-batches, which are of one size."""
    means = {}
    for name in results[0].losses:
        means[name] = torch.stack([result.losses[name] for result in results]).mean()
    return means


def _metrics(figures: dict[str, Tensor], rate: float) -> TrainMetrics:
    """Bring a step's figures off the device, all at once."""
    numbers = torch.stack(list(figures.values())).tolist()
    values: dict[str, Any] = dict.fromkeys(TrainMetrics._fields)
    values.update(zip(figures, numbers, strict=True))
    values["learning_rate"] = rate
    return TrainMetrics(**values)


def _problem(metrics: TrainMetrics, step: int) -> str:
    """Say what is not finite in a step; nothing where all is."""
    if all(map(math.isfinite, metrics.present().values())):
        return ""
    return (
        f"step {step} has loss {metrics.loss} and gradient norm {metrics.gradient_norm}: "
        "lower train.learning_rate"
    )


def _update_codebooks(state: TrainState, results: Sequence[_MicroBatchResult]) -> None:
    """Move the codebooks of the streams that train, once, by all of the step's tokens."""
    tokenizer = state.tokenizer
    # Seeded by the step, so that restarts agree on all ranks and a resumed run needs no generator's state.
    # Mixed, since a CPU's generator takes the lowest 32 bits of its seed alone.
    (seed,) = np.random.SeedSequence([state.config.seed % 2**64, state.step]).generate_state(1)
    generator = torch.Generator().manual_seed(int(seed))
    pixel = [result.pixel for result in results if result.pixel is not None]
    semantic = [result.semantic for result in results if result.semantic is not None]
    if pixel:
        tokenizer.quantize_pixel.update(pixel, generator)
    # A codebook that both streams share has moved by then.
    if semantic and not (pixel and tokenizer.config.shared_codebook):
        tokenizer.quantize_semantic.update(semantic, generator)


def _detached(quantized: Quantized | None) -> Quantized | None:
    if quantized is None:
        return None
    return Quantized(*(tensor.detach() for tensor in quantized))
