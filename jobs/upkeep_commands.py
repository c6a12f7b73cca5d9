"""The commands that keep a run's root in order: `gc`, `explain`, `forget`."""

from typing import Annotated

import typer

from infra.storage import Store
from jobs.options import RecipeArgument, RootOption, SetOption
from jobs.session import open_recipe, say

DeleteOption = Annotated[bool, typer.Option("--delete", help="Do it; without this nothing is changed.")]


def gc(
    where: Annotated[list[str], typer.Argument(metavar="ROOT|RECIPE...", help="A run's root, or all recipes whose outputs you want kept.")],
    overrides: SetOption = None,
    root: RootOption = None,
    older_than: Annotated[float, typer.Option("--older-than", min=0, help="Hours; what is younger may be in the making and stays.")] = 24.0,
    delete: DeleteOption = False,
) -> None:
    """List what nothing needs: left-overs, files without a receipt and, given recipes, fingerprints that none refers to."""
    from pipelines import garbage  # noqa: PLC0415

    is_root = len(where) == 1 and Store(where[0]).fs.isdir(Store(where[0]).path())
    recipes = [] if is_root else [open_recipe(one, overrides, root) for one in where]
    store = Store(where[0]) if is_root else garbage.common_root(recipes)
    found = list(garbage.find_garbage(store, recipes, older_than * 3600))
    for one in found:
        say(f"{store.path(one.name)}: {one.kind}, {one.bytes:,} bytes{f' in {len(one.files)} files' if one.name.endswith('/') else ''}")
    if delete:
        garbage.delete(store, found)
    done = "deleted" if delete else "to delete; nothing is changed without --delete"
    for kind, (files, size) in garbage.totals(found).items():
        say(f"{kind}: {files:,} files, {size:,} bytes {done}")
    if not found:
        say(f"{store.url}: nothing that is older than {older_than:g} hours and not needed")


def explain(
    recipe: RecipeArgument,
    other: Annotated[str | None, typer.Argument(metavar="OTHER", help="Another recipe; by default what lies below the root.")] = None,
    overrides: SetOption = None,
    root: RootOption = None,
) -> None:
    """Say which key changed the fingerprint of each step, here or in a step that it reads; `--set` is of RECIPE alone."""
    from pipelines.explain import explain as explain_steps  # noqa: PLC0415
    from pipelines.plan import Planner  # noqa: PLC0415

    ours, theirs = Planner(open_recipe(recipe, overrides, root)), Planner(open_recipe(other, None, root)) if other else None
    for explanation in explain_steps(ours, theirs):
        say(str(explanation))
        for change in explanation.changes:
            say(f"    {change}")
