"""Losses of reconstructions beside a GAN, and their gradients at the reconstructions.

The generator's adaptive weight needs the gradients of two losses apart. Taken at the pictures, each loss is
gone back through once, and the network once for all of them. B images of S by S pixels on this rank.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.grad import conv2d_weight

from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer, TokenizerOutput
from dualtoken.model.training.adversary import Adversary, LastLayerGradients
from dualtoken.model.training.state import TrainState


class PictureGradients(NamedTuple):
    """Losses of pictures, and their gradients at the pictures: each loss is gone back through once."""

    losses: dict[str, Tensor]
    """Losses by the names of `TrainMetrics`, before weighting."""
    total: Float[Tensor, ""]
    """Weighted sum of those losses, less the generator's."""
    weighted: Float[Tensor, "B 3 S S"]
    """Gradient of that sum."""
    unweighted: Float[Tensor, "B 3 S S"]
    """Gradient of the same losses' plain sum."""
    generator: Float[Tensor, "B 3 S S"]
    """Gradient of the generator's loss."""


def picture_gradients(
    state: TrainState, adversary: Adversary, output: TokenizerOutput, images: Float[Tensor, "B 3 S S"]
) -> PictureGradients:
    """Return the losses of a batch's reconstructions beside a GAN, with their gradients there."""
    assert output.reconstruction is not None, "a GAN trains the pixel stream"
    pictures = output.reconstruction.detach().float().requires_grad_()
    functions: list[tuple[str, float, Callable[..., Tensor]]] = [
        ("reconstruction", state.config.losses.reconstruction, F.mse_loss)
    ]
    if state.perceptual:
        distance = state.compiled(state.perceptual.distance)
        functions.append(("perceptual", state.perceptual.weight, distance))
    losses: dict[str, Tensor] = {}
    total = pictures.new_zeros(())
    weighted = torch.zeros_like(pictures)
    unweighted = torch.zeros_like(pictures)
    for name, weight, function in functions:
        with state.autocast():
            loss = function(pictures, images.float())
        (gradient,) = torch.autograd.grad(loss, pictures)
        losses[name] = loss.detach()
        unweighted += gradient
        # A weight of 0 takes a term out: 0 times what is not finite is not 0.
        if weight:
            total = total + weight * losses[name]
            weighted += weight * gradient
    with state.autocast():
        generator = state.compiled(adversary.generator_loss)(pictures)
    (generator_gradient,) = torch.autograd.grad(generator, pictures)
    losses["generator"] = generator.detach()
    return PictureGradients(losses, total, weighted, unweighted, generator_gradient)


def last_layer_gradients(
    tokenizer: DualTokenizer, output: TokenizerOutput, pictures: PictureGradients
) -> LastLayerGradients:
    """Return both gradients at the weight of the decoder's last layer, from those at its output."""
    features = output.last_features
    assert features is not None, "a GAN trains the pixel stream"
    layer = tokenizer.decoder.conv_out

    def at_weight(gradient: Tensor) -> Tensor:
        # In the precision that the layer ran in, as autograd does it.
        assert isinstance(layer.padding, tuple)
        found = conv2d_weight(
            features, layer.weight.shape, gradient.to(features.dtype), padding=layer.padding[0]
        )
        return found.to(layer.weight.dtype)

    return LastLayerGradients(picture=at_weight(pictures.unweighted), generator=at_weight(pictures.generator))


def backward_from_pictures(
    output: TokenizerOutput, picture_gradient: Float[Tensor, "B 3 S S"], other_loss: Float[Tensor, ""]
) -> None:
    """Add up the weights' gradients, in one pass, from those at the pictures and from the other losses."""
    assert output.reconstruction is not None, "a GAN trains the pixel stream"
    ends: list[Tensor] = [output.reconstruction]
    gradients: list[Tensor | None] = [picture_gradient.to(output.reconstruction.dtype)]
    if other_loss.requires_grad:  # all of its weights may be 0
        ends.append(other_loss)
        gradients.append(None)
    torch.autograd.backward(ends, gradients)
