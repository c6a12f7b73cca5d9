"""Measure stage: an evaluation that belongs to a run, of its own tokenizer, as `dualtoken evaluate` makes it.

Writes `measurement.json`, the results by set and protocol, and a score table `<set>.<protocol>.parquet` each.
Nothing in them says when they were made, so that the same inputs give the same bytes.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.evaluation import AnySet, EvaluationConfig, ShardsSet
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.evaluation.measurement import MEASUREMENT, Measurement
from dualtoken.pipelines.evaluation.run_evaluation import ModelPlace, run_evaluation
from dualtoken.pipelines.evaluation.summary import SCORES, SetResult
from dualtoken.pipelines.runtime.executor import LocalExecutor


class Worker:
    """Evaluates the tokenizer of a run."""

    def __init__(self, job: StageJob) -> None:
        self._job = job

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write the results and the score tables."""
        assert unit.rows == 0
        recipe = self._job.recipe
        assert recipe.measure is not None, "the stage runs where there is one"
        config = EvaluationConfig(
            name=recipe.name,
            root=str(scratch / "evaluation"),
            sets=dict(self._sets()),
            protocols=recipe.measure.protocols,
            cluster=recipe.cluster,
        )
        model = ModelPlace(recipe.name, self._job.input("train"), self._job.input("teacher"))
        evaluated = run_evaluation(config, model, LocalExecutor(), _say_nothing)
        names: list[str] = []
        results: list[SetResult] = []
        for result in evaluated.summary.results:
            name = f"{result.set_name}.{result.protocol}.parquet"
            shutil.copy(Store(result.scores).path(SCORES), scratch / name)
            names.append(name)
            results.append(result.model_copy(update={"scores": name}))
        (scratch / MEASUREMENT).write_bytes(Measurement(results=tuple(results)).to_bytes())
        return UnitOutput((MEASUREMENT, *names), None)

    def _sets(self) -> Mapping[str, AnySet]:
        """Return the recipe's sets, or else its held-out samples as they were downloaded."""
        measure = self._job.recipe.measure
        assert measure is not None
        if measure.sets:
            return measure.sets
        key_below = self._job.recipe.heldout_fraction or None
        sets: dict[str, AnySet] = {}
        for corpus in self._job.recipe.heldout_corpora:
            folder = self._job.input("download", corpus).url
            sets[corpus] = ShardsSet(
                kind="shards", folder=folder, max_images=measure.max_images, key_below=key_below
            )
        return sets


def _say_nothing(_: str) -> None:
    """Take a line of progress; the stage has one unit, and its outcome is the line."""
