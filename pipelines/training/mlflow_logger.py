"""A training's run in MLflow (mlflow.org/docs/latest/ml/tracking); imported where a recipe names it."""

import os
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dualtoken.pipelines.config.loggers import MlflowConfig
from dualtoken.pipelines.training.logger_session import End, RunFacts

# MLflow would tell its makers of each import. Read while it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]
from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

RUN_TAG = "dualtoken.run"
"""Tag of a run with our own id: MLflow draws its ids itself."""
_MOST_OF_A_BATCH = 100
"""Parameters of one request."""
_LONGEST_VALUE = 500
"""Characters of a parameter that every version takes."""
_STATUS: dict[End, str] = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MlflowSession:
    """A run by our own id, which goes on where the experiment has one."""

    def __init__(self, config: MlflowConfig, run: RunFacts) -> None:
        self._client = MlflowClient(tracking_uri=config.tracking_uri)
        experiment = self._experiment(config.experiment)
        found = self._client.search_runs(
            [experiment], filter_string=f"tags.`{RUN_TAG}` = '{run.id}'", max_results=1
        )
        if found:
            self._id: str = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        made = self._client.create_run(experiment, tags={RUN_TAG: run.id}, run_name=run.name)
        self._id = made.info.run_id
        # At the start alone: parameters never change, and some settings may.
        params = [Param(key, _shown(value)) for key, value in run.settings.items()]
        for first in range(0, len(params), _MOST_OF_A_BATCH):
            self._client.log_batch(self._id, params=params[first : first + _MOST_OF_A_BATCH])

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log values."""
        now = time.time_ns() // 1_000_000
        metrics = [Metric(name, float(value), now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def write_pictures(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Log pictures."""
        for name, picture in pictures.items():
            self._client.log_image(self._id, picture.permute(1, 2, 0).numpy(), key=name, step=step)

    def close(self, end: End) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._id, status=_STATUS[end])


def _shown(value: Any) -> str:  # noqa: ANN401
    return str(value)[:_LONGEST_VALUE]
