"""Builds, taps and finishes any vision transformer.

It knows ours, timm's SigLIP, CLIP, EVA02 and ViTamin, and open_clip's native ones.

B images of S by S pixels, N patch tokens, C prefix tokens (class and register tokens; SigLIP has none), W
channels. Blocks count from 1. Pooled vectors are W wide: they come before a model's own projection into its
joint space with texts.
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
    # open_clip is imported for its native towers only: it takes a second, and 45 MB, that other tokenizers
    # need not pay.
    Tower = nn.Module


class Tap(NamedTuple):
    """Output of one block of a tower."""

    tokens: Float[Tensor, "B N W"]
    """Tokens of the patches, in raster order."""
    prefix: Float[Tensor, "B C W"]
    """Class and register tokens; C may be 0."""


def build_tower_like(config: TowerConfig | NamedTower, image_size: int) -> Tower:
    """Return a tower with fresh weights, without a projection into a joint space."""
    if isinstance(config, TowerConfig):
        return build_tower(config, image_size)
    if model_config(config.model)["vision_cfg"].get("timm_model_name") is None:
        tower = check_tower(_build_native(config.model, image_size))
    else:
        tower = check_tower(_build_timm(config.model, image_size))
    shape = (tower_width(tower), tower_depth(tower))
    assert shape == (config.width, config.depth), (
        f"{config.model} has width and depth {shape}: model.config.open_clip says otherwise"
    )
    return tower


def _build_native(model_name: str, image_size: int) -> nn.Module:
    """Return open_clip's own transformer, its projection taken off."""
    from open_clip.model import _build_vision_tower  # noqa: PLC0415  (see Tower)

    model = model_config(model_name)
    vision = model["vision_cfg"] | {"image_size": image_size}
    tower = _build_vision_tower(model["embed_dim"], vision, model.get("quick_gelu", False))
    cast("Any", tower).proj = None
    return tower


def _build_timm(model_name: str, image_size: int) -> nn.Module:
    """Return timm's transformer, without a classifier."""
    vision = model_config(model_name)["vision_cfg"]
    options = {}
    if vision.get("timm_pool"):
        options["global_pool"] = vision["timm_pool"]
    return timm.create_model(
        vision["timm_model_name"], pretrained=False, num_classes=0, img_size=image_size, **options
    )


def check_tower(tower: nn.Module) -> Tower:
    """Return the tower itself; raises ValueError for a kind that cannot be tapped."""
    if _is_native(tower) and tower.attn_pool is None and tower.transformer.batch_first:
        return tower
    if isinstance(tower, (VisionTransformer, Eva)):
        return tower
    raise ValueError(
        f"the image tower is {type(tower).__name__}: use a plain vision transformer, "
        "such as SigLIP, CLIP or EVA02"
    )


def tower_width(tower: Tower) -> int:
    """Return the channels of a token."""
    if _is_native(tower):
        return cast("int", tower.transformer.width)
    return cast("int", tower.embed_dim)


def tower_depth(tower: Tower) -> int:
    """Return the number of blocks."""
    return len(_blocks(tower))


def tower_blocks(tower: Tower) -> list[nn.Module]:
    """Return the transformer blocks, in their order."""
    return list(_blocks(tower))


def activation_of(tower: Tower) -> str | None:
    """Return our name of the activation in a tower's MLPs, `gelu` or `gelu_tanh`; None for another one."""
    mlp = getattr(_blocks(tower)[0], "mlp", None)
    layer = getattr(mlp, "act", None)
    if isinstance(layer, GELUTanh):
        return "gelu_tanh"
    if isinstance(layer, nn.GELU) and layer.approximate == "tanh":
        return "gelu_tanh"
    if isinstance(layer, (nn.GELU, GELU)):
        return "gelu"
    return None


def checkpoint_gradients(tower: Tower) -> None:
    """Keep no activations inside blocks: the backward pass computes each block again, with equal results."""
    tower.set_grad_checkpointing()


def num_prefix_tokens(tower: Tower) -> int:
    """Return how many class and register tokens stand before the patches."""
    if _is_native(tower):
        return 1
    return tower.num_prefix_tokens


def forward_taps(tower: Tower, images: Float[Tensor, "B 3 S S"], blocks: Collection[int]) -> dict[int, Tap]:
    """Return the outputs of some of a tower's blocks; blocks after the last of them do not run."""
    ordered_blocks = sorted(set(blocks))
    options: dict[str, Any] = {
        "indices": [block - 1 for block in ordered_blocks],
        "intermediates_only": True,
        "stop_early": True,
        "output_fmt": "NLC",
    }
    taps: list[Tap] = []
    if _is_native(tower):
        outputs = cast("Any", tower.forward_intermediates(images, output_extra_tokens=True, **options))
        for tokens, prefix in zip(
            outputs["image_intermediates"], outputs["image_intermediates_prefix"], strict=True
        ):
            taps.append(Tap(tokens, prefix))
    elif tower.num_prefix_tokens:
        outputs = cast("Any", tower.forward_intermediates(images, return_prefix_tokens=True, **options))
        for tokens, prefix in outputs:
            taps.append(Tap(tokens, prefix))
    else:
        outputs = cast("Any", tower.forward_intermediates(images, **options))
        taps += [Tap(tokens, prefix=tokens[:, :0]) for tokens in outputs]
    return dict(zip(ordered_blocks, taps, strict=True))


def forward_from_block(
    tower: Tower, tokens: Float[Tensor, "B N W"], block: int, prefix: Float[Tensor, "B C W"] | None = None
) -> Float[Tensor, "B W"]:
    """Run all that comes after a block, norm and pooling too, on tokens in the place of its output."""
    hidden = tokens
    if prefix is not None:
        hidden = torch.cat((prefix, tokens), dim=1)
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
    """Compute the buffers that no file holds, for a tower built on `meta` with its weights loaded."""
    missing = [name for name, buffer in tower.named_buffers() if buffer.is_meta]
    if not missing:
        return
    computed = dict(build_tower_like(config, image_size).named_buffers())
    for name in missing:
        module, _, last = name.rpartition(".")
        setattr(tower.get_submodule(module), last, computed[name].to(device))


def _is_native(tower: nn.Module) -> "TypeIs[NativeTransformer]":
    """Tell whether a tower is open_clip's own, by its name: open_clip need not be imported for that."""
    kind = type(tower)
    return f"{kind.__module__}.{kind.__name__}" == "open_clip.transformer.VisionTransformer"


def _blocks(tower: Tower) -> Any:  # noqa: ANN401  (a Sequential or a ModuleList, sliced and counted alike)
    if _is_native(tower):
        return tower.transformer.resblocks
    return tower.blocks


def _rotary_positions(tower: Tower) -> Sequence[Tensor]:
    """Return each block's rotary positions; nothing for a tower without."""
    if not isinstance(tower, Eva) or tower.rope is None:
        return ()
    rope = cast("Any", tower.rope)
    if hasattr(rope, "feat_shape"):
        positions = rope.get_embed()
    else:
        # A rotary module without a grid of its own is told it.
        positions = rope.get_embed(shape=tower.patch_embed.grid_size)
    if tower.rope_mixed:
        return list(positions)
    return [positions] * len(tower.blocks)


def tower_differs(tower: nn.Module, config: TowerConfig | NamedTower, image_size: int) -> list[str]:
    """Return the names of weights at which a tower differs from a configuration's, projections left out."""
    with torch.device("meta"):
        expected = build_tower_like(config, image_size).state_dict()
    return names_that_differ(expected, encoder_weights(tower.state_dict()))


def names_that_differ(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Return the names at which two state dicts differ, in presence or shape, in alphabetical order."""
    different = expected.keys() ^ found.keys()
    for name in expected.keys() & found.keys():
        if expected[name].shape != found[name].shape:
            different.add(name)
    return sorted(different)
