"""Restores what a check of a stage's folder found damaged, by doing the units that made it again."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

from pydantic import ValidationError

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.core.receipts import (
    MANIFEST_FILE,
    STAGE_FILE,
    Receipt,
    clock_problem,
    done_units,
    receipt_mismatch,
    receipt_name,
)
from dualtoken.pipelines.core.stage import StageJob, Work
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.maintenance.findings import FindingKind, VerifiedFolder
from dualtoken.pipelines.runtime.executor import Executor
from dualtoken.pipelines.runtime.finish import finish
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.runtime.run import run_units
from dualtoken.pipelines.runtime.stage_folder import in_order, read_stage, root_of


def in_order_of_work(damaged: Iterable[VerifiedFolder]) -> list[VerifiedFolder]:
    """Sort folders so that what others are made from is restored before them; those that do not say what they are come last."""
    return sorted(damaged, key=_place)


def _place(one: VerifiedFolder) -> tuple[bool, tuple[int, bool]]:
    try:
        return False, in_order(read_stage(Store(one.folder)))
    except UserError:
        return True, (0, False)


def repair(damaged: VerifiedFolder, executor: Executor, print_line: PrintLine) -> None:
    """Do the damaged units of a stage again, put what is missing or altered, and write a finished stage's manifest anew.

    Nothing stored is replaced before the same bytes as at first are made. Raises `UserError` where the stage's inputs are no longer
    what it was made from, `UnitsFailed` where a unit failed or gave other bytes.
    """
    store = Store(damaged.folder)
    if damaged.is_sound:
        print_line(f"{store.url} is unfinished, not damaged: `dualtoken run` goes on with it")
        return
    if (STAGE_FILE, FindingKind.MISSING) in {(finding.name, finding.kind) for finding in damaged.findings}:
        raise UserError(
            f"{store.url} lost its {STAGE_FILE}: run the stage's command with its recipe, which writes it again"
        )
    if elsewhere := sorted({finding.folder for finding in damaged.findings} - {store.url}):
        raise UserError(
            f"{store.url} has its captions in {elsewhere[0]}: run `dualtoken verify {elsewhere[0]} --repair` first"
        )
    job = _job_of(store)
    ended = FindingKind.UNFINISHED not in {finding.kind for finding in damaged.findings}
    again = {
        finding.unit for finding in damaged.findings if finding.unit and finding.kind != FindingKind.MISDATED
    }
    if ended:
        again |= {unit.id for unit in job.units} - done_units(store)
    restores = {unit: _committed(store, unit, job.fingerprint) for unit in again}
    if replaced := _units(damaged, FindingKind.WRONG):
        store.remove(MANIFEST_FILE)  # first, so that the stage is known to be unfinished if this is cut short
    for unit in replaced:
        store.remove(receipt_name(unit))
        del restores[unit]
    units = tuple(unit for unit in job.units if unit.id in again)
    run_units([Work(replace(job, restores=restores), units)] if units else [], executor, print_line)
    _redate(store, damaged)
    if ended:
        finish(job)
    for unit in sorted(again):
        print_line(f"restored unit {unit} of {damaged.folder}")


def _units(damaged: VerifiedFolder, kind: FindingKind) -> set[str]:
    return {finding.unit for finding in damaged.findings if finding.unit and finding.kind == kind}


def _job_of(store: Store) -> StageJob:
    record = read_stage(store)
    recipe = Recipe.model_validate(record.recipe | {"root": root_of(store, record)})
    job = Planner(recipe).one(record.stage, record.corpus).job
    if job is None or job.fingerprint != record.fingerprint:
        raise UserError(
            f"{store.url} cannot be repaired: its inputs have changed or are unfinished; run `dualtoken run` instead"
        )
    return job


def _redate(store: Store, damaged: VerifiedFolder) -> None:
    """Set receipts that are of times to come to now; what they say of the files stays."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    for unit in sorted(_units(damaged, FindingKind.MISDATED)):
        receipt = _committed(store, unit, None)
        if receipt and clock_problem(receipt.finished_at):
            store.put_bytes(receipt.model_copy(update={"finished_at": now}).to_bytes(), receipt_name(unit))


def _committed(store: Store, unit: str, print_: str | None) -> Receipt | None:
    """Return a unit's receipt; None where it is lost, unreadable, or another one's."""
    try:
        receipt = Receipt.from_bytes(store.read(receipt_name(unit)))
    except (FileNotFoundError, ValidationError):
        return None
    return None if receipt_mismatch(receipt, unit, print_) else receipt
