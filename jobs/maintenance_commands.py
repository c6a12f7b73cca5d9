"""The commands that keep a run's root in order: `gc`, `explain`, `forget`."""

from pathlib import Path
from typing import Annotated

import typer

from dualtoken.infra.storage import Store
from dualtoken.jobs.options import CorpusOption, RecipeArgument, RootOption, SetOption
from dualtoken.jobs.recipe_arguments import check_corpora, open_recipe, print_line
from dualtoken.pipelines.core.messages import pluralized
from dualtoken.pipelines.errors import UserError

DeleteOption = Annotated[bool, typer.Option("--delete", help="Do it; without this nothing is changed.")]


def gc(
    where: Annotated[
        list[str],
        typer.Argument(
            metavar="ROOT|RECIPE...", help="A run's root, or all recipes whose outputs you want kept."
        ),
    ],
    overrides: SetOption = None,
    root: RootOption = None,
    older_than: Annotated[
        float,
        typer.Option("--older-than", min=0, help="Hours; what is younger may be in the making and stays."),
    ] = 24.0,
    delete: DeleteOption = False,
) -> None:
    """List what nothing needs: left-overs, files without a receipt and, given recipes, fingerprints that none refers to."""
    from dualtoken.pipelines.maintenance import garbage  # noqa: PLC0415

    is_root = len(where) == 1 and Store(where[0]).fs.isdir(Store(where[0]).path())
    if is_root and (overrides or root):
        raise UserError(
            f"gc {where[0]} is a run's root, which takes no --set and no --root: leave them out, or give recipes"
        )
    recipes = [] if is_root else [open_recipe(one, overrides, root) for one in where]
    store = Store(where[0]) if is_root else garbage.common_root(recipes)
    undecided = garbage.undecided(recipes)
    found = list(garbage.find_garbage(store, recipes, older_than * 3600))
    for one in found:
        inside = f" in {pluralized(len(one.files), 'file')}" if one.name.endswith("/") else ""
        print_line(f"{store.path(one.name)}: {one.kind}, {one.bytes:,} bytes{inside}")
    left = garbage.delete(store, found) if delete else []
    for one in left:
        print_line(f"{store.path(one.name)}: kept, it changed since it was listed")
    found = [one for one in found if one not in left]
    done = "deleted" if delete else "to delete; nothing is changed without --delete"
    for kind, (files, size) in garbage.totals(found).items():
        print_line(f"{kind}: {pluralized(files, 'file')}, {size:,} bytes {done}")
    if not found:
        print_line(f"{store.url}: nothing that is older than {older_than:g} hours and not needed")
    for label in undecided:
        print_line(f"{label}: its inputs are unfinished, so each fingerprint of it may be needed and is kept")
    if is_root:
        print_line("old fingerprints are found where recipes are given, in place of a root")


def explain(
    recipe: RecipeArgument,
    other: Annotated[
        str | None,
        typer.Argument(metavar="OTHER", help="Another recipe; by default what lies below the root."),
    ] = None,
    overrides: SetOption = None,
    root: RootOption = None,
) -> None:
    """Say which key changed the fingerprint of each step, here or in a step that it reads; `--set` is of RECIPE alone."""
    from dualtoken.pipelines.maintenance.explain import explain as explain_steps  # noqa: PLC0415
    from dualtoken.pipelines.runtime.plan import Planner  # noqa: PLC0415

    ours, theirs = (
        Planner(open_recipe(recipe, overrides, root)),
        Planner(open_recipe(other, None, root)) if other else None,
    )
    for explanation in explain_steps(ours, theirs):
        print_line(str(explanation))
        for change in explanation.changes:
            print_line(f"    {change}")


def forget(
    recipe: RecipeArgument,
    keys: Annotated[
        Path | None, typer.Option("--keys", help="A file of sample keys, hexadecimal, one a line.")
    ] = None,
    url: Annotated[
        list[str] | None, typer.Option("--url", help="The samples of this address; may be repeated.")
    ] = None,
    url_host: Annotated[
        list[str] | None, typer.Option("--url-host", help="Of this host and those below it; may be repeated.")
    ] = None,
    corpus: CorpusOption = None,
    overrides: SetOption = None,
    root: RootOption = None,
    delete: DeleteOption = False,
) -> None:
    """Take samples out of all that was made from them below the root, and never fetch them again."""
    from dualtoken.pipelines.core.tombstones import Tombstones, url_hash  # noqa: PLC0415
    from dualtoken.pipelines.maintenance.forget import forget as take_out  # noqa: PLC0415
    from dualtoken.pipelines.maintenance.forget_plan import affected_files, plan_forget  # noqa: PLC0415

    settings = open_recipe(recipe, overrides, root)
    check_corpora(settings, corpus)
    if not (keys or url or url_host):
        print_line(
            "without --keys, --url and --url-host nothing new is forgotten: only what an earlier call left is looked for"
        )
    hosts = frozenset(host.lower().strip(".") for host in url_host or ())
    wanted = Tombstones(
        keys=_read_keys(keys) if keys else frozenset(), urls=frozenset(map(url_hash, url or ())), hosts=hosts
    )
    for name in corpus or list(settings.corpora):
        plan = plan_forget(Store(settings.root), name, wanted)
        for one in plan.affected:
            cut = "; a call was cut short here" if one.begun else ""
            print_line(f"{one.store.url}: {one.num_samples} samples in {len(one.shards)} shards{cut}")
            for file in affected_files(one):
                print_line(f"    {file}")
        for store in plan.reports:
            print_line(f"{store.url}: a report that may show them")
        for store in plan.models:
            print_line(
                f"{store.url}: learnt from the corpus and stays; to be rid of that, delete this folder and run `dualtoken run`"
            )
        if delete:
            take_out(plan, print_line)
        elif not plan.affected:
            print_line(f"{name}: no such sample")
    if not delete:
        print_line("nothing is changed without --delete")


def _read_keys(file: Path) -> frozenset[str]:
    try:
        keys = frozenset(
            line.strip().lower() for line in file.read_text(encoding="ascii").splitlines() if line.strip()
        )
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--keys {file} cannot be read: {error}") from None
    if wrong := [key for key in keys if len(key) != 32 or set(key) - set("0123456789abcdef")]:
        raise UserError(f"--keys {file}: {min(wrong)!r} is no sample key: give 32 hexadecimal digits a line")
    return keys
