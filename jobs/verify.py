"""`dualtoken verify`: datasets against their receipts, and the repair of what differs."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated

import typer

from dualtoken.infra.storage import Store
from dualtoken.jobs.options import InProcessOption, RootOption, SetOption
from dualtoken.jobs.recipe_arguments import print_line
from dualtoken.jobs.stage_places import RecipeOptions, named_recipe
from dualtoken.pipelines.config.cluster import ClusterConfig
from dualtoken.pipelines.core.messages import pluralized
from dualtoken.pipelines.errors import ExitCode, UnitsFailed, UserError
from dualtoken.pipelines.maintenance.findings import VerifiedFolder
from dualtoken.pipelines.maintenance.repair import in_order_of_work
from dualtoken.pipelines.maintenance.repair import repair as repair_folder
from dualtoken.pipelines.maintenance.verify import verify as verify_below
from dualtoken.pipelines.maintenance.verify import verify_folders
from dualtoken.pipelines.runtime.find_stage import folders_of_recipe
from dualtoken.pipelines.runtime.open_executor import open_executor

Check = Callable[[], Iterable[VerifiedFolder]]
"""Checks the stages' folders that an argument names."""

PathArgument = Annotated[
    str,
    typer.Argument(
        metavar="PATH", help="A run's root, a corpus, or one stage's folder, a path or URL; or a recipe."
    ),
]
RepairOption = Annotated[
    bool, typer.Option("--repair", help="Run again the units whose files are not as committed.")
]
DeepOption = Annotated[
    bool, typer.Option("--deep", help="Look at every row too, and encode a sample of them again.")
]
SampleOption = Annotated[
    int, typer.Option("--sample", min=0, help="Rows of a token dataset that --deep encodes again.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Which rows --deep chooses.")]
ToleranceOption = Annotated[
    float | None,
    typer.Option(
        "--tolerance",
        min=0,
        max=1,
        help="Share of a row's codes that may differ; by default none on the device that made them.",
    ),
]


def verify(
    path: PathArgument,
    repair: RepairOption = False,
    deep: DeepOption = False,
    sample: SampleOption = 64,
    seed: SeedOption = 0,
    tolerance: ToleranceOption = None,
    in_process: InProcessOption = False,
    overrides: SetOption = None,
    root: RootOption = None,
) -> None:
    """Read datasets against their receipts and name every missing, extra, truncated or altered file.

    Folders that are unfinished, and as committed so far, are named and no failure, unless PATH is one.
    """
    check = _check_of(path, RecipeOptions(overrides, root))
    if deep:
        check = _deep_check(check, sample, seed, tolerance)
    named = Store(path).url
    damaged: list[VerifiedFolder] = []
    for folder in check():
        _print_findings(folder)
        is_failure = not folder.is_sound or folder.folder == named
        if folder.findings and is_failure:
            damaged.append(folder)
    if damaged and repair:
        damaged = _repair_all(damaged, check, in_process=in_process)
    if damaged:
        raise typer.Exit(ExitCode.BUG)


def _check_of(path: str, options: RecipeOptions) -> Check:
    """Return the check of the folders at or below a path, or of those that a recipe's stages have begun."""
    recipe = named_recipe(path, options)
    if recipe is None:
        return partial(verify_below, path)
    folders = list(folders_of_recipe(recipe))
    if not folders:
        raise UserError(f"{path}: no stage of it has been begun below {recipe.root}: run it first")
    return partial(verify_folders, folders)


def _deep_check(check: Check, sample: int, seed: int, tolerance: float | None) -> Check:
    # PyTorch takes seconds.
    from dualtoken.pipelines.maintenance.deep_verify import DeepSettings, deep_verify  # noqa: PLC0415

    settings = DeepSettings(sample, seed, tolerance)

    def check_deeply() -> Iterable[VerifiedFolder]:
        for folder in check():
            yield deep_verify(folder, settings, print_line)

    return check_deeply


def _print_findings(folder: VerifiedFolder) -> None:
    for finding in folder.findings:
        print_line(str(finding))
    if not folder.findings:
        files = pluralized(folder.files, "file")
        print_line(f"{folder.folder}: {files}, {folder.bytes:,} bytes, all as committed")


def _repair_all(damaged: list[VerifiedFolder], check: Check, *, in_process: bool) -> list[VerifiedFolder]:
    """Repair what can be repaired, and return the folders that are still damaged."""
    with open_executor(ClusterConfig(), in_process=in_process) as executor:
        for folder in in_order_of_work(damaged):
            try:
                repair_folder(folder, executor, print_line)
            except (UserError, UnitsFailed) as error:  # the other folders are repaired all the same
                print_line(f"{folder.folder}: not repaired: {error}")
    repaired = {folder.folder for folder in damaged}
    still_damaged: list[VerifiedFolder] = []
    for folder in check():
        if folder.folder in repaired:
            _print_findings(folder)
            if folder.findings:
                still_damaged.append(folder)
    return still_damaged
