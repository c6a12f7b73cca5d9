"""Converts the released DualToken code's configuration file to ours, and back.

What that file leaves to the hub, the image tower's shape, is read off the checkpoint.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dualtoken.model.config.base import validated
from dualtoken.model.config.quantizer import QuantizerConfig
from dualtoken.model.config.tokenizer import DecoderConfig, TokenizerConfig, TowerConfig
from dualtoken.model.convert.reference_names import VISION
from dualtoken.model.convert.siglip import activation, num_siglip_blocks

_NUM_HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}
"""Attention heads by width, for SigLIP's published widths.

The released configuration files leave the tower's shape to the hub, and the weights do not tell the heads.
"""

_NORM_GROUPS = 32
"""Groups of each GroupNorm of the released code, and by default of ours."""


def config_from_reference(values: Mapping[str, Any], state: Mapping[str, Tensor]) -> TokenizerConfig:
    """Return our configuration of a checkpoint, from the released code's file and the weights.

    `values` is the file's content. The tower's shape comes from the weights; a part `siglip.vision` of the
    file, with Hugging Face's names, overrides it. Raises ValueError for a setting that ours has no place for.
    """
    values = values.get("config", values)
    try:
        converted = _tokenizer_values(values, _vision_shape(values, state))
    except KeyError as error:
        raise ValueError(
            f"configuration or checkpoint lacks {error.args[0]}: are they of the released DualToken code?"
        ) from None
    except TypeError as error:
        raise ValueError(
            f"a value of the configuration has another type than the released code's: {error}"
        ) from None
    return validated(TokenizerConfig, converted, "configuration")


def config_to_reference(config: TokenizerConfig) -> dict[str, Any]:
    """Return the released code's configuration file of a tokenizer whose weights `to_reference` converts.

    A part `siglip.vision` describes the tower, which the released code takes from the hub. Raises ValueError
    for groups of norms that the released code has no setting for.
    """
    assert isinstance(config.tower, TowerConfig), "to_reference refuses towers by name"
    decoder = config.decoder
    assert isinstance(decoder, DecoderConfig), "to_reference refuses transformers"
    if decoder.norm_groups != _NORM_GROUPS:
        raise ValueError(
            f"decoder.norm_groups={decoder.norm_groups}, where the released code has {_NORM_GROUPS}: "
            "it cannot be written as its configuration"
        )
    tower = config.tower
    shortcut = config.shortcut
    lowest = len(decoder.multipliers) - 1
    return {
        "hidden_size": tower.width,
        "layer_recon": config.pixel_block,
        "layer_sem": config.semantic_block,
        "layer_shortcut": shortcut.block if shortcut else None,
        "weight_shortcut": shortcut.weight if shortcut else None,
        "ddconfig": {
            "attn_resolutions": [decoder.latent_size * 2 ** (lowest - level) for level in decoder.attends],
            "ch": decoder.width,
            "ch_mult": list(decoder.multipliers),
            "decoder_in_channels": decoder.latent_width,
            "double_z": False,
            "dropout": 0.0,
            "in_channels": 3,
            "num_res_blocks": decoder.num_res_blocks,
            "out_ch": 3,
            "resolution": config.image_size,
        },
        "decoder_latent_shape": [decoder.latent_size, decoder.latent_size],
        "vq_pix": _released_quantizer(config, "pixel", "rq"),
        "vq_sem": _released_quantizer(config, "semantic", "rq_ema"),
        "siglip": {
            "vision": {
                "hidden_size": tower.width,
                "intermediate_size": tower.mlp_width,
                "num_hidden_layers": tower.depth,
                "num_attention_heads": tower.num_heads,
                "image_size": config.image_size,
                "patch_size": tower.patch_size,
                "layer_norm_eps": 1e-06,
                "hidden_act": "gelu" if tower.activation == "gelu" else "gelu_pytorch_tanh",
            }
        },
    }


def _released_quantizer(config: TokenizerConfig, stream: str, bottleneck_type: str) -> dict[str, Any]:
    quantizer: QuantizerConfig = getattr(config, stream)
    side = config.grid_size
    return {
        "bottleneck_type": bottleneck_type,
        "latent_shape": [side, side, quantizer.width],
        "code_shape": [side, side, quantizer.depth],
        "n_embed": quantizer.num_codes,
        "decay": quantizer.decay,
        "embed_dim": quantizer.width,
        "shared_codebook": quantizer.shared,
        "restart_unused_codes": quantizer.restart_below is not None,
    }


def _tokenizer_values(values: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "image_size": vision["image_size"],
        "tower": {
            "patch_size": vision["patch_size"],
            "width": vision["hidden_size"],
            "depth": vision["num_hidden_layers"],
            "num_heads": vision["num_attention_heads"],
            "mlp_width": vision["intermediate_size"],
            "activation": activation(vision.get("hidden_act", "gelu_pytorch_tanh")),
        },
        "pixel_block": values["layer_recon"],
        "semantic_block": values["layer_sem"],
        "shortcut": _shortcut(values),
        "pixel": _quantizer("vq_pix", values["vq_pix"]),
        "semantic": _quantizer("vq_sem", values["vq_sem"]),
        "decoder": _decoder(values, vision["image_size"] // vision["patch_size"]),
    }


def _decoder(values: Mapping[str, Any], grid_size: int) -> dict[str, Any]:
    """Return the decoder's values; without a shape of its latent grid, that is the tower's grid."""
    decoder = values["ddconfig"]
    if decoder.get("out_ch", 3) != 3:
        raise ValueError(f"ddconfig.out_ch={decoder['out_ch']}: ours decodes 3 colours")
    latent_shape = values.get("decoder_latent_shape") or [grid_size, grid_size]
    if len(set(latent_shape[:2])) != 1:
        raise ValueError(f"decoder_latent_shape={latent_shape}: ours decodes squares")
    return {
        "latent_size": latent_shape[0],
        "latent_width": decoder["decoder_in_channels"],
        "width": decoder["ch"],
        "multipliers": decoder["ch_mult"],
        "num_res_blocks": decoder["num_res_blocks"],
        "attention_levels": _attention_levels(decoder),
    }


def _attention_levels(decoder: Mapping[str, Any]) -> list[int] | None:
    """Return the levels with attention, None where it is the lowest resolution alone.

    The released code counts resolutions from `resolution`, whatever the latent grid is.
    """
    lowest = len(decoder["ch_mult"]) - 1
    lowest_resolution = decoder["resolution"] // 2**lowest
    attends = decoder.get("attn_resolutions", [lowest_resolution])
    levels: list[int] = []
    for level in range(lowest + 1):
        if lowest_resolution * 2 ** (lowest - level) in attends:
            levels.append(level)
    return None if levels == [lowest] else levels


def _shortcut(values: Mapping[str, Any]) -> dict[str, Any] | None:
    if not values.get("layer_shortcut"):
        return None
    return {"block": values["layer_shortcut"], "weight": values["weight_shortcut"]}


def _quantizer(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    kind = values.get("bottleneck_type", "rq")
    if kind not in ("rq", "rq_ema"):
        raise ValueError(f"{name}.bottleneck_type={kind}: only rq and rq_ema are of the released code")
    restarts = values.get("restart_unused_codes", True)
    return {
        "num_codes": _one_value(f"{name}.n_embed", values["n_embed"]),
        "depth": values["code_shape"][-1],
        "width": values["embed_dim"],
        "decay": _one_value(f"{name}.decay", values.get("decay", 0.99)),
        "restart_below": 1.0 if restarts else None,
        "shared": values.get("shared_codebook", True),
    }


def _one_value(name: str, value: Any) -> Any:  # noqa: ANN401  (a number, or one for each depth)
    """Return a number that is given once, or equally for each depth."""
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise ValueError(f"{name}={value}: ours has the same for all depths")
    return value[0]


def _vision_shape(values: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the image tower's shape under Hugging Face's names: from the file, else from the weights."""
    given = values.get("siglip", {}).get("vision", {})
    patches = state[f"{VISION}embeddings.patch_embedding.weight"]
    mlp = state[f"{VISION}encoder.layers.0.mlp.fc1.weight"]
    width = patches.shape[0]
    num_heads = given.get("num_attention_heads", _NUM_HEADS.get(width))
    if num_heads is None:
        raise ValueError(
            f"the tower is {width} wide, as no published SigLIP: "
            'add {"siglip": {"vision": {"num_attention_heads": N}}}'
        )
    shape = {
        "patch_size": patches.shape[-1],
        "hidden_size": width,
        "num_hidden_layers": num_siglip_blocks(state, VISION),
        "num_attention_heads": num_heads,
        "intermediate_size": mlp.shape[0],
        "image_size": values["ddconfig"]["resolution"],
    }
    return shape | given
