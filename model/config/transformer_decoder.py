"""Shape of the transformer that decodes pixel tokens; imports neither torch nor ray."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dualtoken.model.config.base import Config, PositiveInt, require_divisible_width


class TransformerDecoderConfig(Config):
    """Transformer blocks over the latent grid, a square of pixels from each token, a convolution over all.

    The decoder of ViT-VQGAN (arXiv 2110.04627). On small images it gives sharper pictures than the
    convolutional one for the same time.
    """

    kind: Literal["transformer"]
    latent_size: PositiveInt
    """Side of the grid that the decoder starts from; tokens are resized to it where theirs differs."""
    patch_size: PositiveInt
    """Side of the square of pixels that a token gives."""
    width: PositiveInt = 512
    """Channels of a token."""
    depth: PositiveInt = 8
    """Number of blocks."""
    num_heads: PositiveInt = 8
    """Attention heads of a block."""
    mlp_width: PositiveInt = 2048
    """Channels inside a block's MLP."""
    patch_channels: Annotated[int, Field(ge=3)] = 3
    """Channels of a pixel before the last convolution."""

    @property
    def image_size(self) -> int:
        """Side of the decoded image, pixels."""
        return self.latent_size * self.patch_size

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "TransformerDecoderConfig":
        require_divisible_width(self.width, self.num_heads)
        return self
