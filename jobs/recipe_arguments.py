"""Turns arguments into a recipe."""

from collections.abc import Collection, Sequence
from pathlib import Path

from dualtoken.infra.local_files import kind_of_entry
from dualtoken.model.config.base import is_url
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import UserError


def open_recipe(
    location: str,
    overrides: Sequence[str] | None,
    root: str | None,
    address: str | None = None,
    profile: str | None = None,
) -> Recipe:
    """Read a recipe with its overrides; options win over `--set`, which wins over the file."""
    texts = {"root": root, "cluster.address": address, "train.profile": profile}
    given = {key: text for key, text in texts.items() if text is not None}
    recipe = load_recipe(location, overrides or (), given)
    if not is_url(recipe.root):
        _check_root(recipe.root)
    return recipe


def _check_root(root: str) -> None:
    """Raise `UserError` for a local root where no folder can be; a run makes one that does not exist yet."""
    for place in (Path(root), *Path(root).parents):
        if place.is_dir():
            return
        kind = kind_of_entry(place)
        if kind is not None:
            raise UserError(f"root={root}: {place} is {kind}: set --root to a folder or a URL")


def check_corpora(known: Collection[str], corpora: Sequence[str] | None) -> None:
    """Raise `UserError` for a corpus that is not among those known, a recipe's or a root's."""
    for name in corpora or ():
        if name not in known:
            raise UserError(f"--corpus {name}: no such corpus: use one of {', '.join(known)}")


def print_line(line: str) -> None:
    """Print a line at once, so that a log shows it when it happens."""
    print(line, flush=True)
