"""Checkpoints of a training, in its folder: `checkpoints/step-NNNNNNNNN/`, the same for every executor.

A checkpoint's files are written first and its receipt last, with their checksums. So a training goes on from
the newest checkpoint that is whole, whatever killed the one before, and wherever that ran.
"""

import logging
from pathlib import Path

from pydantic import ValidationError

from dualtoken.infra.digests import digest
from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.commit import upload
from dualtoken.pipelines.core.receipts import CHECKPOINTS, FileRecord, Record

RECEIPT = "receipt.json"
NUM_KEPT = 2
"""Newest checkpoints that are kept."""

_log = logging.getLogger(__name__)


class CheckpointReceipt(Record):
    """The files of a checkpoint that is whole."""

    step: int
    """Last step taken, 0 the first."""
    files: tuple[FileRecord, ...]


class Checkpoints:
    """The checkpoints of one training; one process at a time commits them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def commit(self, step: int, folder: Path) -> None:
        """Move a folder's files into the checkpoint of a step, and keep `NUM_KEPT` up to that step."""
        name = f"{CHECKPOINTS}/step-{step:09d}"
        checkpoint = self._store.at(name)
        checkpoint.remove(RECEIPT)  # of damaged files, which are replaced now
        files = [upload(checkpoint, folder, path.name) for path in sorted(folder.iterdir())]
        checkpoint.put_bytes(CheckpointReceipt(step=step, files=tuple(files)).to_bytes(), RECEIPT)
        # Later ones are damaged: this training went on from one before them.
        kept = [found for found in self._names() if found <= name][-NUM_KEPT:]
        for found in self._names():
            if found not in kept:
                self._remove(found)

    def latest(self, scratch: Path) -> Path | None:
        """Return the newest whole checkpoint as a local folder, copied to `scratch` where it is remote.

        None where there is none. A damaged one is named, and the one before is taken.
        """
        for name in reversed(self._names()):
            checkpoint = self._store.at(name)
            if not checkpoint.exists(RECEIPT):
                continue  # its run was killed while it wrote
            damage = _damage(checkpoint, scratch / name)
            if damage is None:
                return checkpoint.local_folder(scratch / name)
            _log.warning("%s: %s is not as it was written; an earlier checkpoint is used", name, damage)
        return None

    def _names(self) -> list[str]:
        return [name for name in self._store.folders(CHECKPOINTS) if name.startswith(f"{CHECKPOINTS}/step-")]

    def _remove(self, name: str) -> None:
        """Remove a checkpoint, its receipt first."""
        self._store.remove(f"{name}/{RECEIPT}")
        for file, _ in list(self._store.files(name)):
            self._store.remove(file)
        self._store.remove_empty_folders(name)


def _damage(checkpoint: Store, scratch: Path) -> str | None:
    """Return the first file that is missing, or is not as it was written."""
    try:
        receipt = CheckpointReceipt.from_bytes(checkpoint.read(RECEIPT))
    except ValidationError:
        return RECEIPT
    for file in receipt.files:
        if checkpoint.size(file.name) != file.bytes:
            return file.name
        if digest(checkpoint.local_copy(file.name, scratch)).sha256 != file.sha256:
            return file.name
    return None
