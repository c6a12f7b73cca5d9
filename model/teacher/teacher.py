"""The teacher: a frozen image and text model that filters samples, gives targets and judges.

It is SigLIP or like CLIP. A teacher is a folder on local disk in open_clip's local-dir format:
open_clip_config.json and open_clip_model.safetensors. B images of S by S pixels, T texts, L token positions,
N image tokens, W channels of the tower, E channels of an embedding.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from dualtoken.model.config.teacher import TeacherConfig
from dualtoken.model.config.tokenizer import TextConfig, TowerConfig
from dualtoken.model.hub.saved_model import write_safetensors
from dualtoken.model.teacher.folder import CONFIG_FILE, WEIGHTS_FILE, read_open_clip_config, text_tokenizer
from dualtoken.model.teacher.targets import TeacherTargets
from dualtoken.model.teacher.text_tokenizer import bound_text
from dualtoken.model.vision.imports import vision_imports
from dualtoken.model.vision.siglip_tower import register_tower, tower_name
from dualtoken.model.vision.towers import Tower, check_tower, forward_from_block, forward_taps, tower_differs

with vision_imports():
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer
    from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

_POSITION_SCALE = 0.5
"""Factor that brings sines and cosines to about the size of patches' tokens."""
_LOGIT_SCALE = 5.0
"""Initial scale of cosines in the loss. SigLIP's is 10; a smaller one starts sooner and learns less in the
end (NOTES.md, 2026-11-24)."""
_LOGIT_BIAS = -4.5
"""Initial bias of the loss, which takes most pairs for wrong ones."""
_PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
"""Preprocessing of a teacher of our own, in open_clip's terms."""


class TeacherOutput(NamedTuple):
    """Output of one pass of the tower."""

    embeddings: Float[Tensor, "B E"]
    """Unit vectors, comparable with those of texts."""
    pooled: Float[Tensor, "B W"]
    """Pooled output, as `TeacherTargets.pooled`."""
    dense: Float[Tensor, "B N W"]
    """Tokens, as `TeacherTargets.dense`."""


def build_teacher(config: TeacherConfig) -> open_clip.CustomTextCLIP:
    """Return an open_clip model with fresh weights, set up to learn within a few hundred steps.

    Positions start as sines and cosines (arXiv 2205.01580), scale and bias lower than SigLIP's: on small
    scenes at 96 a step, the loss leaves the level of guessing within 100 steps (NOTES.md, 2026-11-24).
    """
    model_config = _model_config(config)
    # It names the class, and is no argument of it.
    del model_config["custom_text"]
    model = open_clip.CustomTextCLIP(**model_config)
    positions: Tensor = cast("Any", model.visual).trunk.pos_embed
    side = config.image_size // config.tower.patch_size
    with torch.no_grad():
        positions.copy_(_POSITION_SCALE * build_sincos2d_pos_embed([side, side], dim=config.tower.width))
    return model


def tokenize(texts: Sequence[str], config: TextConfig) -> Int[Tensor, "T L"]:
    """Return token ids of open_clip's vocabulary, for a teacher of `build_teacher`; longer texts are cut."""
    return _text_tokenizer(config.context_length)(list(texts))


@cache  # reading the vocabulary takes 0.15 s, as long as a quarter of a small step
def _text_tokenizer(context_length: int) -> SimpleTokenizer:
    return bound_text(SimpleTokenizer(context_length=context_length))


def save_teacher(model: nn.Module, config: TeacherConfig, folder: str | Path) -> None:
    """Write a model of `build_teacher` as an open_clip local-dir folder, made if missing."""
    folder_config = {"model_cfg": _model_config(config), "preprocess_cfg": _PREPROCESS}
    save_open_clip(model.state_dict(), folder_config, Path(folder))


def export_open_clip(
    model_name: str, pretrained: str, folder: str | Path, tower: TowerConfig | None = None
) -> None:
    """Write an open_clip model as a folder that `load_teacher` reads without a network.

    The folder holds weights and text tokeniser. `pretrained` is one of the model's tags, and open_clip
    fetches the weights from its hub; or it is a local weights file. Where the image tower has the shape of
    `tower`, the folder names a tower that computes as `tower` does: SigLIP was trained with the tanh GELU, in
    place of which timm has the exact one for some models.

    Raises ValueError for a name that open_clip does not know: a folder or repository is none.
    """
    model_config = None
    if ":" not in model_name:
        model_config = open_clip.get_model_config(model_name)
    if model_config is None:
        raise ValueError(f"model={model_name} is unknown to open_clip: set one of open_clip.list_models()")
    model = _create_model(model_name, pretrained)
    visual = cast("Any", model.visual)
    preprocess = {key: visual.preprocess_cfg[key] for key in ("mean", "std", "interpolation", "resize_mode")}
    image_size = int(visual.image_size[0])
    if tower and not tower_differs(_trunk(visual), tower, image_size):
        own_tower = {"timm_model_name": tower_name(tower, image_size), "timm_model_pretrained": False}
        model_config = model_config | {"vision_cfg": model_config["vision_cfg"] | own_tower}
    folder_config = {"model_cfg": model_config, "preprocess_cfg": preprocess}
    save_open_clip(model.state_dict(), folder_config, Path(folder))
    if "hf_tokenizer_name" in model_config["text_cfg"]:
        cast("Any", open_clip.get_tokenizer(model_name, trust_remote_code=False)).save_pretrained(folder)


def load_teacher(folder: str | Path, device: str | torch.device = "cpu") -> "Teacher":
    """Read an open_clip local-dir folder, ours or any checkpoint's; no network is used.

    Nothing that the folder says makes any library run code. Raises ValueError, one line, if files are missing
    or damaged, for keys of a configuration that are not known, and if the image tower is no plain vision
    transformer.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} has no {name}: name a folder of an open_clip model, such as save_teacher writes"
            )
    config = read_open_clip_config(folder)
    register_tower(config.model.vision_cfg.timm_model_name or "")
    tokenizer = bound_text(text_tokenizer(folder, config.model.text_cfg))
    return Teacher(_create_model(f"local-dir:{folder}"), tokenizer).to(device)


def _create_model(name: str, pretrained: str | None = None) -> nn.Module:
    """Return open_clip's model with its weights; raises ValueError, one line, where they do not fit it."""
    try:
        return open_clip.create_model(name, pretrained=pretrained, require_pretrained=True)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # open_clip, timm and torch raise many kinds
        reason = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
        raise ValueError(
            f"{name.removeprefix('local-dir:')} cannot be built with its weights: "
            f"{type(error).__name__}: {reason}"
        ) from error


class Teacher(nn.Module):
    """A frozen image and text model; images are levels 0 to 255 at `image_size`."""

    mean: Float[Tensor, "3 1 1"]
    """Mean of images of 0 to 1, per colour."""
    std: Float[Tensor, "3 1 1"]
    """Standard deviation of images of 0 to 1, per colour."""

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:  # noqa: ANN401  (they share no type)
        super().__init__()
        self.model = model.requires_grad_(False)
        self._tokenizer = tokenizer
        visual = cast("Any", model.visual)
        check_tower(_trunk(visual))
        self.image_size = int(visual.image_size[0])
        self.register_buffer("mean", torch.tensor(visual.image_mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(visual.image_std).view(3, 1, 1))
        self.eval()

    @property
    def trunk(self) -> Tower:
        """The image tower, whose weights `DualTokenizer.init_tower` takes."""
        return _trunk(cast("Any", self.model).visual)

    def transform(self, images: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
        """Normalise levels by the model's own mean and standard deviation."""
        return _normalize(self, images)

    @torch.no_grad()
    def embed_images(self, images: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B E"]:
        """Return the unit vectors of images."""
        return F.normalize(cast("Any", self.model).encode_image(self.transform(images)), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "T E"]:
        """Return the unit vectors of texts."""
        tokens = self._tokenizer(list(texts)).to(self.mean.device)
        return F.normalize(cast("Any", self.model).encode_text(tokens), dim=-1)

    @torch.no_grad()
    def project(self, pooled: Float[Tensor, "B W"]) -> Float[Tensor, "B E"]:
        """Return the unit vectors of pooled outputs, a tokenizer's as well as the teacher's own."""
        visual = cast("Any", self.model).visual
        if hasattr(visual, "trunk"):
            # The projection is timm's head, or open_clip's behind it; the other is the identity.
            projected = visual.head(visual.trunk.head(pooled))
        elif visual.proj is None:
            projected = pooled
        else:
            projected = pooled @ visual.proj
        return F.normalize(projected, dim=-1)

    @torch.no_grad()
    def embed_all(self, images: UInt8[Tensor, "B 3 S S"], block: int) -> TeacherOutput:
        """Return embeddings and targets in one pass of the tower.

        `block` counts from 1, as `TokenizerConfig.semantic_block`.
        """
        pooled, dense = self.targets(images, block)
        return TeacherOutput(self.project(pooled), pooled, dense)

    def targets(self, images: UInt8[Tensor, "B 3 S S"], block: int) -> TeacherTargets:
        """Return the targets of images; `block` as in `embed_all`."""
        return tower_targets(self.trunk, self.transform(images), block)


class ImageTeacher(nn.Module):
    """A teacher's image tower alone: its texts' weights, 1.8 GB of SigLIP-So400m's, need no room on a GPU."""

    mean: Float[Tensor, "3 1 1"]
    std: Float[Tensor, "3 1 1"]

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.trunk = teacher.trunk
        self.image_size = teacher.image_size
        self.register_buffer("mean", teacher.mean)
        self.register_buffer("std", teacher.std)
        self.eval()

    def targets(self, images: UInt8[Tensor, "B 3 S S"], block: int) -> TeacherTargets:
        """Return the targets of images, as `Teacher.targets`."""
        return tower_targets(self.trunk, _normalize(self, images), block)


def _normalize(teacher: Teacher | ImageTeacher, images: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
    if images.shape[-1] != teacher.image_size:
        raise ValueError(
            f"images of {images.shape[-1]} pixels, the teacher reads {teacher.image_size}: "
            "resize them to that"
        )
    return (images.float() / 255 - teacher.mean) / teacher.std


@torch.no_grad()
def tower_targets(tower: Tower, images: Float[Tensor, "B 3 S S"], block: int) -> TeacherTargets:
    """Return a tower's targets of images normalised as it expects; `block` as in `Teacher.embed_all`."""
    dense, prefix = forward_taps(tower, images, [block])[block]
    return TeacherTargets(forward_from_block(tower, dense, block, prefix), dense)


def _trunk(visual: Any) -> Any:  # noqa: ANN401  (open_clip's image towers share no type)
    """Return the transformer of an image tower: timm's, inside of open_clip's wrapper, or open_clip's own."""
    return getattr(visual, "trunk", visual)


def _model_config(config: TeacherConfig) -> dict[str, Any]:
    """Return open_clip's `model_cfg`; text is read both ways, as in SigLIP, and pooled at its end token."""
    name = tower_name(config.tower, config.image_size)
    register_tower(name)
    return {
        "embed_dim": config.tower.width,
        "init_logit_scale": math.log(_LOGIT_SCALE),
        "init_logit_bias": _LOGIT_BIAS,
        "custom_text": True,
        "vision_cfg": {
            "image_size": config.image_size,
            "timm_model_name": name,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": config.text.context_length,
            "width": config.text.width,
            "layers": config.text.depth,
            "heads": config.text.num_heads,
            "no_causal_mask": True,
            "pool_type": "argmax",
            "norm_kwargs": {"eps": 1e-6},
        },
    }


def save_open_clip(state: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> None:
    """Write weights and open_clip's two configurations as a local-dir folder, made if missing.

    `config` holds `model_cfg` and `preprocess_cfg`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_safetensors(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
