"""A training run's own records, beside its output: `logs/metrics.jsonl` and TensorBoard events; they outlive the cluster.

How far it is goes to the terminal too.
"""

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tensorboardX import SummaryWriter

from dualtoken.infra.storage import Store

METRICS = "logs/metrics.jsonl"
EVENTS = "logs/tensorboard"
SAY_EVERY = 15.0
"""Seconds between lines for the terminal."""


class MetricsLog:
    """Writes a line per logged step; a run that goes on from a step drops what was logged after it."""

    def __init__(self, store: Store, scratch: Path, label: str, steps: int, first_step: int = 0) -> None:
        self._store, self._label, self._steps = store, label, steps
        self._said_at = float("-inf")
        self._folder = Path(store.root) if store.is_local else scratch / "run log"
        kept = [json.dumps(line) + "\n" for line in read_metrics(store) if line["step"] < first_step]
        (self._folder / EVENTS).mkdir(parents=True, exist_ok=True)
        # Replaced at once: a run killed again right here must not lose what the first one logged.
        whole = self._folder / f"{METRICS}.new"
        whole.write_text("".join(kept))
        whole.replace(self._folder / METRICS)
        self._file = (self._folder / METRICS).open("a")
        self._events = SummaryWriter(str(self._folder / EVENTS), purge_step=first_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._events.close()
        self.save()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log a step's values; steps are counted from 0."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        if time.monotonic() >= self._said_at + SAY_EVERY:
            self._said_at = time.monotonic()
            print(f"{self._label}: step {step + 1} of {self._steps}, loss {values['loss']:.3f}", flush=True)

    def save(self) -> None:
        """Bring the records to storage, where that is not a local folder."""
        if self._store.is_local:
            return
        for path in [path for path in self._folder.rglob("*") if path.is_file()]:
            self._store.put(path, path.relative_to(self._folder).as_posix())


def read_metrics(store: Store) -> list[dict[str, Any]]:
    """Return the logged lines of a run; none where there is no log. A line cut by a kill is left out."""
    if not store.exists(METRICS):
        return []
    return list(_parsed(store.read(METRICS).decode().splitlines()))


def _parsed(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for line in lines:
        with suppress(json.JSONDecodeError):
            yield json.loads(line)
