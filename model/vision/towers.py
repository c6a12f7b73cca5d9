"""One way to build, tap and finish any vision transformer: ours, timm's SigLIP, CLIP, EVA02 and ViTamin, open_clip's native.

B images of S by S pixels, N patch tokens, C prefix tokens (class and register tokens; SigLIP has none), W channels. Blocks
count from 1. Pooled vectors are W wide: what comes before a model's own projection into its joint space with texts.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualtoken.model.config.open_clip import model_config
from dualtoken.model.config.tokenizer import NamedTower, TowerConfig
from dualtoken.model.vision.imports import vision_imports
from dualtoken.model.vision.siglip_tower import build_tower

with vision_imports():
    import timm
    from timm.layers.activations import GELU, GELUTanh
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

if TYPE_CHECKING:
    from open_clip.transformer import VisionTransformer as NativeTransformer
    from typing_extensions import TypeIs

    Tower = VisionTransformer | Eva | NativeTransformer
else:
    # open_clip is imported for towers of its own only: it takes a second, and 45 MB, that other tokenizers need not pay.
    Tower = nn.Module


class Tap(NamedTuple):
    """What a tower holds after one of its blocks."""

    tokens: Float[Tensor, "B N W"]  # of the patches, in raster order
    prefix: Float[Tensor, "B C W"]  # class and register tokens, C may be 0


def build_tower_like(config: TowerConfig | NamedTower, image_size: int) -> Tower:
    """Return a tower with fresh weights, without a projection into a joint space."""
    if isinstance(config, TowerConfig):
        return build_tower(config, image_size)
    model = model_config(config.model)
    vision = model["vision_cfg"]
    if (name := vision.get("timm_model_name")) is None:
        from open_clip.model import _build_vision_tower  # noqa: PLC0415  (see Tower)

        tower = _build_vision_tower(
            model["embed_dim"], vision | {"image_size": image_size}, model.get("quick_gelu", False)
        )
        cast("Any", tower).proj = None
    else:
        pool = {"global_pool": vision["timm_pool"]} if vision.get("timm_pool") else {}
        tower = timm.create_model(name, pretrained=False, num_classes=0, img_size=image_size, **pool)
    found = (tower_width(checked := check_tower(tower)), tower_depth(checked))
    assert found == (config.width, config.depth), (
        f"{config.model} has width and depth {found}: open_clip_names says otherwise"
    )
    return checked


def check_tower(tower: nn.Module) -> Tower:
    """Return the tower itself; raises ValueError for a kind that cannot be tapped."""
    if _is_native(tower) and tower.attn_pool is None and tower.transformer.batch_first:
        return tower
    if isinstance(tower, (VisionTransformer, Eva)):
        return tower
    raise ValueError(
        f"the image tower is {type(tower).__name__}: use a plain vision transformer, such as SigLIP, CLIP or EVA02"
    )


def tower_width(tower: Tower) -> int:
    """Return the channels of a token."""
    return cast("int", tower.transformer.width if _is_native(tower) else tower.embed_dim)


def tower_depth(tower: Tower) -> int:
    """Return the number of blocks."""
    return len(_blocks(tower))


def activation_of(tower: Tower) -> str | None:
    """Return our name of what a tower's MLPs compute, `gelu` or `gelu_tanh`; None for another one."""
    layer = getattr(getattr(_blocks(tower)[0], "mlp", None), "act", None)
    if isinstance(layer, GELUTanh) or (isinstance(layer, nn.GELU) and layer.approximate == "tanh"):
        return "gelu_tanh"
    return "gelu" if isinstance(layer, (nn.GELU, GELU)) else None


def checkpoint_gradients(tower: Tower) -> None:
    """Keep no activations inside blocks: the backward pass computes each block again, with the same results."""
    tower.set_grad_checkpointing()


def num_prefix_tokens(tower: Tower) -> int:
    """Return how many class and register tokens stand before the patches."""
    return 1 if _is_native(tower) else tower.num_prefix_tokens


def forward_taps(tower: Tower, images: Float[Tensor, "B 3 S S"], blocks: Collection[int]) -> dict[int, Tap]:
    """Return what the tower holds after some of its blocks; blocks after the last of them do not run."""
    blocks = sorted(set(blocks))
    settings: dict[str, Any] = {
        "indices": [block - 1 for block in blocks],
        "intermediates_only": True,
        "stop_early": True,
        "output_fmt": "NLC",
    }
    if _is_native(tower):
        output = cast(
            "dict[str, list[Tensor]]",
            tower.forward_intermediates(images, output_extra_tokens=True, **settings),
        )
        pairs = zip(output["image_intermediates"], output["image_intermediates_prefix"], strict=True)
    elif tower.num_prefix_tokens:
        pairs = tower.forward_intermediates(images, return_prefix_tokens=True, **settings)
    else:
        pairs = (
            (tokens, tokens[:, :0])
            for tokens in cast("list[Tensor]", tower.forward_intermediates(images, **settings))
        )
    return {block: Tap(*pair) for block, pair in zip(blocks, cast("Any", pairs), strict=True)}


def forward_from_block(
    tower: Tower, tokens: Float[Tensor, "B N W"], block: int, prefix: Float[Tensor, "B C W"] | None = None
) -> Float[Tensor, "B W"]:
    """Run what comes after a block, norm and pooling included, on tokens in the place of that block's output."""
    hidden = tokens if prefix is None else torch.cat((prefix, tokens), dim=1)
    positions = _rotary_positions(tower)
    for index, layer in enumerate(_blocks(tower)[block:], start=block):
        hidden = layer(hidden, rope=positions[index]) if positions else layer(hidden)
    if _is_native(tower):
        return tower._pool(hidden)[0]  # noqa: SLF001  (the only place that knows all its ways to pool)
    return tower.forward_head(tower.norm(hidden), pre_logits=True)


def encoder_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a tower's weights less its projection into a joint space, which a tokenizer's tower lacks."""
    return {name: tensor for name, tensor in state.items() if name != "proj" and not name.startswith("head.")}


def fill_computed_buffers(
    tower: Tower, config: TowerConfig | NamedTower, image_size: int, device: str | torch.device
) -> None:
    """Compute what a tower built on `meta` still lacks once its weights are loaded: buffers that no file holds."""
    missing = [name for name, buffer in tower.named_buffers() if buffer.is_meta]
    if not missing:
        return
    computed = dict(build_tower_like(config, image_size).named_buffers())
    for name in missing:
        module, _, last = name.rpartition(".")
        setattr(tower.get_submodule(module), last, computed[name].to(device))


def _is_native(tower: nn.Module) -> "TypeIs[NativeTransformer]":
    return (type(tower).__module__, type(tower).__name__) == ("open_clip.transformer", "VisionTransformer")


def _blocks(tower: Tower) -> Any:  # noqa: ANN401  (a Sequential or a ModuleList, sliced and counted alike)
    return tower.transformer.resblocks if _is_native(tower) else tower.blocks


def _rotary_positions(tower: Tower) -> Sequence[Tensor]:
    """Return each block's rotary positions; nothing for a tower without."""
    if not isinstance(tower, Eva) or tower.rope is None:
        return ()
    rope = cast("Any", tower.rope)
    # Rotary modules without a grid of their own are told it.
    positions = (
        rope.get_embed() if hasattr(rope, "feat_shape") else rope.get_embed(shape=tower.patch_embed.grid_size)
    )
    return list(positions) if tower.rope_mixed else [positions] * len(tower.blocks)


def tower_differs(tower: nn.Module, config: TowerConfig | NamedTower, image_size: int) -> list[str]:
    """Return the names of weights in which a tower, whatever it projects, is not one of a configuration."""
    with torch.device("meta"):
        expected = build_tower_like(config, image_size).state_dict()
    return names_that_differ(expected, encoder_weights(tower.state_dict()))


def names_that_differ(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    """Return the names at which two state dicts differ, in presence or shape."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in (ours, theirs)]
    return sorted(
        name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name)
    )
