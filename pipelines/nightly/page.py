"""The nightly's pages: an index with calendar, tasks and charts, and a page for each night.

Static HTML without a script: nothing is asked of the network, and every text is escaped.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment

from dualtoken.infra.redaction import redacted
from dualtoken.pipelines.config.nightly import CANARY, NightlySpec
from dualtoken.pipelines.core.writable import require_writable
from dualtoken.pipelines.evaluation.pages import page_environment
from dualtoken.pipelines.evaluation.report_page import count
from dualtoken.pipelines.nightly.contracts import Clock
from dualtoken.pipelines.nightly.history import History, Snapshot
from dualtoken.pipelines.nightly.page_calendar import LETTERS, calendar, counts
from dualtoken.pipelines.nightly.page_charts import shared_links
from dualtoken.pipelines.nightly.page_data import PageData, PageNight, day, read_pages
from dualtoken.pipelines.nightly.page_links import NIGHT_PAGES, Links, night_page
from dualtoken.pipelines.nightly.page_night import NightPages
from dualtoken.pipelines.nightly.page_series import Charts
from dualtoken.pipelines.nightly.page_tasks import headline, tasks
from dualtoken.pipelines.nightly.states import NightState

INDEX_TEMPLATE = "nightly_index.html.jinja"
NIGHT_TEMPLATE = "nightly_night.html.jinja"
INDEX = "index.html"
TASKS_SHOWN = 6
"""Tasks that are shown; further ones are folded."""


def write_pages(
    spec: NightlySpec,
    snapshot: Snapshot,
    states: Sequence[NightState],
    ruleset: str,
    clock: Clock,
    out: Path,
    *,
    arguments: Sequence[str] = ("SPEC",),
    num_nights: int | None = None,
) -> Path:
    """Write the index and the nights' pages into a folder, and return the index's path.

    `states` are those of the snapshot; `ruleset` is the version of the chart whose verdicts are shown.
    `arguments` are how a command line names the spec. With `num_nights`, only the newest nights have pages.
    Raises `UserError` where the folder cannot be written.
    """
    history = History(spec.root, spec.name).store
    data = read_pages(spec, snapshot, states, ruleset, clock(), arguments)
    environment = _environment()
    with_pages = [night for night in data.all_nights if night.is_begun]
    if num_nights is not None:
        with_pages = with_pages[max(len(with_pages) - num_nights, 0) :]
    pages = frozenset(night.name for night in with_pages)
    require_writable(out, "set --out to a folder that can be")
    (out / NIGHT_PAGES).mkdir(exist_ok=True)
    charts = Charts(data, Links(history, out), pages)
    index = out / INDEX
    _write(index, _index(environment, data, charts, redacted(history.url)))
    _write_nights(environment, data, NightPages(data, Links(history, out / NIGHT_PAGES)), pages, out)
    return index


def _index(environment: Environment, data: PageData, charts: Charts, history: str) -> str:
    planned = [night.state for night in data.all_nights if night.state.state == "planned"]
    return environment.get_template(INDEX_TEMPLATE).render(
        name=data.spec.name,
        headline=headline(data),
        newest=data.begun[-1].state if data.begun else None,
        planned=planned[0] if planned else None,
        months=calendar(data.nights, charts.night_href),
        counts=counts(data.nights),
        num_older=len(data.all_nights) - len(data.nights),
        tasks=tasks(data),
        tasks_shown=TASKS_SHOWN,
        primary=charts.primary(),
        others=charts.others(),
        canary=charts.canary() if any(_has_canary(night) for night in data.begun) else None,
        shared=shared_links(charts.shared()),
        snapshot=data.snapshot,
        history=history,
        made_at=data.made_at,
        pages={night: night_page(night) for night in charts.pages},
    )


def _write_nights(
    environment: Environment, data: PageData, nights: NightPages, pages: frozenset[str], out: Path
) -> None:
    template = environment.get_template(NIGHT_TEMPLATE)
    shown = [night for night in data.all_nights if night.is_begun]
    before = None
    for number, night in enumerate(shown):
        if night.name in pages:
            html = template.render(
                name=data.spec.name,
                page=nights.page(night, before),
                earlier=shown[number - 1].name if number and shown[number - 1].name in pages else None,
                later=shown[number + 1].name if number + 1 < len(shown) else None,
                made_at=data.made_at,
            )
            _write(out / night_page(night.name), html)
        before = night.record or before


def _has_canary(night: PageNight) -> bool:
    return night.record is not None and CANARY in night.record.subjects


def _environment() -> Environment:
    environment = page_environment(Path(__file__).parent)
    environment.filters.update(day=day, utc=_utc, count=count)
    environment.globals.update(letters=LETTERS)
    return environment


def _utc(time: datetime | str) -> str:
    """Write a time for people: `2026-11-28 02:00 UTC`."""
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _write(file: Path, text: str) -> None:
    """Write a page aside first: a web server never sends half of one."""
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(text.encode("utf-8", "backslashreplace"))  # a name may hold bytes that are no text
    part.replace(file)
