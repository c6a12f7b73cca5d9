"""Our own SigLIP vision tower (arXiv 2303.15343), built by timm.

It has patches, pre-norm blocks, a norm and an attention pool. Parameters have the names that timm's
vit_*_siglip_* models give them, so the trunk of any open_clip SigLIP model loads.
"""

import re

from dualtoken.model.config.base import validated
from dualtoken.model.config.tokenizer import TowerConfig
from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from timm.models import is_model, register_model
    from timm.models.vision_transformer import VisionTransformer

_NAME = re.compile(
    r"dualtoken_vit_p(?P<patch_size>\d+)_(?P<image_size>\d+)_d(?P<depth>\d+)_w(?P<width>\d+)"
    r"_h(?P<num_heads>\d+)_m(?P<mlp_width>\d+)(?P<gelu>_gelu)?"
)
"""Names of `tower_name`."""


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
        mlp_ratio=timm_mlp_ratio(config.mlp_width, config.width),
        class_token=False,
        global_pool="map",
        fc_norm=False,
        num_classes=0,
        act_layer=config.activation,
    )


def timm_mlp_ratio(mlp_width: int, width: int) -> float:
    """Return the ratio that makes timm's MLP `mlp_width` channels wide in a block of `width`.

    timm truncates their product, as open_clip does in its text towers: the half keeps rounding from losing a
    channel.
    """
    return (mlp_width + 0.5) / width


def tower_name(config: TowerConfig, image_size: int) -> str:
    """Return a timm model name with the tower's whole shape, such as dualtoken_vit_p8_64_d6_w96_h3_m384."""
    name = (
        f"dualtoken_vit_p{config.patch_size}_{image_size}_d{config.depth}_w{config.width}"
        f"_h{config.num_heads}_m{config.mlp_width}"
    )
    if config.activation == "gelu":
        name += "_gelu"
    return name


def config_of_name(name: str) -> TowerConfig | None:
    """Return the shape that a name of `tower_name` describes, or None for any other name.

    Raises ValueError for a shape that no tower has.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    values: dict[str, object] = {}
    for field in ("patch_size", "width", "depth", "num_heads", "mlp_width"):
        values[field] = int(match[field])
    values["activation"] = "gelu" if match["gelu"] else "gelu_tanh"
    return validated(TowerConfig, values, name)


def register_tower(name: str) -> bool:
    """Make timm, and so open_clip, build the tower that a name of `tower_name` describes.

    Return whether it is such a name; any other changes nothing.
    """
    config = config_of_name(name)
    if config is None:
        return False
    if is_model(name):
        return True
    match = _NAME.fullmatch(name)
    assert match is not None
    image_size = int(match["image_size"])

    def entry(pretrained: bool = False, **_options: object) -> VisionTransformer:
        assert not pretrained, f"{name} has no hub weights"
        return build_tower(config, image_size)

    # timm registers a model under its function's name.
    entry.__name__ = name
    register_model(entry)
    return True
