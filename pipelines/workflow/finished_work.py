"""A sensor that shows Dagster the finished work of others: commands, Ray jobs, another machine's runs.

It keeps no cursor. Manifests say what is finished, and Dagster's own records what it knows of that, so that
nothing is shown twice, and a Dagster whose records were lost learns all of it again.
"""

from collections.abc import Iterator

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from dualtoken.infra.redaction import redacted
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.workflow.metadata import ROOT_HASH, stage_metadata

SENSOR = "finished_work"
SECONDS_BETWEEN_LOOKS = 60
"""Seconds from one look at the manifests to the next."""


def finished_work_sensor(recipe: Recipe) -> dg.SensorDefinition:
    """Return a sensor, running by default, that reports a recipe's finished stages that Dagster lacks."""

    @dg.sensor(
        name=SENSOR,
        description="Shows finished stages that were not made by Dagster.",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=SECONDS_BETWEEN_LOOKS,
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            news = list(unknown_work(recipe, context.instance))
        except UserError as error:
            return dg.SkipReason(redacted(str(error)))
        if not news:
            return dg.SkipReason("no stage was finished since")
        return dg.SensorResult(asset_events=news)

    return look


def unknown_work(recipe: Recipe, instance: dg.DagsterInstance) -> Iterator[dg.AssetMaterialization]:
    """Yield the finished stages whose content is not what Dagster knows of them.

    Raises `UserError` where the recipe cannot be planned, as where its table is not there.
    """
    for planned in Planner(recipe).plan():
        if planned.job is None or planned.manifest is None:
            continue
        asset = dg.AssetKey(planned.stage)
        if planned.manifest.root_hash == _known_root_hash(instance, asset, planned.corpus):
            continue
        yield dg.AssetMaterialization(
            asset_key=asset,
            partition=planned.corpus,
            description=f"{planned.label}: finished outside this Dagster",
            metadata=stage_metadata(planned.job, planned.manifest),
            tags={DATA_VERSION_TAG: planned.job.fingerprint},
        )


def _known_root_hash(instance: dg.DagsterInstance, asset: dg.AssetKey, partition: str | None) -> str | None:
    """Return the hash of an asset's last materialization on a partition, or None where there is none."""
    partitions = None if partition is None else [partition]
    chosen = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=partitions)
    for record in instance.fetch_materializations(chosen, limit=1).records:
        materialization = record.asset_materialization
        if materialization and ROOT_HASH in materialization.metadata:
            return str(materialization.metadata[ROOT_HASH].value)
    return None
