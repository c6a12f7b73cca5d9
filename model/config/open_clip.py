"""Shapes of the image towers that open_clip knows by name.

They are read from its packaged files, without importing open_clip or torch. The files give the shape of a
native tower, and only the name of timm's towers: their width and depth are given here.
tests/model/vision/test_towers.py builds every one of them and compares.
"""

import difflib
import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

_TIMM = {
    r"eva_giant": (1408, 40),
    r"eva02_base": (768, 12),
    r"eva02_large": (1024, 24),
    r"eva02_enormous": (1792, 64),
    r"vit_base_mci": (768, 12),
    r"vit_base_patch\d+_siglip": (768, 12),
    r"vit_large_patch\d+_(clip|siglip)": (1024, 24),
    r"vit_so400m_patch\d+_siglip": (1152, 27),
    r"vit_giantopt_patch\d+_siglip": (1536, 40),
    r"vit_medium_patch\d+_gap": (512, 12),
    r"vit_pe_core_tiny": (192, 12),
    r"vit_pe_core_small": (384, 12),
    r"vit_pe_core_base": (768, 12),
    r"vit_pe_core_large": (1024, 24),
    r"vit_pe_core_gigantic": (1536, 50),
    r"vitamin_small": (384, 14),
    r"vitamin_base": (768, 14),
    r"vitamin_large2?": (1024, 31),
    r"vitamin_xlarge": (1152, 32),
}
"""Width and depth of timm's towers, by the beginning of the name, a regular expression."""
_NO_TOKENS = {
    r"convnext|fastvit|swin": (
        "its stages change the grid, so no token stays at its place from block to block"
    ),
    r"vit_relpos": "its blocks share a table of relative positions, which blocks run alone do not get",
}
"""Reasons why a tower of timm's cannot be tapped, by the beginning of the name."""
_DEFAULT_PATCH_SIZE = 16
"""Patch size where timm's name has none: ViTamin and MobileCLIP, with convolutions that shrink images
sixteenfold."""

Channels = tuple[float, float, float]
"""A number for each of red, green and blue."""
Statistics = tuple[Channels, Channels]
"""Mean and standard deviation per colour, of images of 0 to 1."""
HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OPENAI: Statistics = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_STATISTICS: dict[str, Statistics] = {
    r"siglip|vit_pe_core": HALF,
    r"CLIPA": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    r"vit_base_mci": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Statistics of models that do not follow OpenAI's, by a regular expression for their names."""


class TowerShape(NamedTuple):
    """Shape of a tower, known before it is built."""

    patch_size: int
    """Side of a patch, pixels."""
    width: int
    """Channels of a token."""
    depth: int
    """Number of blocks."""


@cache
def model_config(model: str) -> dict[str, Any]:
    """Return open_clip's own configuration of a model; raises ValueError for an unknown name."""
    file = _folder() / f"{model}.json"
    # The name is checked first: with a slash in it, it could be a file elsewhere.
    if re.fullmatch(r"[\w.-]+", model) and file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    close = difflib.get_close_matches(model, model_names(), n=1)
    hint = f"did you mean {close[0]}?" if close else "set one of open_clip.list_models()"
    raise ValueError(f"model={model} is unknown to open_clip: {hint}")


def model_names() -> list[str]:
    """Return all names that open_clip has a configuration for."""
    return sorted(file.stem for file in _folder().glob("*.json"))


@cache
def tower_shape(model: str) -> TowerShape:
    """Return the shape of a model's image tower.

    Raises ValueError, naming the reason, where the tower cannot be tapped.
    """
    vision = model_config(model)["vision_cfg"]
    timm_name = vision.get("timm_model_name")
    if timm_name is not None:
        return _timm_shape(model, timm_name)
    if vision["patch_size"] is None:
        raise ValueError(
            f"model={model} has a ResNet for a tower, which has no tokens: "
            "set a model with a vision transformer"
        )
    if vision.get("attentional_pool"):
        raise ValueError(
            f"model={model} pools by CoCa's many queries, which give no vector of the tower's width: "
            "set another model"
        )
    return TowerShape(vision["patch_size"], vision["width"], vision["layers"])


def input_statistics(model: str) -> Statistics:
    """Return the mean and standard deviation of images of 0 to 1 that a model's usual weights expect."""
    name = model_config(model)["vision_cfg"].get("timm_model_name") or model
    for pattern, statistics in _STATISTICS.items():
        if re.search(pattern, name):
            return statistics
    return OPENAI


@cache
def _folder() -> Path:
    """Return the folder of open_clip's packaged configurations; open_clip itself is not imported."""
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None, "open_clip is a dependency of this package"
    assert spec.origin is not None, "open_clip is a package of files"
    return Path(spec.origin).parent / "model_configs"


def _timm_shape(model: str, name: str) -> TowerShape:
    """Return the shape of the tower that timm calls `name`; raises ValueError where it cannot be tapped."""
    for pattern, reason in _NO_TOKENS.items():
        if re.match(pattern, name):
            raise ValueError(
                f"model={model} has timm's {name} for a tower: {reason}; "
                "set a model with a plain vision transformer"
            )
    for pattern, (width, depth) in _TIMM.items():
        if re.match(pattern + r"(_|$)", name):
            patch = re.search(r"_patch(\d+)", name)
            patch_size = int(patch[1]) if patch else _DEFAULT_PATCH_SIZE
            return TowerShape(patch_size, width, depth)
    raise ValueError(
        f"model={model} has timm's {name} for a tower, whose shape is not known here: "
        "describe it as patch_size, width, ..."
    )
