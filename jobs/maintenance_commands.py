"""The commands that keep a run's root in order: `gc`, `explain`, `forget`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from dualtoken.infra.machine_trouble import is_machine_trouble
from dualtoken.infra.request_urls import host_of
from dualtoken.infra.storage import Store
from dualtoken.jobs.options import CorpusOption, RecipeArgument, RootOption, SetOption
from dualtoken.jobs.recipe_arguments import open_recipe, print_line
from dualtoken.jobs.stage_places import RecipeOptions, find_run
from dualtoken.pipelines.core.messages import pluralized
from dualtoken.pipelines.core.tombstones import Tombstones, url_hash
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.maintenance import garbage
from dualtoken.pipelines.maintenance.explain import explain as explain_stages
from dualtoken.pipelines.maintenance.forget import forget as forget_samples
from dualtoken.pipelines.maintenance.forget_plan import ForgetPlan, affected_files, plan_forget
from dualtoken.pipelines.runtime.changed_code import changed_code
from dualtoken.pipelines.runtime.plan import Planner

KEY_DIGITS = 32

DeleteOption = Annotated[bool, typer.Option("--delete", help="Do it; without this nothing is changed.")]
PlacesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="ROOT|RECIPE...", help="A run's root, or all recipes whose outputs you want kept."
    ),
]
RunArgument = Annotated[str, typer.Argument(metavar="RECIPE|ROOT", help="A recipe, or a run's root.")]
AgeOption = Annotated[
    float,
    typer.Option("--older-than", min=0, help="Hours; what is younger may be in the making and stays."),
]
OtherArgument = Annotated[
    str | None, typer.Argument(metavar="OTHER", help="Another recipe; by default what lies below the root.")
]
KeysOption = Annotated[
    Path | None, typer.Option("--keys", help="A file of sample keys, hexadecimal, one a line.")
]
UrlOption = Annotated[
    list[str] | None, typer.Option("--url", help="The samples of this address; may be repeated.")
]
HostOption = Annotated[
    list[str] | None, typer.Option("--url-host", help="Of this host and those below it; may be repeated.")
]


def gc(
    where: PlacesArgument,
    overrides: SetOption = None,
    root: RootOption = None,
    older_than: AgeOption = 24.0,
    delete: DeleteOption = False,
) -> None:
    """List what nothing needs: left-overs, files without a receipt, and with recipes unused fingerprints."""
    is_root = len(where) == 1 and Store(where[0]).fs.isdir(Store(where[0]).path())
    if is_root:
        if overrides or root:
            raise UserError(
                f"gc {where[0]} is a run's root, which takes no --set and no --root: "
                "leave them out, or give recipes"
            )
        recipes = []
        store = Store(where[0])
    else:
        recipes = [open_recipe(location, overrides, root) for location in where]
        store = garbage.common_root(recipes)
    undecided = garbage.undecided(recipes)
    found = list(garbage.find_garbage(store, recipes, older_than * 3600))
    _print_garbage(store, found)
    if delete:
        kept = garbage.delete(store, found)
        for item in kept:
            print_line(f"{store.path()}/{item.name}: kept, it changed since it was listed")
        found = [item for item in found if item not in kept]
    done = "deleted" if delete else "to delete; nothing is changed without --delete"
    for kind, (files, size) in garbage.totals(found).items():
        print_line(f"{kind}: {pluralized(files, 'file')}, {size:,} bytes {done}")
    if not found:
        print_line(f"{store.url}: nothing that is older than {older_than:g} hours and not needed")
    for label in undecided:
        print_line(f"{label}: its inputs are unfinished, so each fingerprint of it may be needed and is kept")
    if is_root:
        print_line("old fingerprints are found where recipes are given, in place of a root")


def _print_garbage(store: Store, found: Iterable[garbage.Garbage]) -> None:
    for item in found:
        inside = f" in {pluralized(len(item.files), 'file')}" if item.name.endswith("/") else ""
        print_line(f"{store.path()}/{item.name}: {item.kind}, {item.bytes:,} bytes{inside}")


def explain(
    recipe: RecipeArgument,
    other: OtherArgument = None,
    overrides: SetOption = None,
    root: RootOption = None,
) -> None:
    """Say which key changes each stage's fingerprint, in it or in an input: from RECIPE to OTHER.

    Without OTHER, from what lies below the root to RECIPE. `--set` is for RECIPE.
    """
    planner = Planner(open_recipe(recipe, overrides, root))
    explanations = explain_stages(planner)
    if other is not None:
        explanations = explain_stages(Planner(open_recipe(other, None, root)), planner)
    for explanation in explanations:
        print_line(str(explanation))
        for change in explanation.changes:
            print_line(f"    {change}")
    for changed in changed_code(planner.plan()):
        print_line(f"{changed}; the code is no part of it")


def forget(
    place: RunArgument,
    keys: KeysOption = None,
    url: UrlOption = None,
    url_host: HostOption = None,
    corpus: CorpusOption = None,
    overrides: SetOption = None,
    root: RootOption = None,
    delete: DeleteOption = False,
) -> None:
    """Take samples out of all that was made from them below the root, and never fetch them again."""
    run = find_run(place, RecipeOptions(overrides, root), corpus)
    if not (keys or url or url_host):
        print_line(
            "without --keys, --url and --url-host nothing new is forgotten: "
            "only what an earlier call left is looked for"
        )
    wanted = _wanted(keys, url or (), url_host or ())
    for name in run.corpora:
        plan = plan_forget(run.root, name, wanted)
        _print_plan(plan)
        if delete:
            forget_samples(plan, print_line)
        elif not plan.affected:
            print_line(f"{name}: no such sample")
    if not delete:
        print_line("nothing is changed without --delete")


def _wanted(keys: Path | None, urls: Sequence[str], hosts: Sequence[str]) -> Tombstones:
    return Tombstones(
        keys=_read_keys(keys) if keys else frozenset(),
        urls=frozenset(map(url_hash, urls)),
        hosts=frozenset(map(_host, hosts)),
    )


def _host(text: str) -> str:
    """Return the host that `--url-host` names: a name or an IP address, or a URL that has it."""
    name = text.strip().removeprefix("*.").lstrip(".")
    if name.count(":") > 1 and "[" not in name and "/" not in name:
        name = f"[{name}]"  # an IPv6 address
    if "//" not in name:
        name = f"//{name}"
    host = host_of(name)
    if not host:
        raise UserError(f"--url-host {text!r} names no host: give one such as img.example.org")
    return host


def _print_plan(plan: ForgetPlan) -> None:
    for folder in plan.affected:
        cut = "; a call was cut short here" if folder.begun else ""
        print_line(f"{folder.store.url}: {folder.num_samples} samples in {len(folder.shards)} shards{cut}")
        for file in affected_files(folder):
            print_line(f"    {file}")
    for store, record in plan.removed:
        print_line(f"{store.url}: a {record.stage} that may show them")
    for store in plan.models:
        print_line(
            f"{store.url}: learnt from the corpus and stays; "
            "to be rid of that, delete this folder and run `dualtoken run`"
        )


def _read_keys(file: Path) -> frozenset[str]:
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        if is_machine_trouble(error):
            raise
        raise UserError(f"--keys {file} cannot be read: {error}") from None
    keys = {line.strip().lower() for line in lines if line.strip()}
    wrong = [key for key in keys if len(key) != KEY_DIGITS or set(key) - set("0123456789abcdef")]
    if wrong:
        raise UserError(
            f"--keys {file}: {min(wrong)!r} is no sample key: give {KEY_DIGITS} hexadecimal digits a line"
        )
    return frozenset(keys)
