"""The perceptual network that a recipe names, brought to this machine."""

from pathlib import Path

import fsspec

from dualtoken.model.config.training import LpipsConfig, NoPerceptual
from dualtoken.model.training.lpips import Lpips, MissingWeightsError, load_lpips
from dualtoken.pipelines.errors import UserError


def open_perceptual(config: NoPerceptual | LpipsConfig, scratch: Path) -> Lpips | None:
    """Return LPIPS with the recipe's weights, or None where it asks for none."""
    if isinstance(config, NoPerceptual):
        return None
    try:
        return load_lpips(*(_fetch(location, scratch) for location in (config.backbone, config.heads)))
    except MissingWeightsError as error:
        raise UserError(f"train.perceptual: {error}") from None


def _fetch(location: str | None, scratch: Path) -> Path | None:
    if location is None:
        return None
    fs, path = fsspec.url_to_fs(location)
    if "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
        return Path(path)
    copy = scratch / "perceptual" / Path(path).name
    copy.parent.mkdir(exist_ok=True)
    fs.get_file(path, str(copy))
    return copy
