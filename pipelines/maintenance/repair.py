"""Restores what `verify` found damaged in a stage's folder, by doing again the units that made it."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.core.receipts import (
    MANIFEST_FILE,
    STAGE_FILE,
    DamagedRecordError,
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
from dualtoken.pipelines.runtime.stage_folder import in_order, read_stage, recipe_of
from dualtoken.pipelines.tokens.audit import RunningAudit


def in_order_of_work(damaged: Iterable[VerifiedFolder]) -> list[VerifiedFolder]:
    """Sort folders so that inputs are restored before what is made from them; unknown stages come last."""
    return sorted(damaged, key=_order)


def _order(folder: VerifiedFolder) -> tuple[bool, tuple[int, bool]]:
    try:
        return False, in_order(read_stage(Store(folder.folder)))
    except UserError:
        return True, (0, False)


def repair(damaged: VerifiedFolder, executor: Executor, print_line: PrintLine) -> None:
    """Do a stage's damaged units again, restore their files, and write a finished stage's manifest anew.

    Nothing stored is replaced before the same bytes as at first are made. Raises `UserError` where the
    stage's inputs are no longer what it was made from, `UnitsFailed` where a unit failed or gave other
    bytes.
    """
    store = Store(damaged.folder)
    if damaged.is_sound:
        print_line(f"{store.url} is unfinished, not damaged: `dualtoken run` goes on with it")
        return
    _require_repairable(store, damaged)
    job = _job_of(store)
    is_finished = all(finding.kind != FindingKind.UNFINISHED for finding in damaged.findings)
    again = _damaged_units(damaged)
    if is_finished:
        again |= {unit.id for unit in job.units} - done_units(store)
    restores = {unit: _read_receipt(store, unit, job.fingerprint) for unit in again}

    wrong = _units(damaged, FindingKind.WRONG)
    if wrong:
        store.remove(MANIFEST_FILE)  # first, so that the stage is known to be unfinished if this is cut short
    for unit in wrong:
        store.remove(receipt_name(unit))
        del restores[unit]  # its files may have other bytes this time

    units = tuple(unit for unit in job.units if unit.id in again)
    if units:
        work = Work(replace(job, restores=restores), units)
        audit = RunningAudit(job.recipe.pretokenize, print_line)
        run_units([work], executor, print_line, audit.add)
    _redate(store, damaged)
    if is_finished:
        finish(job)
    for unit in sorted(again):
        print_line(f"restored unit {unit} of {damaged.folder}")


def _require_repairable(store: Store, damaged: VerifiedFolder) -> None:
    """Raise `UserError` for damage that another command restores."""
    for finding in damaged.findings:
        if finding.name == STAGE_FILE and finding.kind == FindingKind.MISSING:
            raise UserError(
                f"{store.url} lost its {STAGE_FILE}: "
                "run the stage's command with its recipe, which writes it again"
            )
    elsewhere = sorted({finding.folder for finding in damaged.findings} - {store.url})
    if elsewhere:
        raise UserError(
            f"{store.url} has its captions in {elsewhere[0]}: "
            f"run `dualtoken verify {elsewhere[0]} --repair` first"
        )


def _damaged_units(damaged: VerifiedFolder) -> set[str]:
    """Return the units to do again: those with a finding, but for receipts whose time alone is wrong."""
    units: set[str] = set()
    for finding in damaged.findings:
        if finding.unit and finding.kind != FindingKind.MISDATED:
            units.add(finding.unit)
    return units


def _units(damaged: VerifiedFolder, kind: FindingKind) -> set[str]:
    return {finding.unit for finding in damaged.findings if finding.unit and finding.kind == kind}


def _job_of(store: Store) -> StageJob:
    record = read_stage(store)
    job = Planner(recipe_of(store, record)).get(record.stage, record.corpus).job
    if job is None or job.fingerprint != record.fingerprint:
        raise UserError(
            f"{store.url} cannot be repaired: its inputs have changed or are unfinished; "
            "run `dualtoken run` instead"
        )
    return job


def _redate(store: Store, damaged: VerifiedFolder) -> None:
    """Set the time of receipts from the future to now; what they say of the files stays."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    for unit in sorted(_units(damaged, FindingKind.MISDATED)):
        receipt = _read_receipt(store, unit, None)
        if receipt and clock_problem(receipt.finished_at):
            redated = receipt.model_copy(update={"finished_at": now})
            store.put_bytes(redated.to_bytes(), receipt_name(unit))


def _read_receipt(store: Store, unit: str, fingerprint: str | None) -> Receipt | None:
    """Return a unit's receipt; None where it is lost, unreadable, or another one's."""
    try:
        receipt = Receipt.read(store, receipt_name(unit))
    except (FileNotFoundError, DamagedRecordError):
        return None
    if receipt_mismatch(receipt, unit, fingerprint):
        return None
    return receipt
