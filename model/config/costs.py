"""Costs of the networks, counted from their shapes: operations, numbers moved, weights. Imports no torch.

A multiplication and an addition are two operations, and only those of products, convolutions, attention and
code searches count, as in `torch.utils.flop_counter`, with which a test compares them. Numbers moved are what
each layer reads and writes of activations, where nothing is fused but attention.

N tokens, W channels, P positions of a grid, S pixels a side.
"""

from typing import NamedTuple

from dualtoken.model.config.quantizer import (
    AnyQuantizerConfig,
    QuantizerConfig,
    ScalarQuantizerConfig,
    SplitQuantizerConfig,
)
from dualtoken.model.config.tokenizer import DecoderConfig, TokenizerConfig, TowerConfig
from dualtoken.model.config.transformer_decoder import TransformerDecoderConfig

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of VGG16's convolutions, by resolution; each next one is half as wide (arXiv 1409.1556, D)."""


class Cost(NamedTuple):
    """Cost of a part, for one image."""

    flop: int = 0
    """Floating-point operations."""
    moved: int = 0
    """Numbers of activations read and written."""
    weights: int = 0
    """Numbers of weights."""
    saved: int = 0
    """Numbers that a backward pass needs: the inputs of the layers."""
    attention: int = 0
    """Operations of attention, which are among `flop`."""
    widest: int = 0
    """Most numbers that one layer reads and writes: what a pass without gradients holds at a time."""

    def __add__(self, other: "Cost") -> "Cost":  # type: ignore[override]
        sums = Cost(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))
        return sums._replace(widest=max(self.widest, other.widest))

    def times(self, count: int) -> "Cost":
        """Return the cost of equal parts, each with its own weights."""
        return Cost(*(count * number for number in self))._replace(widest=self.widest)


def total(*parts: Cost) -> Cost:
    """Return the sum of parts."""
    summed = Cost()
    for part in parts:
        summed += part
    return summed


def linear(tokens: int, inputs: int, outputs: int) -> Cost:
    """Return the cost of a linear layer on tokens."""
    moved = tokens * (inputs + outputs)
    return Cost(2 * tokens * inputs * outputs, moved, inputs * outputs, tokens * inputs, widest=moved)


def convolution(positions: int, inputs: int, outputs: int, kernel: int, stride: int = 1) -> Cost:
    """Return the cost of a convolution that gives `positions`."""
    read = positions * stride**2 * inputs
    weights = inputs * outputs * kernel**2
    moved = read + positions * outputs
    return Cost(2 * positions * weights, moved, weights, read, widest=moved)


def attention(queries: int, keys: int, width: int) -> Cost:
    """Return the cost of fused attention; `width` is that of all heads together."""
    kept = (queries + 2 * keys) * width
    flop = 4 * queries * keys * width
    moved = kept + queries * width
    return Cost(flop, moved, 0, kept, attention=flop, widest=moved)


def pointwise(numbers: int) -> Cost:
    """Return the cost of a norm, an activation or a sum: all is read and written, and no product taken."""
    return Cost(0, 2 * numbers, 0, numbers, widest=2 * numbers)


def addition(numbers: int) -> Cost:
    """Return the cost of a sum, which no backward pass needs anything of."""
    return pointwise(numbers)._replace(saved=0)


def block(tokens: int, width: int, mlp_width: int) -> Cost:
    """Return the cost of a transformer's pre-norm block."""
    return total(
        pointwise(tokens * width).times(2),  # norms
        addition(tokens * width).times(2),
        linear(tokens, width, 3 * width),
        attention(tokens, tokens, width),
        linear(tokens, width, width),
        linear(tokens, width, mlp_width),
        pointwise(tokens * mlp_width),
        linear(tokens, mlp_width, width),
    )


def patches(config: TokenizerConfig) -> Cost:
    """Return the cost of a tower's first layer."""
    tokens = config.grid_size**2
    patch = 3 * config.tower.patch_size**2
    return linear(tokens, patch, config.tower.width)


def blocks(config: TokenizerConfig, count: int) -> Cost:
    """Return the cost of some of a tower's blocks."""
    tower = shaped_tower(config)
    return block(config.grid_size**2, tower.width, tower.mlp_width).times(count)


def pool(config: TokenizerConfig) -> Cost:
    """Return the cost of a tower's last norm and attention pool."""
    tower = shaped_tower(config)
    tokens, width = config.grid_size**2, tower.width
    return total(
        pointwise(tokens * width),
        linear(1, width, width),
        linear(tokens, width, 2 * width),
        attention(1, tokens, width),
        linear(1, width, width),
        linear(1, width, tower.mlp_width),
        linear(1, tower.mlp_width, width),
    )


def shaped_tower(config: TokenizerConfig) -> TowerConfig:
    """Return the shape of a tower; raises ValueError for one that is named, whose layers are not ours."""
    if not isinstance(config.tower, TowerConfig):
        raise ValueError(f"tower.model={config.tower.model} has layers that are not counted")  # noqa: TRY004
    return config.tower


def projection(tokens: int, inputs: int, outputs: int) -> Cost:
    """Return the cost of a change of width (`tokenizer/projection.py`)."""
    wide = max(inputs, outputs)
    return total(
        pointwise(tokens * inputs).times(2),
        linear(tokens, inputs, 3 * wide),
        attention(tokens, tokens, wide),
        linear(tokens, outputs, outputs),
        linear(tokens, inputs, outputs),
        pointwise(tokens * outputs).times(3),
        linear(tokens, outputs, 2 * outputs).times(2),
        pointwise(tokens * 2 * outputs),
        linear(tokens, 2 * outputs, outputs),
    )


def search(tokens: int, quantizer: AnyQuantizerConfig) -> Cost:
    """Return the cost of a code search; codebooks are no weights that learn by gradients."""
    numbers = tokens * quantizer.width
    if isinstance(quantizer, QuantizerConfig):
        sums = _kept_sums(quantizer)
        return Cost(2 * tokens * quantizer.num_codes * quantizer.width * sums, 2 * numbers, 0, numbers)
    if isinstance(quantizer, SplitQuantizerConfig):
        return Cost(2 * tokens * quantizer.num_codes * quantizer.width, 2 * numbers, 0, numbers)
    assert isinstance(quantizer, ScalarQuantizerConfig)
    return Cost(0, 2 * numbers, 0, numbers)


def _kept_sums(quantizer: QuantizerConfig) -> int:
    """Return the sums of codes that are searched for, over all depths: one at first, a beam after."""
    searched = 0
    kept = 1
    for _ in range(quantizer.depth):
        searched += kept
        kept = min(quantizer.beam, kept * min(quantizer.beam, quantizer.num_codes))
    return searched


def residual_block(positions: int, inputs: int, outputs: int, first_kernel: int = 3) -> Cost:
    """Return the cost of a residual block of convolutions."""
    skip = Cost() if inputs == outputs else convolution(positions, inputs, outputs, 1)
    return total(
        pointwise(positions * inputs).times(2),  # norm and activation
        convolution(positions, inputs, outputs, first_kernel),
        pointwise(positions * outputs).times(2),
        addition(positions * outputs),
        convolution(positions, outputs, outputs, 3),
        skip,
    )


def attention_block(positions: int, channels: int) -> Cost:
    """Return the cost of one head of attention over a grid."""
    return total(
        pointwise(positions * channels),
        addition(positions * channels),
        convolution(positions, channels, channels, 1).times(4),
        attention(positions, positions, channels),
    )


def decoder(config: TokenizerConfig) -> Cost:
    """Return the cost of the decoder, with what brings tokens to its width."""
    shape = config.decoder
    if isinstance(shape, TransformerDecoderConfig):
        return _transformer_decoder(shape, config.tower.width)
    return _convolutional_decoder(shape, config.tower.width)


def _transformer_decoder(shape: TransformerDecoderConfig, in_width: int) -> Cost:
    tokens = shape.latent_size**2
    patch = shape.patch_channels * shape.patch_size**2
    return total(
        linear(tokens, in_width, shape.width),
        block(tokens, shape.width, shape.mlp_width).times(shape.depth),
        pointwise(tokens * shape.width),
        linear(tokens, shape.width, patch),
        last_layer(shape),
    )


def _convolutional_decoder(shape: DecoderConfig, in_width: int) -> Cost:
    channels = [shape.width * multiplier for multiplier in shape.multipliers]
    lowest = channels[-1]
    positions = shape.latent_size**2
    parts = [
        residual_block(positions, in_width, shape.latent_width, first_kernel=1),
        convolution(positions, shape.latent_width, lowest, 3),
        residual_block(positions, lowest, lowest).times(2),
        attention_block(positions, lowest),
    ]
    inputs = lowest
    for level in reversed(range(len(channels))):
        for _ in range(shape.num_res_blocks + 1):
            parts.append(residual_block(positions, inputs, channels[level]))
            inputs = channels[level]
            if level in shape.attends:
                parts.append(attention_block(positions, inputs))
        if level:
            # Four convolutions of 2 by 2 on the small grid (`tokenizer/upsample.py`).
            parts.append(convolution(positions, inputs, inputs, 2).times(4)._replace(weights=9 * inputs**2))
            positions *= 4
    return total(*parts, pointwise(positions * inputs).times(2), last_layer(shape))


def last_layer(shape: DecoderConfig | TransformerDecoderConfig) -> Cost:
    """Return the cost of the decoder's last layer, whose gradients weigh a GAN."""
    inputs = (
        shape.patch_channels
        if isinstance(shape, TransformerDecoderConfig)
        else (shape.width * shape.multipliers[0])
    )
    return convolution(shape.image_size**2, inputs, 3, 3)


def vgg(image_size: int) -> Cost:
    """Return the cost of one image's features for LPIPS."""
    parts: list[Cost] = []
    inputs = 3
    side = image_size
    for level in VGG16:
        for outputs in level:
            parts += [convolution(side**2, inputs, outputs, 3), pointwise(side**2 * outputs)]
            inputs = outputs
        side //= 2
    return total(*parts)


def discriminator(image_size: int, width: int) -> Cost:
    """Return the cost of the patch discriminator on one image."""
    side = _half(image_size)
    parts = [convolution(side**2, 3, width, 3, stride=2), pointwise(side**2 * width)]
    for inputs, outputs, stride in ((1, 2, 2), (2, 4, 2), (4, 8, 1)):
        parts.append(pointwise(side**2 * inputs * width).times(2))
        if stride == 2:
            side = _half(side)
        parts.append(convolution(side**2, inputs * width, outputs * width, 3, stride=stride))
        parts.append(convolution(side**2, inputs * width, outputs * width, 1))
        parts.append(pointwise(side**2 * outputs * width))
    return total(*parts, convolution(side**2, 8 * width, 1, 3))


def discriminator_input(image_size: int, width: int) -> Cost:
    """Return the cost of the discriminator's first layer alone."""
    return convolution(_half(image_size) ** 2, 3, width, 3, stride=2)


def _half(side: int) -> int:
    """Return the side after a convolution of 3 by 3 with a stride of 2 and a padding of 1."""
    return (side + 1) // 2
