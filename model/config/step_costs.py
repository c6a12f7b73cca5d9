"""Costs of what is done with a tokenizer, for one image: encoding, decoding, targets, a step of training.

A backward pass costs a layer twice what its forward pass does: once for the gradient of its inputs, once for
that of its weights. Attention's costs five products in place of two.
"""

from typing import NamedTuple

from dualtoken.model.config.costs import (
    Cost,
    blocks,
    decoder,
    discriminator,
    discriminator_input,
    last_layer,
    patches,
    pool,
    projection,
    search,
    shaped_tower,
    total,
    vgg,
)
from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.config.training import LpipsConfig, TrainingConfig


class StepPart(NamedTuple):
    """A part of a step of training."""

    name: str
    cost: Cost
    """Forward and backward passes; `saved` is what waits for the backward pass."""


def encoder(config: TokenizerConfig) -> Cost:
    """Return the cost of both streams' tokens; the blocks after the semantic one do not run."""
    tokens = config.grid_size**2
    width = config.tower.width
    parts = [patches(config), blocks(config, config.semantic_block)]
    if not config.shared_codebook:
        parts.append(projection(tokens, width, config.pixel.width))
    if config.shortcut:
        parts.append(projection(tokens, width, config.pixel.width))
    parts.append(projection(tokens, width, config.semantic.width))
    return total(*parts)


def searches(config: TokenizerConfig) -> Cost:
    """Return the cost of both streams' code searches, or of the one that they share."""
    tokens = config.grid_size**2
    semantic = search(tokens, config.semantic)
    if config.shared_codebook:
        return semantic
    return semantic + search(tokens, config.pixel)


def pictures(config: TokenizerConfig) -> Cost:
    """Return the cost of making pictures of pixel codes' vectors."""
    return projection(config.grid_size**2, config.pixel.width, config.tower.width) + decoder(config)


def meaning(config: TokenizerConfig) -> Cost:
    """Return the cost of the embedding of semantic codes' vectors: the rest of the tower."""
    rest = config.tower.depth - config.semantic_block
    return total(
        projection(config.grid_size**2, config.semantic.width, config.tower.width),
        blocks(config, rest),
        pool(config),
    )


def teacher(config: TokenizerConfig) -> Cost:
    """Return the cost of a pass of a teacher's image tower, which has the shape of the tokenizer's."""
    shaped_tower(config)
    return total(patches(config), blocks(config, config.tower.depth), pool(config))


def training_step(config: TokenizerConfig, train: TrainingConfig, *, online: bool) -> list[StepPart]:
    """Return the parts of a step once the GAN, if there is one, has begun; `online`: with the teacher's pass.

    Raises ValueError for what is not counted: a named tower, an encoder of pixels, another phase than 1.
    """
    shaped_tower(config)
    if config.pixel_encoder or train.stage != 1 or train.freeze_tower:
        raise ValueError("only phase 1 of a tokenizer without pixel_encoder or freeze_tower is counted")
    first = patches(config)
    trained = total(encoder(config), pictures(config), meaning(config))
    # The pictures themselves have no gradient.
    step = _both_ways(trained)._replace(flop=_both_ways(trained).flop - first.flop)
    if train.checkpoint_tower:
        tower = blocks(config, config.tower.depth)
        kept = config.grid_size**2 * config.tower.width * config.tower.depth
        step = step._replace(
            flop=step.flop + tower.flop, moved=step.moved + tower.moved, saved=step.saved - tower.saved + kept
        )
    parts = [StepPart("tokenizer", step), StepPart("code searches", searches(config)._replace(saved=0))]
    if isinstance(train.perceptual, LpipsConfig):
        features = vgg(config.image_size)
        # Of the original, of the reconstruction, and back to the reconstruction's pixels.
        parts.append(
            StepPart("LPIPS", features.times(3)._replace(weights=features.weights, saved=features.saved))
        )
    if train.gan:
        parts.append(StepPart("GAN", _gan(config, train.gan.width)))
    if online:
        parts.append(StepPart("teacher", teacher(config)._replace(saved=0)))
    return parts


def _gan(config: TokenizerConfig, width: int) -> Cost:
    judge = discriminator(config.image_size, width)
    first = discriminator_input(config.image_size, width)
    # The generator's loss goes through it and back to the pixels. The discriminator's own is of two pictures,
    # forward and back to its weights, not to pixels. Two gradients are taken at the decoder's last layer.
    flop = 8 * judge.flop - 2 * first.flop + 2 * last_layer(config.decoder).flop
    return Cost(flop, 8 * judge.moved, judge.weights, 2 * judge.saved)


def _both_ways(forward: Cost) -> Cost:
    """Return the cost of a forward and a backward pass."""
    flop = 3 * forward.flop + forward.attention // 2
    return forward._replace(flop=flop, moved=3 * forward.moved)
