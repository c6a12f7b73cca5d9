"""Metrics log of a training run, beside its output: `logs/metrics.jsonl` and TensorBoard events.

They outlive the cluster. Progress lines go to the terminal too.
"""

import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tensorboardX import SummaryWriter
from torch import Tensor

from dualtoken.infra.storage import Store
from dualtoken.model.metrics.codebook import codebook_use
from dualtoken.pipelines.core.json_text import json_text
from dualtoken.pipelines.core.receipts import PICTURES
from dualtoken.pipelines.errors import ExitCode, exit_code
from dualtoken.pipelines.training.pace import Pace

LOGS = "logs"
METRICS = f"{LOGS}/metrics.jsonl"
EVENTS = f"{LOGS}/tensorboard"
PROGRESS_INTERVAL = 15.0
"""Seconds between progress lines on the terminal."""


class MetricsLog:
    """Writes a line per logged step; a run that resumes at a step drops what was logged from there on."""

    def __init__(self, store: Store, scratch: Path, label: str, steps: int, first_step: int = 0) -> None:
        self._store = store
        self._label = label
        self._steps = steps
        self._last_progress = float("-inf")
        self._folder = Path(store.root) if store.is_local else scratch / "run log"
        self.logs_folder = self._folder / LOGS
        """Where the log lies on this machine until it is copied to storage."""
        (self._folder / EVENTS).mkdir(parents=True, exist_ok=True)

        kept = [json_text(line) + "\n" for line in read_metrics(store) if line["step"] < first_step]
        # Replaced at once: a run killed again right here must not lose what the first one logged.
        replacement = self._folder / f"{METRICS}.new"
        replacement.write_text("".join(kept))
        replacement.replace(self._folder / METRICS)
        self._file = (self._folder / METRICS).open("a")
        self._first_step = first_step
        self._events = SummaryWriter(str(self._folder / EVENTS), purge_step=first_step)
        self._pictures: SummaryWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._events.close()
        if self._pictures:
            self._pictures.close()
        self.save()

    def steps_with(self, beginning: str) -> set[int]:
        """Return the logged steps that have a value whose name begins so."""
        steps: set[int] = set()
        for line in read_metrics(self._store):
            if any(name.startswith(beginning) for name in line):
                steps.add(line["step"])
        return steps

    def write(self, step: int, values: Mapping[str, float], pace: Pace | None = None) -> None:
        """Log the values up to a step, null for one that is not finite; steps are counted from 0.

        Now and then a line of progress goes to the terminal, with the pace where it is known. A line without
        a loss is of a step that was logged before, whose checkpoint was measured since.
        """
        self._file.write(json_text({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        if "loss" in values and time.monotonic() >= self._last_progress + PROGRESS_INTERVAL:
            self._last_progress = time.monotonic()
            line = f"{self._label}: step {step + 1} of {self._steps}, loss {values['loss']:.3f}"
            print(f"{line}, {pace}" if pace else line, flush=True)

    def write_pictures(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Log pictures by name, (3, H, W) uint8, in TensorBoard's files."""
        for name, picture in pictures.items():
            self._samples().add_image(name, picture.cpu().numpy(), step)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Log texts by name, Markdown, in TensorBoard's files beside the pictures: they show samples too."""
        for name, text in texts.items():
            self._samples().add_text(name, text, step)

    def _samples(self) -> SummaryWriter:
        """Return the writer of what shows samples, which has a folder of its own."""
        if self._pictures is None:
            self._pictures = SummaryWriter(str(self._folder / PICTURES), purge_step=self._first_step)
        return self._pictures

    def write_code_counts(self, step: int, counts: Mapping[str, Tensor]) -> None:
        """Log how often codes occur in TensorBoard's files, by stream: (D, K), D depths, K codes.

        Each depth has a histogram over its codes, and how many of them are used, how evenly.
        """
        for stream, of_stream in counts.items():
            for depth, of_depth in enumerate(of_stream):
                tag = f"codes/{stream}/counts/depth_{depth}"
                self._events.add_histogram(tag, of_depth.numpy(), step)
        for tag, value in code_use(counts).items():
            self._events.add_scalar(tag, value, step)

    def save(self) -> None:
        """Copy the log to storage, where that is not a local folder.

        A store that does not answer for a while ends no training: the next copy has all lines too.
        """
        if self._store.is_local:
            return
        try:
            self._copy()
        except Exception as error:
            if exit_code(error) != ExitCode.TEMPORARY:
                raise
            print(f"{self._label}: the log was not stored ({error})", file=sys.stderr, flush=True)

    def _copy(self) -> None:
        for path in sorted(self._folder.rglob("*")):
            if path.is_file():
                self._store.put(path, path.relative_to(self._folder).as_posix())


def code_use(counts: Mapping[str, Tensor]) -> dict[str, float]:
    """Return by tag how many codes of each stream and depth occur, and how evenly, from their counts."""
    values: dict[str, float] = {}
    for stream, of_stream in counts.items():
        use = codebook_use(of_stream)
        for depth in range(len(of_stream)):
            values[f"codes/{stream}/usage/depth_{depth}"] = use.usage_per_depth[depth].item()
            values[f"codes/{stream}/perplexity/depth_{depth}"] = use.perplexity_per_depth[depth].item()
    return values


def read_metrics(store: Store) -> list[dict[str, Any]]:
    """Return the logged lines of a run; none where there is no log. A line cut by a kill is left out."""
    if not store.exists(METRICS):
        return []
    lines: list[dict[str, Any]] = []
    for line in store.read(METRICS).decode().splitlines():
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines
