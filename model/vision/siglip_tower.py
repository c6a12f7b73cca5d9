"""Our own SigLIP vision tower (arXiv 2303.15343), built by timm: patches, pre-norm blocks, norm, attention pool.

Parameters have the names that timm's vit_*_siglip_* models give them, so the trunk of any open_clip SigLIP model loads.
"""

import re

from dualtoken.model.config.tokenizer import TowerConfig
from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from timm.models import is_model, register_model
    from timm.models.vision_transformer import VisionTransformer

_NAME = re.compile(r"dualtoken_vit_p(\d+)_(\d+)_d(\d+)_w(\d+)_h(\d+)_m(\d+)(_gelu)?")


def build_tower(config: TowerConfig, image_size: int) -> VisionTransformer:
    """Return a tower with fresh weights; its output is the attention pool's, one vector per image.

    Where patches do not divide the image, the last pixels at the right and bottom are not seen.
    """
    return VisionTransformer(
        img_size=image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        # timm truncates width * mlp_ratio; the half keeps rounding from losing a channel.
        mlp_ratio=(config.mlp_width + 0.5) / config.width,
        class_token=False,
        global_pool="map",
        fc_norm=False,
        num_classes=0,
        act_layer=config.activation,
    )


def tower_name(config: TowerConfig, image_size: int) -> str:
    """Return a timm model name that says the tower's whole shape, such as dualtoken_vit_p8_64_d6_w96_h3_m384."""
    shape = f"p{config.patch_size}_{image_size}_d{config.depth}_w{config.width}_h{config.num_heads}_m{config.mlp_width}"
    return f"dualtoken_vit_{shape}{'' if config.activation == 'gelu_tanh' else '_gelu'}"


def register_tower(name: str) -> bool:
    """Make timm, and so open_clip, build the tower that a name of `tower_name` says; tell whether it is such a name."""
    if (match := _NAME.fullmatch(name)) is None:
        return False
    if not is_model(name):
        patch_size, image_size, depth, width, num_heads, mlp_width = map(int, match.groups()[:6])
        config = TowerConfig(
            patch_size=patch_size, width=width, depth=depth, num_heads=num_heads, mlp_width=mlp_width,
            activation="gelu" if match[7] else "gelu_tanh",
        )  # fmt: skip

        def entry(pretrained: bool = False, **_settings: object) -> VisionTransformer:
            assert not pretrained, f"{name} has no hub weights"
            return build_tower(config, image_size)

        entry.__name__ = name
        register_model(entry)
    return True
