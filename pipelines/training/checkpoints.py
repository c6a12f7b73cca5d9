"""Checkpoints of a training, in its folder: `checkpoints/step-NNNNNNNNN/`, the same for every executor.

A checkpoint's files are stored first and its receipt last, with their checksums. So a training goes on from
the newest checkpoint that is whole, whatever killed the one before, and wherever that ran. What Ray Train
notes of checkpoints is not asked.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from dualtoken.infra.digests import digest
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.engine import VALIDATION, BestConfig
from dualtoken.pipelines.core.json_text import json_text
from dualtoken.pipelines.core.receipts import (
    CHECKPOINT_RECEIPT,
    CHECKPOINTS,
    DamagedRecordError,
    FileRecord,
    Record,
)

VALIDATION_FILE = "logs/validations/step-{step:09d}.json"
"""File in the stage's folder with what a task measured of a checkpoint on held-out samples."""

_log = logging.getLogger(__name__)


class RunRecord(Record):
    """A part of a training, from a start or restart to the next: what may change between them."""

    first_step: int
    """First step of the part, 0 the first of all."""
    num_workers: int
    settings: dict[str, Any]
    """Values of the recipe that may change while a training goes on."""


class CheckpointReceipt(Record):
    """The files of a checkpoint that is whole."""

    step: int
    """Last step taken, 0 the first."""
    files: tuple[FileRecord, ...]
    metrics: dict[str, float] = Field(default_factory=dict)
    """Metrics of that step."""
    runs: tuple[RunRecord, ...] = ()
    """Parts of the training up to that step."""
    is_validated_apart: bool = False
    """Whether a task beside the training measures it on held-out samples, so that it is kept until then."""


class Checkpoint:
    """A checkpoint that is whole."""

    def __init__(self, store: Store, receipt: CheckpointReceipt) -> None:
        self._store = store
        self.receipt = receipt

    def local_folder(self, scratch: Path) -> Path:
        """Return a local folder with its files, copied to `scratch` where they are remote."""
        return self._store.local_folder(scratch / f"step-{self.receipt.step:09d}")

    def damage(self, scratch: Path) -> str | None:
        """Return the first file that is missing, is not as it was written, or does not belong there."""
        names = {CHECKPOINT_RECEIPT}
        for file in self.receipt.files:
            names.add(file.name)
            if self._store.size(file.name) != file.bytes:
                return file.name
            copy = self._store.local_copy(file.name, scratch / f"step-{self.receipt.step:09d}")
            if digest(copy).sha256 != file.sha256:
                return file.name
        for name, _ in self._store.files():
            if name not in names:
                return name
        return None


class Checkpoints:
    """The checkpoints of one training; one process at a time commits them."""

    def __init__(
        self,
        store: Store,
        keep: int = 2,
        keep_best: BestConfig | None = None,
        *,
        validates_apart: bool = False,
    ) -> None:
        self._store = store
        self._keep = keep
        self._keep_best = keep_best
        self._validates_apart = validates_apart
        """Whether checkpoints that wait for their validation are kept."""

    def begin(self, step: int) -> Store:
        """Return the empty folder of a step's checkpoint; what a killed or damaged one left is removed."""
        self._remove(_name(step))
        self._store.remove(VALIDATION_FILE.format(step=step))
        return self.folder(step)

    def folder(self, step: int) -> Store:
        """Return the folder of a step's checkpoint."""
        return self._store.at(_name(step))

    def commit(self, receipt: CheckpointReceipt) -> None:
        """Declare a checkpoint whole whose files are all stored, and remove those that are not kept."""
        self.folder(receipt.step).put_bytes(receipt.to_bytes(), CHECKPOINT_RECEIPT)
        self.remove_others(receipt.step)

    def remove_others(self, last_step: int) -> None:
        """Remove the checkpoints that are not kept, where that of a step is the last one."""
        # Later ones are damaged: this training went on from one before them.
        earlier = [found for found in self._names() if found <= _name(last_step)]
        unvalidated = [_name(step) for step in self.unvalidated(last_step)]
        kept = {*earlier[-self._keep :], *self._best(earlier), *unvalidated}
        for found in self._names():
            if found not in kept:
                self._remove(found)

    def unvalidated(self, last_step: int) -> list[int]:
        """Return the steps up to one whose checkpoints wait for a task that measures them."""
        if not self._validates_apart:
            return []
        return [step for step in self.validated_apart(last_step) if self.validation(step) is None]

    def validated_apart(self, last_step: int) -> list[int]:
        """Return the steps up to one whose whole checkpoints a task measures, or has measured."""
        steps: list[int] = []
        for name in self._names():
            receipt = self._receipt(name)
            if receipt is not None and receipt.is_validated_apart and receipt.step <= last_step:
                steps.append(receipt.step)
        return steps

    def validation(self, step: int) -> dict[str, float] | None:
        """Return what a task measured of a step's checkpoint, nothing if it failed; None before it ends."""
        try:
            return json.loads(self._store.read(VALIDATION_FILE.format(step=step)))
        except FileNotFoundError:
            return None

    def put_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Store what a task measured of a step's checkpoint."""
        self._store.put_bytes(json_text(metrics).encode(), VALIDATION_FILE.format(step=step))

    def _best(self, names: Sequence[str]) -> list[str]:
        """Return the checkpoint with the best metric, as a list; an empty one where none has it."""
        best = self._keep_best
        if best is None:
            return []
        values: dict[str, float] = {}
        for name in names:
            receipt = self._receipt(name)
            if receipt is None:
                continue
            metrics = receipt.metrics
            if receipt.is_validated_apart:
                found = self.validation(receipt.step) or {}
                metrics = {**metrics, **{f"{VALIDATION}{name}": value for name, value in found.items()}}
            if metrics.get(best.metric) is not None:
                values[name] = metrics[best.metric]
        if not values:
            return []
        choose = min if best.mode == "min" else max
        return [choose(values, key=values.__getitem__)]

    def latest(self, scratch: Path, *, before_step: int | None = None) -> Checkpoint | None:
        """Return the newest whole checkpoint, or the newest that was taken before a step; None for none.

        A damaged one is named, and the one before is taken. Remote files are copied to `scratch`.
        """
        for name in reversed(self._names()):
            if before_step is not None and name >= _name(before_step):
                continue
            if not self._store.exists(f"{name}/{CHECKPOINT_RECEIPT}"):
                continue  # its run was killed while it wrote
            receipt = self._receipt(name)
            damage: str | None = CHECKPOINT_RECEIPT
            if receipt is not None:
                checkpoint = Checkpoint(self._store.at(name), receipt)
                damage = checkpoint.damage(scratch)
                if damage is None:
                    return checkpoint
            _log.warning("%s: %s is not as it was written; an earlier checkpoint is used", name, damage)
        return None

    def at_step(self, step: int) -> Checkpoint:
        """Return the checkpoint of a step, which is whole."""
        receipt = self._receipt(_name(step))
        assert receipt is not None, f"the checkpoint of step {step} is whole"
        return Checkpoint(self.folder(step), receipt)

    def _receipt(self, name: str) -> CheckpointReceipt | None:
        """Return a checkpoint's receipt; None where there is none that can be read."""
        try:
            return CheckpointReceipt.from_bytes(self._store.read(f"{name}/{CHECKPOINT_RECEIPT}"))
        except (FileNotFoundError, DamagedRecordError):
            return None

    def _names(self) -> list[str]:
        return [name for name in self._store.folders(CHECKPOINTS) if name.startswith(f"{CHECKPOINTS}/step-")]

    def _remove(self, name: str) -> None:
        """Remove a checkpoint, its receipt first."""
        self._store.remove(f"{name}/{CHECKPOINT_RECEIPT}")
        for file, _ in list(self._store.files(name)):
            self._store.remove(file)
        self._store.remove_empty_folders(name)


def folder_name(step: int) -> str:
    """Return the name of a step's checkpoint in the folder of all checkpoints."""
    return f"step-{step:09d}"


def _name(step: int) -> str:
    return f"{CHECKPOINTS}/{folder_name(step)}"
