"""A nightly's spec: one YAML file that says what is evaluated every night, when, and who is told."""

from collections.abc import Mapping
from datetime import date
from functools import cache
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, Field, ValidationError, model_validator

from dualtoken.infra.redaction import redacted_values
from dualtoken.infra.request_urls import request_url
from dualtoken.model.config.base import Config, Location, absolute, is_url, not_in_fingerprint
from dualtoken.pipelines.config.corpora import Name
from dualtoken.pipelines.config.cron import Cron, parse_cron
from dualtoken.pipelines.config.mistakes import closest, explain_mistakes
from dualtoken.pipelines.config.parse import is_shipped, read_values
from dualtoken.pipelines.config.typed import typed
from dualtoken.pipelines.errors import UserError

MOST_PRIMARY = 8
"""Series that may alarm: they share one yearly budget of false alarms."""
CANARY = "canary"
"""Name of the fixed model that is evaluated every night."""


def _cron_line(line: str) -> str:
    parse_cron(line)
    return line


def _time_zone(name: str) -> str:
    known = _time_zones()
    if name not in known:
        match = closest(name, sorted(known))
        hint = f"did you mean {match}?" if match else "set it to one such as Europe/Berlin or UTC"
        raise ValueError(f"{name!r} is no time zone: {hint}")
    return name


@cache
def _time_zones() -> frozenset[str]:
    """Return the names of all zones; finding them takes a look into hundreds of files."""
    return frozenset(available_timezones())


def _web_address(url: str) -> str:
    try:
        request_url(url)
    except ValueError as error:
        raise ValueError(f"{url!r} is no address ({error}): set it to one with https:// or http://") from None
    return url


def _local_path(location: str) -> str:
    if is_url(location):
        raise ValueError(f"{location!r} is a URL, to which no line can be appended: give a path")
    return location


def _evaluation_file(location: str) -> str:
    """Keep the name of a shipped file; make any other absolute, since nights start in other folders."""
    return location if is_shipped(location) else absolute(location)


class ScheduleConfig(Config):
    """When nights start, and when they are late."""

    cron: Annotated[str, AfterValidator(_cron_line)]
    """Cron line; a night starts when it first fires on a local date, which names the night."""
    timezone: Annotated[str, AfterValidator(_time_zone)]
    """Time zone of the line, such as Europe/Berlin."""
    start: date
    """First night."""
    end: date | None = None
    """Last night; null for none."""
    deadline_hours: Annotated[float, Field(gt=0, le=24)] = 6.0
    """Hours after its start by which a night must have been begun; without an attempt it is missed then."""
    lease_hours: Annotated[float, Field(gt=0, le=72)] = 6.0
    """Hours that an attempt may take; a longer one counts as dead, and another may take its place."""

    @property
    def line(self) -> Cron:
        """The cron line, parsed."""
        return parse_cron(self.cron)

    @property
    def zone(self) -> ZoneInfo:
        """The time zone."""
        return ZoneInfo(self.timezone)

    @model_validator(mode="after")
    def _ends_after_its_start(self) -> "ScheduleConfig":
        if self.end is not None and self.end < self.start:
            raise ValueError(f"start={self.start} is after end={self.end}: exchange them")
        return self


class RecipeSubject(Config):
    """The newest finished model of a recipe."""

    kind: Literal["recipe"]
    recipe: Annotated[str, Field(min_length=1)] = not_in_fingerprint()
    """Recipe: a YAML file, an fsspec URL, or a shipped name."""
    root: Location | None = not_in_fingerprint(default=None)
    """Where its runs are written, in place of the recipe's own root."""
    stage: Literal["train", "mllm"] = "train"
    """Stage whose model is evaluated."""


class FolderSubject(Config):
    """A model in a folder that does not change by itself."""

    kind: Literal["folder"]
    folder: Location = not_in_fingerprint()
    """Folder or URL of the saved model."""


class CanaryConfig(Config):
    """A small fixed model whose scores change only with evaluator and environment."""

    folder: Location | None = not_in_fingerprint(default=None)
    """Its folder; null for the one that the evaluator makes itself."""


class WebhookSink(Config):
    """An address that gets each event as JSON by POST."""

    kind: Literal["webhook"]
    url: Annotated[str, AfterValidator(_web_address)]
    secret: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Environment variable that holds the secret; it is sent as the value of `header`."""
    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] = "Authorization"
    timeout_seconds: Annotated[float, Field(gt=0, le=120)] = 10.0
    """Time for one try."""
    retries: Annotated[int, Field(ge=0, le=5)] = 2
    """Tries after the first, within one command."""
    allow_private_addresses: bool = False
    """Send to an address outside the public internet, too."""


class CommandSink(Config):
    """A command that gets each event as JSON on its standard input."""

    kind: Literal["command"]
    command: Annotated[tuple[str, ...], Field(min_length=1)]
    """Program and its arguments; no shell reads them."""
    timeout_seconds: Annotated[float, Field(gt=0, le=600)] = 30.0


class FileSink(Config):
    """A file that each event is appended to, one line of JSON each."""

    kind: Literal["file"]
    path: Annotated[Location, AfterValidator(_local_path)]


SinkConfig = Annotated[WebhookSink | CommandSink | FileSink, Field(discriminator="kind")]


PingConfig = Annotated[WebhookSink | CommandSink, Field(discriminator="kind")]


class NightlySpec(Config):
    """A nightly evaluation."""

    name: Name
    root: Location = not_in_fingerprint()
    """Folder or URL below which `nightly/<name>/` holds the history."""
    schedule: ScheduleConfig
    subjects: Annotated[
        dict[Name, Annotated[RecipeSubject | FolderSubject, Field(discriminator="kind")]], Field(min_length=1)
    ]
    """Models that are evaluated, by name."""
    canary: CanaryConfig = CanaryConfig()
    evaluation: Annotated[str, Field(min_length=1), AfterValidator(_evaluation_file)] = not_in_fingerprint()
    """File that says what the sets and protocols are: a path, an fsspec URL, or a shipped name."""
    sets: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Evaluation sets, by their names in `evaluation`."""
    protocols: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Protocols, likewise."""
    primary: Annotated[tuple[str, ...], Field(min_length=1)]
    """Series that may alarm, `<set>/<protocol>/<metric>`; all others are shown."""
    strict: bool = True
    """Whether a night with notes, such as a halved batch, is incomparable with others."""
    ruleset: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")] | None = None
    """Rules of the night chart, as `nightly calibrate` stored them; null for the default ones."""
    alerts: dict[Name, SinkConfig] = not_in_fingerprint(default={})
    """Who is told of regressions and of nights that were missed, by name."""

    ping: PingConfig | None = not_in_fingerprint(default=None)
    """Who is called after each finished night: a service that tells people when no call comes."""

    def record(self) -> dict[str, Any]:
        """Return the spec as the history keeps it: without signatures and passwords of URLs."""
        return redacted_values(self.model_dump(mode="json"))

    @model_validator(mode="after")
    def _names_no_canary(self) -> "NightlySpec":
        if CANARY in self.subjects:
            raise ValueError(
                f"subjects.{CANARY} is the fixed model's name: set `{CANARY}.folder`, or rename it"
            )
        return self

    @model_validator(mode="after")
    def _few_may_alarm(self) -> "NightlySpec":
        number = len(self.primary) * len(self.subjects)
        if number > MOST_PRIMARY:
            raise ValueError(
                f"primary has {len(self.primary)} series of {len(self.subjects)} subjects, {number} in all: "
                f"name {MOST_PRIMARY} at most, which share one budget of false alarms"
            )
        if len(set(self.primary)) < len(self.primary):
            raise ValueError("primary names a series twice: leave one out")
        return self

    @model_validator(mode="after")
    def _primary_series_are_measured(self) -> "NightlySpec":
        for series in self.primary:
            parts = series.split("/")
            if len(parts) != 3 or parts[0] not in self.sets or parts[1] not in self.protocols or not parts[2]:
                raise ValueError(
                    f"primary={series!r} is no series: write <set>/<protocol>/<metric>, with a set of "
                    f"{', '.join(self.sets)} and a protocol of {', '.join(self.protocols)}"
                )
        return self


def load_nightly(location: str, root: str | None = None) -> NightlySpec:
    """Read a spec from a path or fsspec URL; `root` wins over the file's.

    Raises `UserError`, a line per mistake.
    """
    values = read_values(location, "nightly")
    if root is not None:
        values["root"] = root
    return validate_nightly(typed(values, NightlySpec), location)


def validate_nightly(values: Mapping[str, Any], location: str) -> NightlySpec:
    """Check a spec's values; `location` names it in errors. Raises `UserError`, a line per mistake."""
    try:
        return NightlySpec.model_validate(values)
    except ValidationError as error:
        mistakes = explain_mistakes(error, values, NightlySpec, "a nightly")
        raise UserError("\n".join(f"{location}: {mistake}" for mistake in mistakes)) from None
