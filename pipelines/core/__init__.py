"""The contract of every stage: units of work, ledgers, receipts, and the commit of a unit's files.

Imports `errors` and `config`; no torch, and no Ray: the same code commits on every executor.
It reads and writes a stage's folder, on disk or an object store, and touches no accelerator.
"""

from dualtoken.pipelines.core.commit import StageContent, commit_manifest, commit_unit, run_unit
from dualtoken.pipelines.core.receipts import FileRecord, Manifest, Receipt, read_manifest, read_receipts
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput, Worker

__all__ = [
    "FileRecord",
    "Manifest",
    "Receipt",
    "StageContent",
    "StageJob",
    "Unit",
    "UnitOutput",
    "Worker",
    "commit_manifest",
    "commit_unit",
    "read_manifest",
    "read_receipts",
    "run_unit",
]
