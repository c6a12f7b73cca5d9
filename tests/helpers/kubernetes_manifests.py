"""The fields of CronJob and RayCronJob that our manifests may have, each with its type: others are refused.

A subset of Kubernetes' batch/v1 and of KubeRay's ray.io/v1: an API server drops a field that it does not know
and keeps the default, without a word. The manifests were read by the whole schemas too, Kubernetes 1.37 and
KubeRay of 2026-08-19, with unknown fields as errors (2026-11-29).
"""

from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from pydantic.alias_generators import to_camel

from dualtoken.pipelines.config.cron import parse_cron

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[int, Field(gt=0)]
Line = Annotated[str, AfterValidator(lambda line: parse_cron(line) and line)]
Zone = Annotated[str, AfterValidator(lambda name: ZoneInfo(name).key)]


class Fields(BaseModel):
    """An object of a manifest, in which names are written in camel case."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, alias_generator=to_camel)


class Metadata(Fields):
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?$")]
    """At most 52 characters, since names of jobs are made of it."""


class SecretKey(Fields):
    name: str
    key: str


class ValueFrom(Fields):
    secret_key_ref: SecretKey


class Variable(Fields):
    name: str
    value: str | None = None
    value_from: ValueFrom | None = None

    @model_validator(mode="after")
    def _has_one_value(self) -> "Variable":
        assert (self.value is None) != (self.value_from is None)
        return self


class SecretName(Fields):
    name: str
    optional: bool


class EnvironmentFrom(Fields):
    secret_ref: SecretName


class Capabilities(Fields):
    drop: list[Literal["ALL"]]


class SecurityContext(Fields):
    allow_privilege_escalation: Literal[False]
    run_as_non_root: Literal[True]
    capabilities: Capabilities


class Resources(Fields):
    requests: dict[Literal["cpu", "memory"], str]
    limits: dict[Literal["memory"], str]


class Container(Fields):
    name: str
    image: str
    command: list[str]
    env: list[Variable] = []
    env_from: list[EnvironmentFrom] = []
    security_context: SecurityContext
    resources: Resources


class PodSpec(Fields):
    restart_policy: Literal["Never", "OnFailure"]
    automount_service_account_token: Literal[False]
    containers: list[Container]


class PodMetadata(Fields):
    labels: dict[str, str]


class PodTemplate(Fields):
    metadata: PodMetadata | None = None
    spec: PodSpec


class JobSpec(Fields):
    backoff_limit: Count
    active_deadline_seconds: Seconds
    template: PodTemplate


class JobTemplate(Fields):
    spec: JobSpec


class CronJobSpec(Fields):
    schedule: Line
    time_zone: Zone
    concurrency_policy: Literal["Allow", "Forbid", "Replace"]
    starting_deadline_seconds: Annotated[int, Field(ge=10)]
    """Below 10 s a controller may never look in time."""
    successful_jobs_history_limit: Count
    failed_jobs_history_limit: Count
    job_template: JobTemplate


class CronJob(Fields):
    api_version: Literal["batch/v1"]
    kind: Literal["CronJob"]
    metadata: Metadata
    spec: CronJobSpec


class DeletionCondition(Fields):
    job_status: Literal["SUCCEEDED", "FAILED"]
    ttl_seconds: Count


class DeletionRule(Fields):
    condition: DeletionCondition
    policy: Literal["DeleteSelf"]
    """Others would take the standing cluster."""


class DeletionStrategy(Fields):
    deletion_rules: list[DeletionRule]


class RayJobTemplate(Fields):
    """A job on a standing cluster."""

    entrypoint: str
    cluster_selector: dict[Literal["ray.io/cluster"], str]
    submission_mode: Literal["K8sJobMode", "HTTPMode"]
    """KubeRay refuses others with a selector."""
    backoff_limit: Literal[0]
    """Likewise."""
    active_deadline_seconds: Seconds
    deletion_strategy: DeletionStrategy


class RayCronJobSpec(Fields):
    schedule: Line
    time_zone: Zone
    suspend: bool
    job_template: RayJobTemplate


class RayCronJob(Fields):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCronJob"]
    metadata: Metadata
    spec: RayCronJobSpec


_MANIFEST: TypeAdapter[CronJob | RayCronJob] = TypeAdapter(
    Annotated[CronJob | RayCronJob, Field(discriminator="kind")]
)


def read_manifest(document: dict[str, Any]) -> CronJob | RayCronJob:
    """Read a manifest; raises `ValidationError` for a field that is unknown or of another type."""
    return _MANIFEST.validate_python(document)
