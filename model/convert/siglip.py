"""Reads image towers from others' files: Hugging Face's SigLIP and SigLIP2, and open_clip's weights."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dualtoken.model.config.tokenizer import TowerConfig
from dualtoken.model.convert.reference_names import convert_state_dict, siglip_mappings
from dualtoken.model.convert.weight_files import read_weights_file
from dualtoken.model.hub.json_files import read_json
from dualtoken.model.hub.saved_model import FORMAT
from dualtoken.model.vision.towers import encoder_weights

_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
"""Hugging Face's names of activations, and ours."""
VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
"""Defaults of Hugging Face's SiglipVisionConfig, which its files leave out."""


class SiglipTower(NamedTuple):
    """An image tower read from a folder."""

    config: TowerConfig
    image_size: int
    weights: dict[str, Tensor]  # as `DualTokenizer.init_tower` takes them


def load_siglip(folder: str | Path) -> SiglipTower:
    """Read a Hugging Face folder of SigLIP or SigLIP2, of the whole model or of its image tower alone.

    The folder holds config.json beside safetensors. Raises ValueError for other models, naming what differs.
    """
    folder = Path(folder)
    values = read_config(folder)
    vision = VISION_DEFAULTS | values.get("vision_config", values)
    if vision["layer_norm_eps"] != 1e-6:
        raise ValueError(
            f"{folder}/config.json has layer_norm_eps={vision['layer_norm_eps']}: only 1e-06 is supported"
        )
    config = TowerConfig.model_validate(
        {
            "patch_size": vision["patch_size"],
            "width": vision["hidden_size"],
            "depth": vision["num_hidden_layers"],
            "num_heads": vision["num_attention_heads"],
            "mlp_width": vision["intermediate_size"],
            "activation": activation(vision["hidden_act"]),
        }
    )
    weights = tower_weights(read_weights(folder), str(folder))
    return SiglipTower(config, vision["image_size"], weights)


def tower_weights(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the image tower out of a model's weights, under the names that `DualTokenizer.init_tower` takes.

    Knows open_clip's models (timm's towers and native ones), Hugging Face's SigLIP with and without
    `vision_model.`, and the released DualToken code's. `source` names the weights in errors. Raises
    ValueError for other weights.
    """
    for prefix in ("visual.trunk.", "visual."):  # open_clip's towers of timm, and its native ones
        tower = _below(state, prefix)
        if tower:
            return encoder_weights(tower)
    for prefix in ("siglip_model.vision_model.", "vision_model.", ""):
        if f"{prefix}embeddings.patch_embedding.weight" in state:
            return _from_siglip(_below(state, prefix), source)
    first = min(state, default="missing")
    raise ValueError(
        f"{source} holds no image tower, its first key being {first}: give SigLIP's or open_clip's weights"
    )


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a file of weights, or all safetensors of a folder; pickles are read as weights only.

    A checkpoint's `state_dict` is taken out of it, and `module.` off its names. Raises ValueError for a path
    without weights, and for files that cannot be read as weights.
    """
    path = Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ValueError(f"{path} has no weights: give a file, or a folder with .safetensors files")
    state: dict[str, Tensor] = {}
    for file in files:
        state |= read_weights_file(file)
    if all(name.startswith("module.") for name in state):
        return _below(state, "module.")
    return state


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of a folder of SigLIP's; raises ValueError for another model's."""
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder}/config.json cannot be read, there is none: give a folder of Hugging Face's SigLIP, "
            "or a checkpoint file of the released DualToken code"
        )
    values = read_json(folder / "config.json")
    model_type = values.get("model_type")
    if values.get("format") == FORMAT:
        raise ValueError(f"{folder} holds a tokenizer of ours already: --to-reference converts it back")
    if model_type not in ("siglip", "siglip_vision_model"):
        raise ValueError(
            f"{folder}/config.json has model_type={model_type}: give a folder of siglip or "
            "siglip_vision_model, as which SigLIP2 of fixed resolution is saved too"
        )
    return values


def activation(hidden_act: str) -> str:
    """Return our name of Hugging Face's activation; raises ValueError for one that SigLIP does not use."""
    if hidden_act not in _ACTIVATIONS:
        raise ValueError(f"hidden_act={hidden_act}: only {' and '.join(_ACTIVATIONS)} are supported")
    return _ACTIVATIONS[hidden_act]


def num_siglip_blocks(names: Iterable[str], prefix: str = "") -> int:
    """Count the transformer blocks of Hugging Face's image tower by its keys, which begin with `prefix`."""
    pattern = re.compile(re.escape(prefix) + r"encoder\.layers\.(\d+)\.")
    blocks = set()
    for name in names:
        match = pattern.match(name)
        if match:
            blocks.add(match[1])
    return len(blocks)


def _from_siglip(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    mappings = siglip_mappings(num_siglip_blocks(state))
    missing = []
    for mapping in mappings:
        missing += [name for name in mapping.external if name not in state]
    if missing:
        raise ValueError(
            f"{source} lacks {len(missing)} weights of SigLIP's image tower, such as {min(missing)}"
        )
    return convert_state_dict(state, mappings)


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
