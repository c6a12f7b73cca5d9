"""Sends a training's log to services such as W&B and MLflow, beside the training and never in its way.

Each service has a thread. What it cannot take is left out there, told in one line, and stands in
`logs/metrics.jsonl` all the same. Their packages are imported where a recipe names them, and nowhere else.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from queue import Full, Queue
from threading import Thread

from torch import Tensor

from dualtoken.infra.redaction import redacted, redacted_values
from dualtoken.pipelines.config.loggers import MlflowConfig, WandbConfig
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.training.logger_session import CLOSE_SECONDS, End, LoggerSession, RunFacts

MOST_WAITING = 1000
"""Calls that wait for a service; those beyond are left out there."""
HURRIED_CLOSE_SECONDS = 10.0
"""Time that a service has to take what waits, when a training fails or is asked to stop."""


def run_facts(job: StageJob, folder: Path) -> RunFacts:
    """Describe a job's run; `folder` is local, for files of services."""
    # The folder ends in the fingerprint; two roots with the same recipe have two runs.
    place = blake2b(job.folder.encode(), digest_size=4).hexdigest()
    return RunFacts(
        id=f"{job.stage}-{job.fingerprint}-{place}",
        name=f"{job.recipe.name} {job.label}",
        settings=redacted_values(job.training.model_dump(mode="json")),
        folder=folder,
    )


def require_loggers(job: StageJob) -> None:
    """Raise `UserError` where a service that the recipe names cannot be used from here."""
    for number, config in enumerate(job.training.loggers):
        key = f"{job.training_key}.loggers[{number}]"
        if not _is_installed(config.kind):
            raise UserError(
                f"{key}: kind={config.kind} needs a package that is not installed here: "
                f"pip install 'dualtoken[{config.kind}]', or take the logger out"
            )
        if isinstance(config, WandbConfig):
            from dualtoken.pipelines.training.wandb_logger import require_key  # noqa: PLC0415

            require_key(config, key)


def _is_installed(package: str) -> bool:
    found = find_spec(package)
    # A folder of that name, such as the one that W&B leaves, is found too, without a file.
    return found is not None and found.origin is not None


def open_logger(config: WandbConfig | MlflowConfig, run: RunFacts) -> LoggerSession:
    """Begin a service's run, or go on with it; may wait for a network."""
    if isinstance(config, WandbConfig):
        from dualtoken.pipelines.training.wandb_logger import WandbSession  # noqa: PLC0415

        return WandbSession(config, run)
    from dualtoken.pipelines.training.mlflow_logger import MlflowSession  # noqa: PLC0415

    return MlflowSession(config, run)


class BackgroundLogger:
    """One service's thread; `label` names training and service in lines for people."""

    def __init__(self, label: str, open_session: Callable[[], LoggerSession], *, pictures: bool) -> None:
        self._label = label
        self._open_session = open_session
        self._takes_pictures = pictures
        self._session: LoggerSession | None = None
        self._has_told = False
        self._calls: Queue[Callable[[LoggerSession], None] | None] = Queue(MOST_WAITING)
        # A daemon: a service that does not answer keeps no process.
        self._thread = Thread(target=self._work, name=label, daemon=True)
        self._thread.start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log values after a step."""
        own = dict(values)
        self._put(lambda session: session.write(step, own))

    def write_pictures(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Log pictures, where the recipe wants them sent."""
        if self._takes_pictures and pictures:
            own = {name: picture.cpu() for name, picture in pictures.items()}
            self._put(lambda session: session.write_pictures(step, own))

    def close(self, end: End) -> None:
        """Wait for what is left, but not for long."""
        seconds = CLOSE_SECONDS if end == "done" else HURRIED_CLOSE_SECONDS
        self._put(lambda session: session.close(end))
        self._put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._tell(f"it did not take the last lines within {seconds:g} s")

    def _put(self, call: Callable[[LoggerSession], None] | None) -> None:
        try:
            self._calls.put_nowait(call)
        except Full:
            self._tell(f"{MOST_WAITING} lines wait for it")

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                if self._session is None:
                    self._session = self._open_session()
                call(self._session)
            except Exception as error:  # noqa: BLE001  (whatever a service's client raises, training goes on)
                self._tell(f"{type(error).__name__}: {' '.join(str(error).split())}")

    def _tell(self, problem: str) -> None:
        """Print a line the first time."""
        if self._has_told:
            return
        self._has_told = True
        line = f"{self._label}: the log there lacks lines ({redacted(problem)}); logs/metrics.jsonl has them"
        print(line, file=sys.stderr, flush=True)


class Loggers:
    """All services of a run."""

    def __init__(self, job: StageJob, folder: Path) -> None:
        run = run_facts(job, folder)
        self._all: Sequence[BackgroundLogger] = [
            BackgroundLogger(
                f"{job.label}, {config.kind}",
                lambda config=config: open_logger(config, run),
                pictures=config.pictures,
            )
            for config in job.training.loggers
        ]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log values after a step."""
        for logger in self._all:
            logger.write(step, values)

    def write_pictures(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Log pictures where they are wanted."""
        for logger in self._all:
            logger.write_pictures(step, pictures)

    def close(self, end: End) -> None:
        """Close all."""
        for logger in self._all:
            logger.close(end)
