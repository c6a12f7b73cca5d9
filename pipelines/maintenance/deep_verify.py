"""Checks what checksums cannot: that a stage's rows are right, though each file is as committed.

Ledgers close. A token dataset's index, data, captions and ledger speak of the same keys, and its codes lie
within their codebooks. A seeded sample of rows, encoded again from the image shards, gives the codes that are
stored.

Units whose files differ from their receipts are left out, since what is in them is not what anybody wrote. So
are comparisons with an index or a manifest that is damaged. Memory holds 32 bytes for each row of a dataset,
while its keys are sorted.

The checks themselves are listed in `pipelines.maintenance.row_checks`.
"""

import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.ledger import KEY_BYTES
from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.core.receipts import (
    LEDGERS,
    MANIFEST_FILE,
    Receipt,
    done_units,
    iter_receipts,
    read_manifest,
)
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.core.tables import read_table
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.maintenance.findings import Finding, FindingKind, Problem, VerifiedFolder
from dualtoken.pipelines.maintenance.reencode import DeepSettings, differences
from dualtoken.pipelines.maintenance.row_checks import (
    INDEX_CHECKS,
    LEDGER_CHECKS,
    SHARD_CHECKS,
    IndexedShard,
    OpenTokenShard,
)
from dualtoken.pipelines.runtime.stage_folder import read_stage, stage_job
from dualtoken.pipelines.runtime.stages import get_stage
from dualtoken.pipelines.tokens.facts import TokenDetails, rows_of
from dualtoken.pipelines.tokens.shards import INDEX_FILE, data_path, read_data_shard, schema_metadata

FolderCheck = Callable[[StageJob, VerifiedFolder, DeepSettings, PrintLine], list[Finding]]
"""Checks the rows of a stage's folder, but for those that its findings already concern."""


def deep_verify(checked: VerifiedFolder, settings: DeepSettings, print_line: PrintLine) -> VerifiedFolder:
    """Add to a folder's findings those that its rows give; `print_line` tells what could not be checked."""
    store = Store(checked.folder)
    try:
        record = read_stage(store)
    except UserError:
        return checked  # which has a finding of that already
    check: FolderCheck = check_ledgers
    declared = get_stage(record.stage).deep_verify
    if declared:
        check = pkgutil.resolve_name(declared)
    findings = check(stage_job(store, record, ()), checked, settings, print_line)
    return replace(checked, findings=(*checked.findings, *findings))


def check_ledgers(
    job: StageJob, checked: VerifiedFolder, _settings: DeepSettings, _print_line: PrintLine
) -> list[Finding]:
    """Check that the ledger of every sound unit closes."""
    store = job.store()
    findings: list[Finding] = []
    for receipt in iter_receipts(store, _sound_units(store, checked)):
        findings += _check_ledger(store, receipt)
    return findings


def check_token_dataset(
    job: StageJob, checked: VerifiedFolder, settings: DeepSettings, print_line: PrintLine
) -> list[Finding]:
    """Check a token dataset's rows, and encode a sample of them again."""
    store = job.store()
    damaged_files = {finding.name for finding in checked.findings}
    checks = _TokenDatasetChecks(store, damaged_files)
    findings = checks.check(_sound_units(store, checked))
    for unit, problem in differences(job, checks.manifest, checks.sound_shards, settings, print_line):
        findings += _findings(store, data_path(unit), unit, [problem])
    return findings


def _sound_units(store: Store, checked: VerifiedFolder) -> list[str]:
    """Return the finished units that have no finding."""
    damaged_units = {finding.unit for finding in checked.findings}
    return sorted(done_units(store) - damaged_units)


def _findings(store: Store, name: str, unit: str | None, problems: Iterable[str]) -> list[Finding]:
    """Return a finding for each problem of a file; `unit` would restore it, None where no unit made it."""
    return [Finding(store.url, name, Problem(FindingKind.WRONG, problem), unit) for problem in problems]


def _check_ledger(store: Store, receipt: Receipt) -> list[Finding]:
    """Return what is wrong with a unit's ledger; a unit without samples has none."""
    name = f"{LEDGERS}/{receipt.unit}.parquet"
    if all(file.name != name for file in receipt.files):
        return []
    ledger = read_table(store, name)
    findings: list[Finding] = []
    for check in LEDGER_CHECKS:
        findings += _findings(store, name, receipt.unit, check(ledger, receipt))
    return findings


class _TokenDatasetChecks:
    """Compares a token dataset's shards with all that speaks of them, and their keys with each other's."""

    def __init__(self, store: Store, damaged_files: set[str]) -> None:
        """Read the manifest and the index, where they are there and not among `damaged_files`."""
        self._store = store
        self.manifest = None
        if MANIFEST_FILE not in damaged_files:
            self.manifest = read_manifest(store)
        self.sound_shards: list[tuple[str, int]] = []
        """Names and rows of the shards that nothing was found wrong with."""
        self._details: TokenDetails | None = None
        self._index: pa.Table | None = None
        self._index_rows: dict[str, int] = {}
        """Row of the index, by shard."""
        if self.manifest is not None and INDEX_FILE not in damaged_files:
            self._details = TokenDetails.of(self.manifest)
            index = read_table(store, INDEX_FILE)
            self._index = index
            shards = index["shard"].to_pylist()
            self._index_rows = {shard: row for row, shard in enumerate(shards)}
        self._keys: list[np.ndarray[Any, Any]] = []
        """Distinct keys of each shard."""

    def check(self, units: list[str]) -> list[Finding]:
        """Return what is wrong with shards, which must be as their receipts say."""
        findings: list[Finding] = []
        for receipt in iter_receipts(self._store, units):
            problems = [*_check_ledger(self._store, receipt), *self._check_shard(receipt)]
            if all(problem.unit is None for problem in problems):
                self.sound_shards.append((receipt.unit, rows_of(receipt)))
            findings += problems
        repeated = self._repeated_key()
        if repeated is not None:
            problem = f"the key {repeated} is in two shards"
            findings += _findings(self._store, INDEX_FILE, None, [problem])
        return findings

    def _check_shard(self, receipt: Receipt) -> list[Finding]:
        name = data_path(receipt.unit)
        findings: list[Finding] = []
        with scratch_folder() as scratch:
            table = read_data_shard(self._store.local_copy(name, Path(scratch)))
            keys = table["key"].to_pylist()
            shard = OpenTokenShard(self._store, receipt, table, keys, schema_metadata(table.schema))
            for check in SHARD_CHECKS:
                findings += _findings(self._store, name, receipt.unit, check(shard))
            findings += _findings(self._store, INDEX_FILE, None, self._index_problems(shard))
            self._keys.append(np.unique(np.frombuffer(b"".join(keys), f"V{KEY_BYTES}")))
        return findings

    def _index_problems(self, shard: OpenTokenShard) -> Iterator[str]:
        if self._index is None or self._details is None:
            return
        unit = shard.receipt.unit
        if unit not in self._index_rows:
            yield f"shard {unit} is not in it"
            return
        row = self._index.slice(self._index_rows[unit], 1).to_pylist()[0]
        for check in INDEX_CHECKS:
            yield from check(IndexedShard(shard, row, self._details))

    def _repeated_key(self) -> str | None:
        """Return a key, hexadecimal, that is in two of the shards checked, or None; drops the keys."""
        if not self._keys:
            return None
        keys = np.concatenate(self._keys)
        self._keys.clear()
        keys.sort()
        repeated = keys[1:][keys[1:] == keys[:-1]]
        return repeated[0].tobytes().hex() if len(repeated) else None
