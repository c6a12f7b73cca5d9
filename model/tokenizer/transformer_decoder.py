"""The transformer decoder of pixel tokens (ViT-VQGAN, arXiv 2110.04627).

B images of S by S pixels, G by G positions, N = G*G tokens, I input channels, W channels of a block.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualtoken.model.config.transformer_decoder import TransformerDecoderConfig
from dualtoken.model.vision.imports import vision_imports
from dualtoken.model.vision.siglip_tower import timm_mlp_ratio

with vision_imports():
    from timm.models.vision_transformer import Block

_POSITION_STD = 0.02
"""Standard deviation of fresh positions."""


class TransformerDecoder(nn.Module):
    """Full attention over the latent grid; each token becomes a square of pixels, smoothed at the seams."""

    def __init__(self, config: TransformerDecoderConfig, in_width: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(in_width, config.width)
        self.pos_embed = nn.Parameter(torch.empty(1, config.latent_size**2, config.width))
        nn.init.normal_(self.pos_embed, std=_POSITION_STD)
        mlp_ratio = timm_mlp_ratio(config.mlp_width, config.width)
        self.blocks = nn.Sequential()
        for _ in range(config.depth):
            block = Block(config.width, config.num_heads, mlp_ratio=mlp_ratio, qkv_bias=True)
            self.blocks.append(block)
        self.norm_out = nn.LayerNorm(config.width)
        self.patches = nn.Linear(config.width, config.patch_channels * config.patch_size**2)
        self.to_pixels = nn.PixelShuffle(config.patch_size)
        # Also what a GAN weighs its gradients at: the last layer of either decoder has this name.
        self.conv_out = nn.Conv2d(config.patch_channels, 3, 3, padding=1)

    def forward(self, latent: Float[Tensor, "B I G G"]) -> Float[Tensor, "B 3 S S"]:
        """Return images, about -1 to 1: nothing bounds them."""
        return self.conv_out(self.last_features(latent))

    def last_features(self, latent: Float[Tensor, "B I G G"]) -> Float[Tensor, "B _ S S"]:
        """Return what `conv_out`, the last layer, makes images of."""
        side = latent.shape[2]
        tokens = self.proj_in(latent.flatten(2).transpose(1, 2)) + self.pos_embed
        patches = self.patches(self.norm_out(self.blocks(tokens)))
        grid = patches.transpose(1, 2).unflatten(2, (side, side))
        return self.to_pixels(grid)
