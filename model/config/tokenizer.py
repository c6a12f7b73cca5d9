"""Shapes of the networks, as frozen pydantic models; imports neither torch nor ray.

Sources: the DualToken paper (arXiv 2503.14324) and its released configuration files.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from dualtoken.model.config.base import (
    Config,
    PositiveInt,
    in_fingerprint_unless_default,
    require_divisible_width,
)
from dualtoken.model.config.open_clip import Channels, Statistics, input_statistics, tower_shape
from dualtoken.model.config.quantizer import AnyQuantizerConfig
from dualtoken.model.config.transformer_decoder import TransformerDecoderConfig


class TowerConfig(Config):
    """A SigLIP-style vision transformer: no class token, attention-pool head (arXiv 2303.15343)."""

    patch_size: PositiveInt
    """Side of a patch, pixels."""
    width: PositiveInt
    """Channels of a token."""
    depth: Annotated[int, Field(ge=2)]
    """Number of blocks."""
    num_heads: PositiveInt
    """Number of attention heads of a block."""
    mlp_width: PositiveInt
    """Channels inside a block's MLP (4,304 in So400m)."""
    activation: Literal["gelu_tanh", "gelu"] = "gelu_tanh"
    """Activation of the MLPs. SigLIP was trained with the tanh approximation, which timm replaces by the
    exact function in some of its models (So400m/14, L/16-256)."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "TowerConfig":
        require_divisible_width(self.width, self.num_heads)
        return self


class NamedTower(Config):
    """The image tower of a model that open_clip knows, at the tokenizer's image size."""

    model: str
    """Name of the model, such as ViT-SO400M-14-SigLIP2-378."""
    prefix: Literal["learned", "tower"] = "learned"
    """Source of the class token in the blocks behind the semantic codes, where the tower has one. `learned`
    is a learned vector, so that codes alone give the embedding; `tower` is the image's own class token, which
    codes do not hold."""
    mean: Channels | None = None
    """Mean of the images, 0 to 1, that the tower's weights expect; by default that of the model's usual
    weights."""
    std: Channels | None = None
    """Standard deviation of these images, likewise."""

    @field_validator("model")
    @classmethod
    def _can_be_tapped(cls, model: str) -> str:
        tower_shape(model)
        return model

    @property
    def patch_size(self) -> int:
        """Side of a patch, pixels."""
        return tower_shape(self.model).patch_size

    @property
    def width(self) -> int:
        """Channels of a token."""
        return tower_shape(self.model).width

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return tower_shape(self.model).depth

    @property
    def statistics(self) -> Statistics:
        """Mean and standard deviation of the images that the tower expects."""
        mean, std = input_statistics(self.model)
        return self.mean or mean, self.std or std


def _tower_kind(value: Any) -> str:  # noqa: ANN401  (whatever a recipe holds)
    """Return the tag of a tower in `AnyTower`: one with a `model` is named, any other describes its shape."""
    if isinstance(value, NamedTower):
        return "NamedTower"
    if isinstance(value, dict) and "model" in value:
        return "NamedTower"
    return "TowerConfig"


AnyTower = Annotated[
    Annotated[TowerConfig, Tag("TowerConfig")] | Annotated[NamedTower, Tag("NamedTower")],
    Discriminator(_tower_kind),
]


def default_pixel_block(depth: int) -> int:
    """Return the paper's choice: the last block of the first quarter, but not the first block.

    It is 6 of 27 and 24 blocks, 3 of 12, 8 of 32.
    """
    return min(max(2, depth // 4), depth - 1)


class TextConfig(Config):
    """The text transformer of a teacher that a recipe trains itself."""

    context_length: Annotated[int, Field(ge=4, le=256)] = 32
    """Number of tokens; longer captions are cut."""
    width: PositiveInt = 128
    """Channels of a token."""
    depth: PositiveInt = 2
    """Number of blocks."""
    num_heads: PositiveInt = 4
    """Number of attention heads of a block."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "TextConfig":
        require_divisible_width(self.width, self.num_heads)
        return self


class ShortcutConfig(Config):
    """Adds an earlier block's projected tokens to the pixel path; in the released code, not in the paper."""

    block: PositiveInt = 4
    """Block that the tokens come from; 1 is the first."""
    weight: float = 0.6
    """Factor of these tokens."""


class DecoderConfig(Config):
    """The convolutional decoder of RQ-VAE and VQGAN (arXiv 2012.09841)."""

    latent_size: PositiveInt = 24
    """Side of the grid the decoder starts from; tokens are resized to it (27 to 24 in the 384-pixel
    model)."""
    latent_width: PositiveInt = 1024
    """Channels of that grid."""
    width: PositiveInt = 128
    """Channels that the multipliers multiply: full resolution has `width * multipliers[0]`."""
    multipliers: tuple[PositiveInt, ...] = (1, 1, 4, 4, 8)
    """Channels of each level over `width`, highest resolution first; each further level halves the side."""
    num_res_blocks: PositiveInt = 2
    """Residual blocks per level, less one."""
    norm_groups: PositiveInt = 32
    """Groups of each GroupNorm."""
    attention_levels: tuple[int, ...] | None = in_fingerprint_unless_default(
        default=None, exclude_if=lambda levels: levels is None
    )
    """Levels with attention, 0 the highest resolution, as places in `multipliers`; by default the lowest
    resolution alone."""

    @property
    def image_size(self) -> int:
        """Side of the decoded image, pixels."""
        return self.latent_size * 2 ** (len(self.multipliers) - 1)

    @property
    def attends(self) -> tuple[int, ...]:
        """Levels with attention."""
        if self.attention_levels is None:
            return (len(self.multipliers) - 1,)
        return self.attention_levels

    @model_validator(mode="after")
    def _attention_levels_are_levels(self) -> "DecoderConfig":
        levels = sorted(set(self.attends))
        if list(self.attends) != levels or not set(levels) <= set(range(len(self.multipliers))):
            raise ValueError(
                f"attention_levels={self.attention_levels}: name places in multipliers, ascending from 0"
            )
        return self

    @model_validator(mode="after")
    def _groups_divide_channels(self) -> "DecoderConfig":
        _require_whole_groups(self.norm_groups, [self.latent_width], "latent_width")
        _require_whole_groups(self.norm_groups, _level_widths(self), "width")
        return self


class ConvEncoderConfig(Config):
    """VQGAN's convolutional encoder (arXiv 2012.09841), for a pixel stream that skips the tower."""

    width: PositiveInt = 128
    """Channels that the multipliers multiply: full resolution has `width * multipliers[0]`."""
    multipliers: tuple[PositiveInt, ...] = (1, 1, 2, 2, 4)
    """Channels of each level over `width`, highest resolution first; each further level halves the side."""
    num_res_blocks: PositiveInt = 2
    """Residual blocks per level."""
    norm_groups: PositiveInt = 32
    """Groups of each GroupNorm."""

    @model_validator(mode="after")
    def _groups_divide_channels(self) -> "ConvEncoderConfig":
        _require_whole_groups(self.norm_groups, _level_widths(self), "width")
        return self


def _level_widths(config: DecoderConfig | ConvEncoderConfig) -> list[int]:
    """Return the channels of each level, highest resolution first."""
    return [config.width * multiplier for multiplier in config.multipliers]


def _require_whole_groups(norm_groups: int, channels: Sequence[int], key: str) -> None:
    """Raise ValueError unless GroupNorm's groups share channels evenly, which `key` decides."""
    for count in channels:
        if count % norm_groups:
            raise ValueError(
                f"norm_groups={norm_groups} does not divide {count} channels: change {key} or norm_groups"
            )


def _decoder_kind(value: Any) -> str:  # noqa: ANN401  (whatever a recipe holds)
    """Return the tag of a decoder in `AnyDecoder`: without a `kind`, it is convolutional."""
    if isinstance(value, TransformerDecoderConfig):
        return "TransformerDecoderConfig"
    if isinstance(value, dict) and value.get("kind") == "transformer":
        return "TransformerDecoderConfig"
    return "DecoderConfig"


AnyDecoder = Annotated[
    Annotated[DecoderConfig, Tag("DecoderConfig")]
    | Annotated[TransformerDecoderConfig, Tag("TransformerDecoderConfig")],
    Discriminator(_decoder_kind),
]


class TokenizerConfig(Config):
    """The dual tokenizer: one tower, two taps, two codebooks, one decoder.

    For comparisons it may have fewer or more of these.
    """

    image_size: PositiveInt
    """Side of the square input, pixels; pixels at the right and bottom that no patch covers are not seen."""
    tower: AnyTower
    """Shape of our own, or `{model: NAME}` of an open_clip model."""
    pixel_block: PositiveInt = Field(
        default_factory=lambda values: default_pixel_block(values["tower"].depth)
    )
    """Block (1 is the first) whose output feeds the pixel codebook; by default the first quarter's last, as
    in the paper."""
    semantic_block: PositiveInt = Field(default_factory=lambda values: values["tower"].depth - 1)
    """Block whose output feeds the semantic codebook; by default the last but one, as in the paper."""
    shortcut: ShortcutConfig | None = None
    """Second tap of the pixel stream."""
    pixel: AnyQuantizerConfig
    """Quantiser of the pixel stream."""
    semantic: AnyQuantizerConfig
    """Quantiser of the semantic stream."""
    shared_codebook: bool = False
    """Use one codebook for both streams, so that their codes are the same: not DualToken, but a comparison
    with it."""
    pixel_encoder: ConvEncoderConfig | None = None
    """Encoder that reads the pixel stream from the image itself, in place of `pixel_block`: a comparison
    too."""
    decoder: AnyDecoder
    """Decoder of the pixel stream: the released code's convolutions, or `{kind: transformer}`."""
    causal_pixel: bool = True
    """Let a pixel token, when it is widened after quantisation, see only those before it, as in the released
    code; off is UniTok's way."""
    causal_semantic: bool = True
    """Let a semantic token see only those before it, likewise."""

    @property
    def grid_size(self) -> int:
        """Tokens along one side."""
        return self.image_size // self.tower.patch_size

    @model_validator(mode="after")
    def _blocks_in_order(self) -> "TokenizerConfig":
        if not self.pixel_block <= self.semantic_block < self.tower.depth:
            raise ValueError(
                f"pixel_block={self.pixel_block}, semantic_block={self.semantic_block}, "
                f"tower.depth={self.tower.depth}: "
                "set pixel_block <= semantic_block < tower.depth"
            )
        if self.shortcut and self.shortcut.block > self.pixel_block:
            raise ValueError(
                f"shortcut.block={self.shortcut.block} is after pixel_block={self.pixel_block}: "
                "set it to at most that"
            )
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> "TokenizerConfig":
        if self.image_size < self.tower.patch_size:
            raise ValueError(
                f"image_size={self.image_size} is under tower.patch_size={self.tower.patch_size}: raise it"
            )
        if self.decoder.image_size != self.image_size:
            raise ValueError(
                f"decoder.latent_size={self.decoder.latent_size} with {_enlargement(self.decoder)} "
                f"decodes {self.decoder.image_size} pixels, "
                f"image_size={self.image_size}: make them equal"
            )
        return self

    @model_validator(mode="after")
    def _widths_fit(self) -> "TokenizerConfig":
        for name, width in (("pixel", self.pixel.width), ("semantic", self.semantic.width)):
            if max(width, self.tower.width) % min(width, self.tower.width):
                raise ValueError(
                    f"{name}.width={width}, tower.width={self.tower.width}: make one a multiple of the other"
                )
        if isinstance(self.decoder, DecoderConfig) and self.tower.width % self.decoder.norm_groups:
            raise ValueError(
                f"decoder.norm_groups={self.decoder.norm_groups} does not divide "
                f"tower.width={self.tower.width}: change norm_groups"
            )
        return self

    @model_validator(mode="after")
    def _streams_share_a_shape(self) -> "TokenizerConfig":
        if self.pixel.depth != self.semantic.depth:
            raise ValueError(
                f"pixel.depth={self.pixel.depth}, semantic.depth={self.semantic.depth}: make them equal"
            )
        return self

    @model_validator(mode="after")
    def _one_codebook_has_one_source(self) -> "TokenizerConfig":
        if not self.shared_codebook:
            return self
        if self.pixel != self.semantic or self.pixel_block != self.semantic_block:
            raise ValueError(
                "shared_codebook=true: make pixel equal to semantic, and pixel_block to semantic_block"
            )
        if self.shortcut or self.pixel_encoder:
            raise ValueError(
                "shared_codebook=true has one source of tokens: set shortcut and pixel_encoder to null"
            )
        return self

    @model_validator(mode="after")
    def _pixel_encoder_fits(self) -> "TokenizerConfig":
        if self.pixel_encoder is None:
            return self
        if self.shortcut:
            raise ValueError("pixel_encoder takes nothing from the tower: set shortcut to null")
        num_levels = len(self.pixel_encoder.multipliers)
        divisor = 2 ** (num_levels - 1)
        if self.grid_size * divisor != self.image_size:
            raise ValueError(
                f"pixel_encoder with {num_levels} multipliers divides image_size={self.image_size} "
                f"by {divisor}, the tower makes {self.grid_size} tokens of it: make the grids equal"
            )
        return self


def _enlargement(decoder: DecoderConfig | TransformerDecoderConfig) -> str:
    """Say what makes an image of the latent grid, for an error."""
    if isinstance(decoder, TransformerDecoderConfig):
        return f"patch_size={decoder.patch_size}"
    return f"{len(decoder.multipliers)} multipliers"
