"""`dualtoken verify`: datasets against their receipts, and the repair of what differs."""

from collections.abc import Callable, Iterable
from typing import Annotated

import typer

from dualtoken.infra.storage import Store
from dualtoken.jobs.options import InProcessOption
from dualtoken.jobs.recipe_arguments import print_line
from dualtoken.pipelines.config.cluster import ClusterConfig
from dualtoken.pipelines.core.messages import pluralized
from dualtoken.pipelines.errors import ExitCode, UnitsFailed, UserError
from dualtoken.pipelines.maintenance.findings import VerifiedFolder
from dualtoken.pipelines.maintenance.repair import in_order_of_work
from dualtoken.pipelines.maintenance.repair import repair as repair_folder
from dualtoken.pipelines.maintenance.verify import verify as verify_folders
from dualtoken.pipelines.runtime.open_executor import open_executor

Check = Callable[[str], Iterable[VerifiedFolder]]
"""Checks the stages' folders at or below a path."""

PathArgument = Annotated[
    str, typer.Argument(metavar="PATH", help="A run's root, a corpus, or one stage's folder; a path or URL.")
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
    float,
    typer.Option(
        "--tolerance", min=0, max=1, help="Share of a row's codes that may differ, made on another device."
    ),
]


def verify(
    path: PathArgument,
    repair: RepairOption = False,
    deep: DeepOption = False,
    sample: SampleOption = 64,
    seed: SeedOption = 0,
    tolerance: ToleranceOption = 0.0,
    in_process: InProcessOption = False,
) -> None:
    """Read datasets against their receipts and name every missing, extra, truncated or altered file.

    Folders that are unfinished, and as committed so far, are named and no failure, unless PATH is one.
    """
    check = _deep_check(sample, seed, tolerance) if deep else verify_folders
    named = Store(path).url
    damaged: list[VerifiedFolder] = []
    for folder in check(path):
        _print_findings(folder)
        is_failure = not folder.is_sound or folder.folder == named
        if folder.findings and is_failure:
            damaged.append(folder)
    if damaged and repair:
        damaged = _repair_all(path, damaged, check, in_process=in_process)
    if damaged:
        raise typer.Exit(ExitCode.BUG)


def _deep_check(sample: int, seed: int, tolerance: float) -> Check:
    # PyTorch takes seconds.
    from dualtoken.pipelines.maintenance.deep_verify import DeepSettings, deep_verify  # noqa: PLC0415

    settings = DeepSettings(sample, seed, tolerance)

    def check(path: str) -> Iterable[VerifiedFolder]:
        for folder in verify_folders(path):
            yield deep_verify(folder, settings, print_line)

    return check


def _print_findings(folder: VerifiedFolder) -> None:
    for finding in folder.findings:
        print_line(str(finding))
    if not folder.findings:
        files = pluralized(folder.files, "file")
        print_line(f"{folder.folder}: {files}, {folder.bytes:,} bytes, all as committed")


def _repair_all(
    path: str, damaged: list[VerifiedFolder], check: Check, *, in_process: bool
) -> list[VerifiedFolder]:
    """Repair what can be repaired, and return the folders that are still damaged."""
    with open_executor(ClusterConfig(), in_process=in_process) as executor:
        for folder in in_order_of_work(damaged):
            try:
                repair_folder(folder, executor, print_line)
            except (UserError, UnitsFailed) as error:  # the other folders are repaired all the same
                print_line(f"{folder.folder}: not repaired: {error}")
    repaired = {folder.folder for folder in damaged}
    still_damaged: list[VerifiedFolder] = []
    for folder in check(path):
        if folder.folder in repaired:
            _print_findings(folder)
            if folder.findings:
                still_damaged.append(folder)
    return still_damaged
