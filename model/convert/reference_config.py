"""Converts the released DualToken code's configuration file to ours.

What that file leaves to the hub, the image tower's shape, is read off the checkpoint.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.convert.reference_names import VISION
from dualtoken.model.convert.siglip import activation, num_siglip_blocks

_NUM_HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}
"""Attention heads by width, for SigLIP's published widths.

The released configuration files leave the tower's shape to the hub, and the weights do not tell the heads.
"""


def config_from_reference(values: Mapping[str, Any], state: Mapping[str, Tensor]) -> TokenizerConfig:
    """Return our configuration of a checkpoint, from the released code's file and the weights.

    `values` is the file's content. The tower's shape comes from the weights; a part `siglip.vision` of the
    file, with Hugging Face's names, overrides it. Raises ValueError for a setting that ours has no place for.
    """
    values = values.get("config", values)
    try:
        return _tokenizer_config(values, _vision_shape(values, state))
    except KeyError as error:
        raise ValueError(
            f"configuration or checkpoint lacks {error.args[0]}: are they of the released DualToken code?"
        ) from None


def _tokenizer_config(values: Mapping[str, Any], vision: Mapping[str, Any]) -> TokenizerConfig:
    _check_decoder_attention(values)
    pixel = _quantizer("vq_pix", values["vq_pix"])
    semantic = _quantizer("vq_sem", values["vq_sem"])
    shortcut = _shortcut(values)
    return TokenizerConfig.model_validate(
        {
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
            "shortcut": shortcut,
            "pixel": pixel,
            "semantic": semantic,
            "decoder": _decoder(values),
        }
    )


def _check_decoder_attention(values: Mapping[str, Any]) -> None:
    """Raise ValueError for a decoder that attends elsewhere than ours."""
    decoder = values["ddconfig"]
    latent_size = values["decoder_latent_shape"][0]
    attends = list(decoder.get("attn_resolutions", [latent_size]))
    if attends != [latent_size]:
        raise ValueError(
            f"ddconfig.attn_resolutions={attends}: ours attends on the latent grid only, {[latent_size]}"
        )


def _decoder(values: Mapping[str, Any]) -> dict[str, Any]:
    decoder = values["ddconfig"]
    return {
        "latent_size": values["decoder_latent_shape"][0],
        "latent_width": decoder["decoder_in_channels"],
        "width": decoder["ch"],
        "multipliers": decoder["ch_mult"],
        "num_res_blocks": decoder["num_res_blocks"],
    }


def _shortcut(values: Mapping[str, Any]) -> dict[str, Any] | None:
    if not values.get("layer_shortcut"):
        return None
    return {"block": values["layer_shortcut"], "weight": values["weight_shortcut"]}


def _quantizer(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    if not values.get("shared_codebook", True):
        raise ValueError(f"{name}.shared_codebook=false: ours shares a codebook among depths")
    restarts = values.get("restart_unused_codes", True)
    return {
        "num_codes": values["n_embed"],
        "depth": values["code_shape"][-1],
        "width": values["embed_dim"],
        "decay": values.get("decay", 0.99),
        "restart_below": 1.0 if restarts else None,
    }


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
