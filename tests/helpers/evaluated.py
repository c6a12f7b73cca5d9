"""Evaluations of the canary, the smallest tokenizer and teacher there is, on sets made on the spot."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.evaluation import EvaluationConfig
from dualtoken.pipelines.core.stage import Unit, UnitOutcome, Work
from dualtoken.pipelines.evaluation.canary import write_canary
from dualtoken.pipelines.evaluation.run_evaluation import Evaluated, ModelPlace, run_evaluation
from dualtoken.pipelines.runtime.executor import Executor, LocalExecutor

CLASSES = ("teal", "ochre", "plum")
COLOURS = {"teal": (10, 130, 125), "ochre": (204, 119, 34), "plum": (120, 40, 110)}


def picture(number: int) -> bytes:
    """Return a small PNG of one of three colours, with noise of its own."""
    colour = np.array(COLOURS[CLASSES[number % 3]])
    noise = np.random.default_rng(number).integers(-30, 30, (40, 48, 3))
    stream = io.BytesIO()
    Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_folder(folder: Path, count: int) -> Path:
    """Write a folder of such images, with captions and classes in `metadata.csv`."""
    folder.mkdir(parents=True)
    with (folder / "metadata.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["file_name", "caption", "colour", "camera"])
        for number in range(count):
            colour = CLASSES[number % 3]
            name = f"{number:03d}.png"
            (folder / name).write_bytes(picture(number))
            table.writerow([name, f"{colour} number {number}", colour, f"camera {number // 2}"])
    return folder


def config_of(root: Path, sets: object, protocols: object, **others: object) -> EvaluationConfig:
    """Return a configuration from values as a file has them."""
    values = {"name": "test", "root": str(root), "sets": sets, "protocols": protocols, **others}
    return EvaluationConfig.model_validate(values)


def canary(folder: Path) -> ModelPlace:
    """Write the canary, and return where it is."""
    tokenizer, teacher = write_canary(folder)
    return ModelPlace("canary", Store(str(tokenizer)), Store(str(teacher)))


def evaluated(
    config: EvaluationConfig, model: ModelPlace, executor: Executor | None = None, salt: str = ""
) -> Evaluated:
    """Run an evaluation in this process."""
    return run_evaluation(config, model, executor or LocalExecutor(), lambda _: None, salt)


class Backwards:
    """Runs units from the last to the first, each with a worker of its own, as if on as many machines."""

    def run(self, work: Sequence[Work]) -> Iterator[UnitOutcome]:
        """Yield the outcomes."""
        for job_units in reversed(work):
            for unit in reversed(job_units.units):
                yield from LocalExecutor().run([Work(job_units.job, (unit,))])


class StopsAfter:
    """Dies after some units, as a killed command does."""

    def __init__(self, num_units: int) -> None:
        self._left = num_units

    def run(self, work: Sequence[Work]) -> Iterator[UnitOutcome]:
        """Yield the outcomes, until the end."""
        for job_units in work:
            for unit in job_units.units:
                if not self._left:
                    raise KeyboardInterrupt
                self._left -= 1
                yield from self._one(job_units, unit)

    def _one(self, job_units: Work, unit: Unit) -> Iterator[UnitOutcome]:
        return LocalExecutor().run([Work(job_units.job, (unit,))])
