"""Settings of each stage for its fingerprint: JSON values that decide its output, beside its inputs.

Files count by their content, so that changed weights are a changed input.
"""

from typing import Any

import fsspec

from dualtoken.infra.digests import digest_stream
from dualtoken.infra.store_refusals import naming_refusals
from dualtoken.model.config.tokenizer import TowerConfig
from dualtoken.model.config.training import LpipsConfig
from dualtoken.pipelines.config.corpora import HeldoutFraction
from dualtoken.pipelines.config.crops import WHOLE_IMAGE
from dualtoken.pipelines.config.filter import FilterConfig
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.config.teacher import LocalTeacher
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.tokens.facts import CAPTIONS_OF


def _heldout(recipe: Recipe) -> dict[str, Any]:
    if isinstance(recipe.heldout, HeldoutFraction):
        return recipe.heldout.identity()
    return {"kind": "corpus"}


def _sample_order(recipe: Recipe) -> dict[str, Any]:
    """Return what decides the order of samples; nothing at its default, which is older than the key."""
    reader = recipe.reader.identity()
    if not reader:
        return {}
    return {"reader": reader}


def teacher_settings(recipe: Recipe, _: str | None) -> dict[str, Any]:
    """Return how the teacher is trained, or the content of the model that is fetched or adopted."""
    settings: dict[str, Any] = {"teacher": recipe.teacher.identity()}
    tower = recipe.tokenizer.tower
    if recipe.teacher.kind == "train":
        settings["heldout"] = _heldout(recipe)
        settings["gpu"] = recipe.train.use_gpu
        settings |= _sample_order(recipe)
    elif recipe.teacher.kind == "open_clip" and isinstance(tower, TowerConfig):
        settings["activation"] = tower.activation
    elif isinstance(recipe.teacher, LocalTeacher):
        files = ("open_clip_config.json", "open_clip_model.safetensors")
        hashes = _folder_hashes("teacher.folder", recipe.teacher.folder, files, "an open_clip checkpoint")
        settings["teacher"] = {"kind": "local", "files": hashes}
    return settings


def train_settings(recipe: Recipe, _: str | None) -> dict[str, Any]:
    """Return the tokenizer's shape, its training, and the content of the weights that it begins with."""
    settings: dict[str, Any] = {
        "tokenizer": recipe.tokenizer.identity(),
        "train": recipe.train.identity(),
        "heldout": _heldout(recipe),
        **_sample_order(recipe),
    }
    perceptual = recipe.train.perceptual
    if isinstance(perceptual, LpipsConfig):
        # Files that libraries bring are the same everywhere, so only those that a recipe names are hashed.
        settings["perceptual"] = {
            "backbone": _file_hash("backbone", perceptual.backbone),
            "heads": _file_hash("heads", perceptual.heads),
        }
    folder = recipe.train.start_from
    if folder is not None:
        files = ("config.json", "model.safetensors")
        settings["start_from"] = _folder_hashes("train.start_from", folder, files, "a tokenizer's")
    return settings


def mllm_settings(recipe: Recipe, _: str | None) -> dict[str, Any]:
    """Return the model's shape, its training and documents, and the content of the weights it begins with."""
    assert recipe.mllm is not None, "the stage runs where the recipe has the key"
    settings: dict[str, Any] = {"mllm": recipe.mllm.identity()}
    if isinstance(recipe.heldout, HeldoutFraction):
        settings["heldout"] = recipe.heldout.identity()
    folder = recipe.mllm.start_from
    if folder is not None:
        files = ("config.json", "model.safetensors")
        settings["start_from"] = _folder_hashes("mllm.start_from", folder, files, "a unified model's")
    return settings


def score_settings(recipe: Recipe, _: str | None) -> dict[str, Any]:
    """Return batch size and precision where they are not the default: another batch may change last bits."""
    settings: dict[str, Any] = {}
    for name in ("batch_size", "precision"):
        value = getattr(recipe.filter, name)
        if value != getattr(FilterConfig(), name):
            settings[name] = value
    return settings


def token_settings(recipe: Recipe, corpus: str | None) -> dict[str, Any]:
    """Return crops, precision, and the dataset that captions are shared with.

    Each stands there only where it is not the default: datasets older than these keys keep their
    fingerprints.
    """
    config = recipe.pretokenize
    settings: dict[str, Any] = {}
    if config.crops != WHOLE_IMAGE:
        settings["crops"] = [crops.identity() for crops in config.crops]
    if config.precision != "float32":
        settings["precision"] = config.precision
    source = caption_source(recipe, corpus)
    if source:
        settings[CAPTIONS_OF] = source
    return settings


def caption_source(recipe: Recipe, corpus: str | None) -> str | None:
    """Return the fingerprint of the token dataset that a corpus's further codes share captions with."""
    return recipe.pretokenize.captions_of.get(corpus or "")


def _folder_hashes(key: str, folder: str, names: tuple[str, ...], kind: str) -> dict[str, str]:
    fs, root = fsspec.url_to_fs(folder)
    hashes = {}
    for name in names:
        try:
            hashes[name] = _sha256(fs, f"{root.rstrip('/')}/{name}")
        except FileNotFoundError:
            raise UserError(f"{key}={folder!r} has no {name}: give {kind} folder") from None
    return hashes


def _file_hash(key: str, location: str | None) -> str | None:
    if location is None:
        return None
    fs, path = fsspec.url_to_fs(location)
    try:
        return _sha256(fs, path)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(
            f"train.perceptual.{key}={location!r} is no file: give one with the weights, or leave it out"
        ) from None


def _sha256(fs: Any, path: str) -> str:  # noqa: ANN401  (fsspec has no types)
    with naming_refusals(fs, path), fs.open(path, "rb") as file:
        return digest_stream(file).sha256
