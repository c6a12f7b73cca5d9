"""A Hugging Face SigLIP or SigLIP2 folder, both towers and the text tokeniser, as a teacher's folder in open_clip's format.

Unlike open_clip's own SigLIP models, whose image towers use the exact GELU, this teacher computes what Hugging Face's does.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualtoken.model.convert.reference_names import Match, rearrange
from dualtoken.model.convert.siglip import (
    SiglipTower,
    activation,
    load_siglip,
    read_config,
    read_json,
    read_weights,
)
from dualtoken.model.teacher.teacher import save_open_clip
from dualtoken.model.vision.siglip_tower import tower_name

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
"""Of Hugging Face's SiglipTextConfig, which its files leave out."""
_TOKENIZER_FILES = (
    *("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json"),
    *("spiece.model", "tokenizer.model"),
)


def convert_siglip(source: str | Path, folder: str | Path) -> None:
    """Write a folder that `load_teacher` reads, made if missing. Raises ValueError for a model that is no whole SigLIP."""
    source, folder = Path(source), Path(folder)
    values = read_config(source)
    if "vision_config" not in values:
        raise ValueError(
            f"{source}/config.json is of an image tower alone: a teacher reads texts too, give the whole model's folder"
        )
    if not (source / _TOKENIZER_FILES[0]).is_file():
        raise ValueError(
            f"{source} has no {_TOKENIZER_FILES[0]}: put the text tokeniser's files beside the weights"
        )
    tower, text, state = (
        load_siglip(source),
        _TEXT_DEFAULTS | values.get("text_config", {}),
        read_weights(source),
    )
    weights = {f"visual.trunk.{name}": tensor for name, tensor in tower.weights.items()}
    weights |= rearrange(state, _text_matches(text["num_hidden_layers"]))
    weights |= {name: state[name].reshape(()) for name in ("logit_scale", "logit_bias")}
    save_open_clip(
        weights, {"model_cfg": _model_config(tower, text), "preprocess_cfg": _preprocessing(source)}, folder
    )
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _text_matches(depth: int) -> list[Match]:
    """Return open_clip's names of a text tower beside Hugging Face's."""
    pairs = {"text.token_embedding.weight": "embeddings.token_embedding.weight"}
    pairs |= {"text.positional_embedding": "embeddings.position_embedding.weight"}
    stacked = []
    for kind in ("weight", "bias"):
        pairs |= {
            f"text.ln_final.{kind}": f"final_layer_norm.{kind}",
            f"text.text_projection.{kind}": f"head.{kind}",
        }
        for block in range(depth):
            ours, theirs = f"text.transformer.resblocks.{block}.", f"encoder.layers.{block}."
            parts = {f"text_model.{theirs}self_attn.{part}_proj.{kind}": 1 for part in "qkv"}
            stacked.append(Match({f"{ours}attn.in_proj_{kind}": 1}, parts))
            names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
            names |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
            pairs |= {f"{ours}{one}.{kind}": f"{theirs}{other}.{kind}" for one, other in names.items()}
    return [*stacked, *(Match({one: 1}, {f"text_model.{other}": 1}) for one, other in pairs.items())]


def _model_config(tower: SiglipTower, text: Mapping[str, Any]) -> dict[str, Any]:
    name = tower_name(tower.config, tower.image_size)
    tanh = {"act_kwargs": {"approximate": "tanh"}} if activation(text["hidden_act"]) == "gelu_tanh" else {}
    return {
        "embed_dim": tower.config.width,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": tower.image_size,
            "timm_model_name": name,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "hf_tokenizer_name": "beside the weights",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "layers": text["num_hidden_layers"],
            # open_clip truncates the product; the half keeps rounding from losing a channel.
            "mlp_ratio": (text["intermediate_size"] + 0.5) / text["hidden_size"],
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": text["layer_norm_eps"]},
            **tanh,
        },
    }


def _preprocessing(source: Path) -> dict[str, Any]:
    values = read_json(file) if (file := source / "preprocessor_config.json").is_file() else {}
    mean, std = (values.get(f"image_{name}") or [0.5] * 3 for name in ("mean", "std"))
    return {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "squash"}
