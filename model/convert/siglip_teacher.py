"""Converts a Hugging Face folder of SigLIP or SigLIP2 to a teacher's folder in open_clip's format.

The folder holds both towers and the text tokeniser. open_clip's own SigLIP models have image towers with the
exact GELU. This teacher computes what Hugging Face's model does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualtoken.model.convert.reference_names import KeyMapping, convert_state_dict
from dualtoken.model.convert.siglip import (
    SiglipTower,
    activation,
    load_siglip,
    read_config,
    read_weights,
)
from dualtoken.model.hub.json_files import read_json
from dualtoken.model.teacher.folder import TOKENIZER_CONFIG, check_tokenizer_config, copy_tokenizer_files
from dualtoken.model.teacher.teacher import save_open_clip
from dualtoken.model.vision.siglip_tower import timm_mlp_ratio, tower_name

_TEXT_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 32000,
    "max_position_embeddings": 64,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
"""Defaults of Hugging Face's SiglipTextConfig, which its files leave out."""
_TEXT_LAYERS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Layers of a block of open_clip's text tower beside Hugging Face's."""


def convert_siglip(source: str | Path, folder: str | Path) -> None:
    """Write a folder that `load_teacher` reads, made if missing.

    Raises ValueError for a model that is no whole SigLIP, and for a source without its text tokeniser.
    """
    source = Path(source)
    folder = Path(folder)
    values = read_config(source)
    if "vision_config" not in values:
        raise ValueError(
            f"{source}/config.json is of an image tower alone: a teacher reads texts too, "
            "give the whole model's folder"
        )
    if not (source / TOKENIZER_CONFIG).is_file():
        raise ValueError(
            f"{source} has no {TOKENIZER_CONFIG}: put the text tokeniser's files beside the weights"
        )
    check_tokenizer_config(source / TOKENIZER_CONFIG)
    tower = load_siglip(source)
    text = _TEXT_DEFAULTS | values.get("text_config", {})
    state = read_weights(source)
    weights = {f"visual.trunk.{name}": tensor for name, tensor in tower.weights.items()}
    weights |= convert_state_dict(state, _text_mappings(text["num_hidden_layers"]))
    for name in ("logit_scale", "logit_bias"):
        weights[name] = state[name].reshape(())
    config = {"model_cfg": _model_config(tower, text), "preprocess_cfg": _preprocessing(source)}
    save_open_clip(weights, config, folder)
    copy_tokenizer_files(source, folder)


def _text_mappings(depth: int) -> list[KeyMapping]:
    """Return open_clip's keys of a text tower with `depth` blocks beside Hugging Face's."""
    stacked = []
    names = {
        "token_embedding.weight": "embeddings.token_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
    }
    for kind in ("weight", "bias"):
        names[f"ln_final.{kind}"] = f"final_layer_norm.{kind}"
        names[f"text_projection.{kind}"] = f"head.{kind}"
        for block in range(depth):
            internal_prefix = f"transformer.resblocks.{block}."
            external_prefix = f"encoder.layers.{block}."
            projections = {f"text_model.{external_prefix}self_attn.{part}_proj.{kind}": 1 for part in "qkv"}
            stacked.append(KeyMapping({f"text.{internal_prefix}attn.in_proj_{kind}": 1}, projections))
            for internal, external in _TEXT_LAYERS.items():
                names[f"{internal_prefix}{internal}.{kind}"] = f"{external_prefix}{external}.{kind}"
    mappings = stacked
    for internal, external in names.items():
        mappings.append(KeyMapping({f"text.{internal}": 1}, {f"text_model.{external}": 1}))
    return mappings


def _model_config(tower: SiglipTower, text: Mapping[str, Any]) -> dict[str, Any]:
    """Return open_clip's description of the model."""
    text_config = {
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        "hf_tokenizer_name": "beside the weights",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": text["hidden_size"],
        "heads": text["num_attention_heads"],
        "layers": text["num_hidden_layers"],
        "mlp_ratio": timm_mlp_ratio(text["intermediate_size"], text["hidden_size"]),
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": text["layer_norm_eps"]},
    }
    if activation(text["hidden_act"]) == "gelu_tanh":
        text_config["act_kwargs"] = {"approximate": "tanh"}
    return {
        "embed_dim": tower.config.width,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": tower.image_size,
            "timm_model_name": tower_name(tower.config, tower.image_size),
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": text_config,
    }


def _preprocessing(source: Path) -> dict[str, Any]:
    """Return open_clip's description of the images' preprocessing."""
    file = source / "preprocessor_config.json"
    values = read_json(file) if file.is_file() else {}
    half = [0.5, 0.5, 0.5]
    return {
        "mean": values.get("image_mean") or half,
        "std": values.get("image_std") or half,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
