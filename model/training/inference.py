"""What a tokenizer under training gives, without a step: for its reconstructions, codes and held-out losses.

B images of S by S pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dualtoken.model.metrics import MAX_PSNR
from dualtoken.model.metrics.reconstruction import psnr_per_image
from dualtoken.model.teacher.targets import TeacherTargets
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.training.losses import tokenizer_loss
from dualtoken.model.training.state import TrainState
from dualtoken.model.vision.transform import normalize, to_uint8


@contextmanager
def inference(state: TrainState) -> Iterator[DualTokenizer]:
    """Give the block the model that the steps so far make, without gradients, in the training's precision.

    It runs as it stands, without torch.compile: other batches would compile it anew. A sharded model is to be
    called by all ranks.
    """
    tokenizer = state.result
    was_training = tokenizer.training
    tokenizer.eval()
    try:
        with torch.no_grad(), state.autocast(), _uncompiled(state):
            yield tokenizer
    finally:
        tokenizer.train(was_training)


@contextmanager
def _uncompiled(state: TrainState) -> Iterator[None]:
    if not state.config.compile:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class Heldout(NamedTuple):
    """What images give that nothing is learnt from."""

    metrics: dict[str, Float[Tensor, ""]]
    """Loss, its terms, and the PSNR, dB, by name: means over the images."""
    pooled: Float[Tensor, "B W"] | None
    """Image embeddings by semantic codes, before the teacher's projection; None without that stream."""


def measure_heldout(state: TrainState, levels: UInt8[Tensor, "B 3 S S"], targets: TeacherTargets) -> Heldout:
    """Return the losses and embeddings of images that nothing is learnt from.

    The GAN's part is left out: it says how training goes, not how good a picture is.
    """
    images = normalize(levels)
    with inference(state) as tokenizer:
        output = tokenizer(images, **state.streams._asdict())
        loss = tokenizer_loss(
            output,
            images,
            targets,
            state.config.losses,
            phase=state.config.stage,
            perceptual=state.perceptual,
        )
    found = {"loss": loss.total, **loss.terms()}
    if output.reconstruction is not None:
        ratios = psnr_per_image(to_uint8(output.reconstruction), levels)
        found["psnr"] = ratios.clamp(max=MAX_PSNR).mean()
    return Heldout(found, output.pooled)
