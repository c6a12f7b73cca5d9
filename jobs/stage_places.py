"""Stages' folders as arguments name them: a folder, one above it, or a recipe as `run` takes it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store
from dualtoken.jobs.recipe_arguments import check_corpora, open_recipe
from dualtoken.model.config.base import is_url
from dualtoken.pipelines.config.mistakes import closest
from dualtoken.pipelines.config.parse import shipped_recipes
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.find_stage import (
    folder_below,
    folder_of_recipe,
    holds_stages,
    require_whole,
    runs_below,
)

_RECIPE_SUFFIXES = (".yaml", ".yml")
TOKENIZER = "train"
"""Stage whose folder is a saved tokenizer."""
UNIFIED = "mllm"
"""Stage whose folder is a saved unified model."""


class RecipeOptions(NamedTuple):
    """The options that go with a recipe, and with nothing else that names a stage's folder."""

    overrides: Sequence[str] | None = None
    root: str | None = None
    corpora: Sequence[str] | None = None

    def refuse_beside(self, place: str) -> None:
        """Raise `UserError` if any was given beside a place that is no recipe."""
        options = {"--set": self.overrides, "--root": self.root, "--corpus": self.corpora}
        given = [name for name, value in options.items() if value]
        if given:
            raise UserError(
                f"{place} is no recipe, and takes no {' and no '.join(given)}: "
                "leave that out, or give a recipe"
            )


class Run(NamedTuple):
    """A run's root, and those of its corpora that a command is to look at."""

    root: Store
    corpora: list[str]


def find_run(place: str, options: RecipeOptions, corpora: Sequence[str] | None) -> Run:
    """Return the run that an argument names by its recipe or its root, with all corpora or some of them."""
    recipe = named_recipe(place, options)
    if recipe is not None:
        root = Store(recipe.root)
        known = list(recipe.corpora)
    else:
        root = Store(place)
        known = _corpora_of_root(place, root)
    check_corpora(known, corpora)
    return Run(root, list(corpora or known))


def _corpora_of_root(place: str, root: Store) -> list[str]:
    runs = runs_below(place)
    if set(runs) == {root.url}:
        return sorted(runs[root.url])
    if not runs:
        raise UserError(f"{place} is no run's root, and holds none: give one, or a recipe")
    raise UserError(f"{place} is no run's root: give {' or '.join(sorted(runs))}, or a recipe")


def find_stage(place: str, stage: str, options: RecipeOptions) -> Store:
    """Return the folder of a stage that an argument names; raises `UserError` unless it is exactly one."""
    recipe = named_recipe(place, options)
    if recipe is None:
        return folder_below(place, stage)
    return folder_of_recipe(recipe, stage, options.corpora)


@contextmanager
def find_model(model: str, options: RecipeOptions, training: str = TOKENIZER) -> Iterator[str]:
    """Enter for a saved model's local folder or hub name, whose files are local as long as it is open.

    `training` is the stage that trains such models.

    The argument may also be a recipe, or a folder above a finished training's. Raises `UserError`.
    """
    # The hub's client takes a moment that other commands need not.
    from dualtoken.model.hub.model_name import CONFIG, local_folder, require_files  # noqa: PLC0415

    folder = Path(model)
    is_recipe = model.endswith(_RECIPE_SUFFIXES) or (model in shipped_recipes() and not folder.is_dir())
    is_saved = (folder / CONFIG).is_file()
    if is_recipe or is_url(model) or (folder.is_dir() and not is_saved and holds_stages(model)):
        store = find_stage(model, training, options)
        require_whole(store)
        with scratch_folder() as scratch:
            yield str(store.local_folder(Path(scratch)))
        return
    options.refuse_beside(model)
    try:
        saved = local_folder(model)
        if saved is not None:
            require_files(saved)
    except ValueError as error:
        raise UserError(str(error)) from None
    yield model


def named_recipe(place: str, options: RecipeOptions) -> Recipe | None:
    """Return the recipe that an argument names, or None where it names a folder.

    Raises `UserError` for what is neither, and for a recipe's options beside a folder.
    """
    if names_recipe(place):
        recipe = open_recipe(place, options.overrides, options.root)
        check_corpora(recipe.corpora, options.corpora)
        return recipe
    if not is_url(place) and not Path(place).is_dir():
        match = closest(place, shipped_recipes())
        hint = f"did you mean the recipe {match}? Else " if match else ""
        raise UserError(
            f"{place} is neither a folder nor a recipe: {hint}give one that is there, "
            "or a shipped recipe such as scenes"
        )
    options.refuse_beside(place)
    return None


def names_recipe(place: str) -> bool:
    """Tell whether an argument names a recipe: a file, or a shipped one where no folder hides it."""
    if place.endswith(_RECIPE_SUFFIXES) or Path(place).is_file():
        return True
    return place in shipped_recipes() and not (Path(place).is_dir() and holds_stages(place))
