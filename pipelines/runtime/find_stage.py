"""Finds a stage's folder from what a user names: the folder itself, a folder above it, or a recipe."""

from collections.abc import Iterator, Sequence

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import MANIFEST_FILE, STAGE_FILE
from dualtoken.pipelines.core.stage import label
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.plan import Planner, first_to_run
from dualtoken.pipelines.runtime.stage_folder import read_stage, root_of, stage_folders
from dualtoken.pipelines.runtime.stages import get_stage

_MOST_NAMED = 8
"""Folders that a message names before it counts the rest."""


def holds_stages(folder: str) -> bool:
    """Tell whether a path or URL is a stage's folder, or has one below it."""
    return next(stage_folders(Store(folder)), None) is not None


def folder_below(place: str, stage: str) -> Store:
    """Return the one folder of a stage at or below a path or URL; of several, the one that is finished.

    Raises `UserError`, which names what lies there, where there is none or more than one.
    """
    top = Store(place)
    if top.exists(MANIFEST_FILE) and not top.exists(STAGE_FILE):
        return top  # copied without the record of what it is, which its manifest says too
    others: list[str] = []
    found: list[Store] = []
    for url in stage_folders(top):
        store = Store(url)
        try:
            record = read_stage(store)
        except UserError:
            if url == top.url:
                raise
            others.append(f"{url}, which cannot be read")
            continue
        if record.stage == stage:
            found.append(store)
        else:
            others.append(label(record.stage, record.corpus))
    if not found:
        raise UserError(_no_such_folder(place, stage, others))
    return _only_one(place, stage, found)


def folder_of_recipe(recipe: Recipe, stage: str, corpora: Sequence[str] | None = None) -> Store:
    """Return a stage's folder of a recipe, on the corpus named where the recipe has several.

    Raises `UserError` where it has not been begun, or where there are several.
    """
    planned = list(Planner(recipe).on_corpora(stage, corpora))
    begun: list[Store] = []
    for plan in planned:
        if plan.job and plan.job.store().exists(STAGE_FILE):
            begun.append(plan.job.store())
    if not begun:
        raise UserError(
            f"{recipe.name} has no {_folder_of(stage)} below {recipe.root}: "
            f"run `dualtoken {first_to_run(planned)}` first"
        )
    return _only_one(recipe.name, stage, begun, " or the corpus with --corpus")


def folders_of_recipe(recipe: Recipe) -> Iterator[str]:
    """Yield the folders of a recipe's stages that have been begun."""
    for planned in Planner(recipe).plan():
        if planned.job and planned.job.store().exists(STAGE_FILE):
            yield planned.job.folder


def runs_below(place: str) -> dict[str, set[str]]:
    """Return the roots of the runs at or below a path or URL, each with the corpora that it has stages of."""
    found: dict[str, set[str]] = {}
    for url in stage_folders(Store(place)):
        store = Store(url)
        record = read_stage(store)
        corpora = found.setdefault(root_of(store, record), set())
        if record.corpus:
            corpora.add(record.corpus)
    return found


def require_whole(store: Store) -> None:
    """Raise `UserError` for a stage's folder that is unfinished."""
    if not store.exists(MANIFEST_FILE):
        stage = read_stage(store).stage
        raise UserError(
            f"{store.url} has no {MANIFEST_FILE}: it is unfinished; run `dualtoken {stage}` again"
        )


def _only_one(place: str, stage: str, found: Sequence[Store], other_advice: str = "") -> Store:
    finished = [store for store in found if store.exists(MANIFEST_FILE)]
    candidates = finished or found
    if len(candidates) == 1:
        return candidates[0]
    urls = _listed([store.url for store in candidates])
    raise UserError(f"{place} has {len(candidates)} folders of {stage}: give one of {urls}{other_advice}")


def _no_such_folder(place: str, stage: str, others: Sequence[str]) -> str:
    advice = f"give {_folder_of(stage)}, a folder above it, or a recipe"
    if others:
        held = _listed(list(dict.fromkeys(others)))
        return f"{place} holds nothing of the stage {stage}, only of {held}: {advice}"
    return f"{place} is no stage's folder and holds none: {advice}"


def _folder_of(stage: str) -> str:
    """Return how the folder of a stage is spelt below a root."""
    return get_stage(stage).folder.format(corpus="<corpus>") + "/<fingerprint>"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED])
    if len(names) > _MOST_NAMED:
        return f"{shown} and {len(names) - _MOST_NAMED} more"
    return shown
