"""One step of the tokenizer's training, the same on one process and under DistributedDataParallel.

B images of S by S pixels on this rank.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dualtoken.model.optimizer import learning_rate_at, set_learning_rate
from dualtoken.model.quantize import Quantized
from dualtoken.model.teacher.targets import TeacherTargets
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer, TokenizerOutput
from dualtoken.model.training.adversary import Adversary
from dualtoken.model.training.losses import TokenizerLoss, tokenizer_loss
from dualtoken.model.training.state import TrainState


class TrainMetrics(NamedTuple):
    """Figures of one step; losses are this rank's, before weighting but for the total; None where there is no such loss."""

    loss: float
    reconstruction: float | None
    perceptual: float | None
    semantic: float | None
    pooled: float | None
    commitment: float
    generator: float | None
    adaptive_weight: float | None  # of the generator's loss
    discriminator: float | None
    gradient_norm: float  # over all ranks' mean gradient, before clipping
    discriminator_gradient_norm: float | None
    learning_rate: float

    def present(self) -> dict[str, float]:
        """Return the figures that there are, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class _Batch(NamedTuple):
    images: Float[Tensor, "B 3 S S"]
    targets: TeacherTargets


class _Done(NamedTuple):
    """What is left of a micro-batch once its gradients are in place: no graph."""

    losses: dict[str, Tensor]
    pixel: Quantized | None
    semantic: Quantized | None


def train_step(state: TrainState, images: Float[Tensor, "B 3 S S"], targets: TeacherTargets) -> TrainMetrics:
    """Take one step on images of -1 to 1 and the teacher's targets of the same images.

    Raises FloatingPointError, before any weight changes, if a loss or its gradient is not finite.
    """
    settings, adversary = state.settings, _adversary(state)
    rate = learning_rate_at(
        state.step, peak=settings.learning_rate, warmup_steps=settings.warmup_steps, steps=settings.steps
    )
    set_learning_rate(state.optimizer, rate)
    state.model.train()
    state.optimizer.zero_grad()
    if adversary:
        adversary.optimizer.zero_grad()
    batches = _split(_Batch(images, targets), settings.accumulate_steps)
    adaptive_weight = (
        _adaptive_weight_ahead(state, adversary, batches) if adversary and len(batches) > 1 else None
    )
    share = 1 / len(batches)
    done = [_backward(state, batch, share, adaptive_weight, last=batch is batches[-1]) for batch in batches]
    gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    figures = {name: torch.stack([one.losses[name] for one in done]).mean() for name in done[0].losses}
    figures["gradient_norm"] = nn.utils.get_total_norm(gradients)
    if adversary:
        figures["discriminator_gradient_norm"] = adversary.finish_backward()
    metrics = _metrics(figures, rate)
    _check_finite(metrics, state.step)
    if settings.max_gradient_norm is not None:
        nn.utils.clip_grads_with_norm_(
            state.model.parameters(), settings.max_gradient_norm, figures["gradient_norm"]
        )
    state.optimizer.step()
    if adversary:
        adversary.take_step(state.step)
    _update_codebooks(state, done)
    if state.average:
        state.average.update_parameters(state.tokenizer)
    state.step += 1
    return metrics


def _adversary(state: TrainState) -> Adversary | None:
    return state.adversary if state.adversary and state.adversary.takes_part(state.step) else None


def _split(batch: _Batch, count: int) -> list[_Batch]:
    """Part a batch into micro-batches of one size, so that the mean of their means is the batch's."""
    size, rest = divmod(len(batch.images), count)
    if rest or not size:
        raise ValueError(
            f"accumulate_steps={count} does not divide the {len(batch.images)} images of a rank: change one of them"
        )
    parts = (tensor.split(size) for tensor in (batch.images, *batch.targets))
    return [_Batch(images, TeacherTargets(*targets)) for images, *targets in zip(*parts, strict=True)]


def _backward(
    state: TrainState, batch: _Batch, share: float, adaptive_weight: Tensor | None, *, last: bool
) -> _Done:
    """Add a micro-batch's gradients, the tokenizer's and the discriminator's; ranks meet in the last one only."""
    adversary, losses = _adversary(state), {}
    waits = isinstance(state.model, DistributedDataParallel) and not last
    with cast("DistributedDataParallel", state.model).no_sync() if waits else nullcontext():
        output, loss = state.compiled(forward_losses, calls_model=True)(state, batch.images, batch.targets)
        total = loss.total
        if adversary:
            generator = _generator_loss(state, adversary, output)
            if adaptive_weight is None:
                adaptive_weight = adversary.adaptive_weight(
                    _last_layer_gradients(state.tokenizer, loss, generator)
                )
            total = total + adversary.config.weight * adaptive_weight * generator
            losses = {"generator": generator, "adaptive_weight": adaptive_weight}
        (total * share).backward()
    if adversary and output.reconstruction is not None:
        with state.autocast():
            losses["discriminator"] = state.compiled(adversary.discriminator_loss)(
                batch.images, output.reconstruction.float()
            )
        (losses["discriminator"] * share).backward()
    losses |= {name: term for name, term in loss._asdict().items() if term is not None} | {"loss": total}
    del losses["total"]
    return _Done(
        {name: term.detach() for name, term in losses.items()},
        *map(_detached, (output.pixel, output.semantic)),
    )


def forward_losses(
    state: TrainState, images: Float[Tensor, "B 3 S S"], targets: TeacherTargets
) -> tuple[TokenizerOutput, TokenizerLoss]:
    """Run the streams that train, and return what they give and their loss, all but the GAN's."""
    with state.autocast():
        output = cast("TokenizerOutput", state.model(images, **state.streams._asdict()))
        loss = tokenizer_loss(
            output,
            images,
            targets,
            state.settings.losses,
            stage=state.settings.stage,
            perceptual=state.perceptual,
        )
    return output, loss


def _generator_loss(state: TrainState, adversary: Adversary, output: TokenizerOutput) -> Float[Tensor, ""]:
    assert output.reconstruction is not None, "a GAN trains the pixel stream"
    with state.autocast():
        return state.compiled(adversary.generator_loss)(output.reconstruction.float())


def _last_layer_gradients(
    tokenizer: DualTokenizer, loss: TokenizerLoss, generator: Float[Tensor, ""]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the picture loss, its parts unweighted, and of the generator's at the decoder's last layer."""
    picture = torch.stack([term for term in (loss.reconstruction, loss.perceptual) if term is not None]).sum()
    weight = tokenizer.decoder.conv_out.weight
    first, second = (torch.autograd.grad(term, weight, retain_graph=True)[0] for term in (picture, generator))
    return first, second


def _adaptive_weight_ahead(state: TrainState, adversary: Adversary, batches: Sequence[_Batch]) -> Tensor:
    """Return the adaptive weight of a batch in parts: a ratio of norms, which no mean of the parts' ratios gives.

    It costs one more forward pass, without a graph but for the decoder's last layer.
    """
    tokenizer, sums = state.tokenizer, None
    last = tokenizer.decoder.conv_out
    handle = last.register_forward_hook(_with_graph)
    try:
        for batch in batches:
            with torch.no_grad(), state.autocast():
                output = tokenizer(batch.images, pixel=True, semantic=False)
            with state.autocast():
                loss = tokenizer_loss(
                    output, batch.images, batch.targets, state.settings.losses, perceptual=state.perceptual
                )
            gradients = _last_layer_gradients(tokenizer, loss, _generator_loss(state, adversary, output))
            sums = gradients if sums is None else (sums[0] + gradients[0], sums[1] + gradients[1])
    finally:
        handle.remove()
    assert sums is not None
    return adversary.adaptive_weight((sums[0] / len(batches), sums[1] / len(batches)))


def _with_graph(layer: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> Tensor:
    assert isinstance(layer, nn.Conv2d)
    with torch.enable_grad():
        return F.conv2d(inputs[0], layer.weight, layer.bias, padding=layer.padding)


def _metrics(figures: dict[str, Tensor], rate: float) -> TrainMetrics:
    """Bring a step's figures off the device, all at once."""
    values: dict[str, Any] = dict.fromkeys(TrainMetrics._fields)
    values |= zip(figures, torch.stack(list(figures.values())).tolist(), strict=True)
    return TrainMetrics(**values | {"learning_rate": rate})


def _check_finite(metrics: TrainMetrics, step: int) -> None:
    # A norm that is not finite is so on every rank, the gradient being shared: all raise, and none waits for another.
    if not all(map(math.isfinite, metrics.present().values())):
        raise FloatingPointError(
            f"step {step} has loss {metrics.loss} and gradient norm {metrics.gradient_norm}: lower train.learning_rate"
        )


def _update_codebooks(state: TrainState, done: Sequence[_Done]) -> None:
    """Move the codebooks of the streams that train, once, by all of the step's tokens."""
    tokenizer = state.tokenizer
    # Seeded by the step, so that restarts agree on all ranks and a resumed run needs no generator's state.
    generator = torch.Generator().manual_seed((state.settings.seed << 32) + state.step)
    if done[0].pixel is not None:
        tokenizer.quantize_pixel.update([one.pixel for one in done if one.pixel is not None], generator)
    if done[0].semantic is not None and not (done[0].pixel is not None and tokenizer.config.shared_codebook):
        tokenizer.quantize_semantic.update(
            [one.semantic for one in done if one.semantic is not None], generator
        )


def _detached(quantized: Quantized | None) -> Quantized | None:
    return None if quantized is None else Quantized(*(tensor.detach() for tensor in quantized))
