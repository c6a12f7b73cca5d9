"""Perceptual network of a recipe: its weights fetched to this machine, and opened."""

from pathlib import Path

import fsspec

from dualtoken.infra.store_refusals import naming_refusals
from dualtoken.model.config.training import LpipsConfig, NoPerceptual
from dualtoken.model.training.lpips import Lpips, load_lpips
from dualtoken.model.training.vgg16 import MissingWeightsError
from dualtoken.pipelines.errors import UserError


def open_perceptual(config: NoPerceptual | LpipsConfig, scratch: Path) -> Lpips | None:
    """Return LPIPS with the recipe's weights, or None where it asks for none.

    Raises `UserError` where there are no weights.
    """
    if isinstance(config, NoPerceptual):
        return None
    try:
        return load_lpips(_fetch(config.backbone, scratch), _fetch(config.heads, scratch))
    except MissingWeightsError as error:
        raise UserError(f"train.perceptual: {error}") from None


def _fetch(location: str | None, scratch: Path) -> Path | None:
    """Return a local path to a file; a remote one is copied to `scratch`."""
    if location is None:
        return None
    fs, path = fsspec.url_to_fs(location)
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    if "file" in protocols:
        return Path(path)
    copy = scratch / "perceptual" / Path(path).name
    copy.parent.mkdir(exist_ok=True)
    with naming_refusals(fs, path):
        fs.get_file(path, str(copy))
    return copy
