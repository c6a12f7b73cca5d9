"""What decides a step's output beside its inputs, as the JSON values that go into its fingerprint; files count by their content."""

from typing import Any

import fsspec

from dualtoken.infra.digests import digest_stream
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
    return recipe.heldout.identity() if isinstance(recipe.heldout, HeldoutFraction) else {"kind": "corpus"}


def teacher_settings(recipe: Recipe, _: str | None) -> dict[str, Any]:
    """Of the teacher: how it is trained, what it computes, or the content of what is adopted."""
    settings: dict[str, Any] = {"teacher": recipe.teacher.identity()}
    if recipe.teacher.kind == "train":
        settings |= {
            "heldout": _heldout(recipe),
            "cpus": recipe.train.cpus_per_worker,
            "gpu": recipe.train.use_gpu,
        }
    if recipe.teacher.kind == "open_clip" and isinstance(tower := recipe.tokenizer.tower, TowerConfig):
        settings["activation"] = tower.activation
    if isinstance(recipe.teacher, LocalTeacher):
        files = ("open_clip_config.json", "open_clip_model.safetensors")
        hashes = _folder_identity("teacher.folder", recipe.teacher.folder, files, "an open_clip checkpoint")
        settings["teacher"] = {"kind": "local", "files": hashes}
    return settings


def _folder_identity(key: str, folder: str, names: tuple[str, ...], kind: str) -> dict[str, str]:
    """Hash a folder's files, so that changed weights are a changed input."""
    fs, root = fsspec.url_to_fs(folder)
    hashes = {}
    for name in names:
        try:
            hashes[name] = _sha256(fs, f"{root.rstrip('/')}/{name}")
        except FileNotFoundError:
            raise UserError(f"{key}={folder!r} has no {name}: give {kind} folder") from None
    return hashes


def _sha256(fs: Any, path: str) -> str:  # noqa: ANN401  (fsspec has no types)
    with fs.open(path, "rb") as file:
        return digest_stream(file).sha256


def train_settings(recipe: Recipe, _: str | None) -> dict[str, Any]:
    """Of the tokenizer: its shape, its training, and the weights that this begins with."""
    settings = {
        "tokenizer": recipe.tokenizer.identity(),
        "train": recipe.train.identity(),
        "heldout": _heldout(recipe),
    }
    if isinstance(perceptual := recipe.train.perceptual, LpipsConfig):
        # The files that libraries bring are the same everywhere, so only those that a recipe names are hashed.
        settings["perceptual"] = {
            key: _file_identity(key, getattr(perceptual, key)) for key in ("backbone", "heads")
        }
    if (folder := recipe.train.start_from) is not None:
        settings["start_from"] = _folder_identity(
            "train.start_from", folder, ("config.json", "model.safetensors"), "a tokenizer's"
        )
    return settings


def _file_identity(key: str, location: str | None) -> str | None:
    if location is None:
        return None
    fs, path = fsspec.url_to_fs(location)
    try:
        return _sha256(fs, path)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(
            f"train.perceptual.{key}={location!r} is no file: give one with the weights, or leave it out"
        ) from None


def score_settings(recipe: Recipe, _: str | None) -> dict[str, Any]:
    """Of the scores: how many samples the teacher sees at once may change a last bit; said only where it is not the default."""
    size = recipe.filter.batch_size
    return {} if size == FilterConfig().batch_size else {"batch_size": size}


def token_settings(recipe: Recipe, corpus: str | None) -> dict[str, Any]:
    """Of the codes: crops, precision, and whose captions stand beside them."""
    crops = recipe.pretokenize.crops
    # Said only where they differ from the default, so that datasets from before there were such keys keep their fingerprints.
    settings: dict[str, Any] = {} if crops == WHOLE_IMAGE else {"crops": [one.identity() for one in crops]}
    if recipe.pretokenize.precision != "float32":
        settings["precision"] = recipe.pretokenize.precision
    return settings | ({CAPTIONS_OF: of} if (of := lender(recipe, corpus)) else {})


def lender(recipe: Recipe, corpus: str | None) -> str | None:
    """Return the fingerprint of the token dataset whose captions a corpus's further codes share."""
    return recipe.pretokenize.captions_of.get(corpus or "")
