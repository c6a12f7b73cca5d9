"""The released DualToken code's configuration file as ours; what it leaves to the hub is read off the checkpoint."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.convert.reference_names import VISION
from dualtoken.model.convert.siglip import activation

_HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}
"""Of SigLIP's published widths; the released configuration files leave the tower's shape to the hub."""


def reference_config(values: Mapping[str, Any], state: Mapping[str, Tensor]) -> TokenizerConfig:
    """Return our configuration of a checkpoint: from the released code's file, and the tower's shape from the weights.

    `values` is the file's content; a part `siglip.vision` with Hugging Face's names overrides what the weights say.
    Raises ValueError for a setting that ours has no place for.
    """
    values = values.get("config", values)
    try:
        return _reference_config(values, _vision_shape(values, state))
    except KeyError as error:
        raise ValueError(
            f"configuration or checkpoint lacks {error.args[0]}: are they of the released DualToken code?"
        ) from None


def _reference_config(values: Mapping[str, Any], vision: Mapping[str, Any]) -> TokenizerConfig:
    decoder, latent = values["ddconfig"], values["decoder_latent_shape"][0]
    if list(attends := decoder.get("attn_resolutions", [latent])) != [latent]:
        raise ValueError(
            f"ddconfig.attn_resolutions={attends}: ours attends on the latent grid only, {[latent]}"
        )
    pixel, semantic = (_quantizer(f"vq_{stream}", values[f"vq_{stream}"]) for stream in ("pix", "sem"))
    shortcut = (
        {"block": values["layer_shortcut"], "weight": values["weight_shortcut"]}
        if values.get("layer_shortcut")
        else None
    )
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
            "decoder": {
                "latent_size": latent,
                "latent_width": decoder["decoder_in_channels"],
                "width": decoder["ch"],
                "multipliers": decoder["ch_mult"],
                "num_res_blocks": decoder["num_res_blocks"],
            },
        }
    )


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
    given = values.get("siglip", {}).get("vision", {})
    patches, mlp = (
        state[VISION + name]
        for name in ("embeddings.patch_embedding.weight", "encoder.layers.0.mlp.fc1.weight")
    )
    width = patches.shape[0]
    if (heads := given.get("num_attention_heads", _HEADS.get(width))) is None:
        raise ValueError(
            f'the tower is {width} wide, as no published SigLIP: add {{"siglip": {{"vision": {{"num_attention_heads": N}}}}}}'
        )
    blocks = {
        match[1]
        for name in state
        if (match := re.match(re.escape(VISION) + r"encoder\.layers\.(\d+)\.", name))
    }
    found = {
        "patch_size": patches.shape[-1],
        "hidden_size": width,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": heads,
        "intermediate_size": mlp.shape[0],
        "image_size": values["ddconfig"]["resolution"],
    }
    return found | given
