"""A nightly's spec: read from YAML, and each mistake is one line with key, value and what to set."""

from pathlib import Path
from typing import Any

import pytest

from dualtoken.pipelines.config.nightly import load_nightly, validate_nightly
from dualtoken.pipelines.errors import UserError

SPEC = """
name: scenes
root: history
schedule: {cron: 30 2 * * *, timezone: Europe/Berlin, start: 2026-12-01, deadline_hours: 5}
subjects:
  newest: {kind: recipe, recipe: scenes}
  pinned: {kind: folder, folder: s3://models/tokenizer}
evaluation: evaluation.yaml
sets: [heldout]
protocols: [plain]
primary: [heldout/plain/psnr]
alerts:
  hook: {kind: webhook, url: "https://user:pass@example.org/hook?key=1", secret: HOOK_SECRET}
  log: {kind: file, path: alerts.jsonl}
  mail: {kind: command, command: [mail, -s, nightly, me]}
"""


def write(folder: Path, text: str = SPEC) -> str:
    file = folder / "nightly.yaml"
    file.write_text(text)
    return str(file)


def test_a_spec_is_read_with_its_defaults_and_absolute_places(tmp_path: Path) -> None:
    spec = load_nightly(write(tmp_path))
    assert (spec.name, spec.schedule.start.isoformat(), spec.strict) == ("scenes", "2026-12-01", True)
    assert spec.schedule.line.hours == (2,)
    assert spec.root == f"{Path.cwd()}/history"
    assert load_nightly(write(tmp_path), root="s3://bucket/x").root == "s3://bucket/x"


def test_places_and_alerts_do_not_decide_what_a_spec_is(tmp_path: Path) -> None:
    spec = load_nightly(write(tmp_path))
    other = load_nightly(
        write(tmp_path, SPEC.replace("evaluation.yaml", "b.yaml").replace("-s,", "-q,")), "/a"
    )
    assert spec.identity() == other.identity()
    assert spec.identity() != load_nightly(write(tmp_path, SPEC.replace("30 2", "31 2"))).identity()


def test_a_record_of_a_spec_has_no_password_and_no_signature(tmp_path: Path) -> None:
    assert load_nightly(write(tmp_path)).record()["alerts"]["hook"]["url"] == "https://example.org/hook"


NINE = ", ".join(f"heldout/plain/m{number}" for number in range(9))
MISTAKES = {
    ("30 2 * * *", "0 2 30 2 *"): "schedule.cron: '0 2 30 2 *' never fires: no such month has a day 30",
    ("Europe/Berlin", "Europe/Berlni"): (
        "schedule.timezone: 'Europe/Berlni' is no time zone: did you mean Europe/Berlin?"
    ),
    ("Europe/Berlin", "../../etc/passwd"): (
        "schedule.timezone: '../../etc/passwd' is no time zone: set it to one such as Europe/Berlin or UTC"
    ),
    ("start: 2026-12-01", "start: 2026-12-01, end: 2026-11-30"): (
        "schedule: start=2026-12-01 is after end=2026-11-30: exchange them"
    ),
    ("[heldout/plain/psnr]", f"[{NINE}]"): (
        "primary has 9 series of 2 subjects, 18 in all: "
        "name 8 at most, which share one budget of false alarms"
    ),
    ("[heldout/plain/psnr]", "[heldout/plain/psnr, heldout/plain/psnr]"): (
        "primary names a series twice: leave one out"
    ),
    ("[heldout/plain/psnr]", "[train/plain/psnr]"): (
        "primary='train/plain/psnr' is no series: write <set>/<protocol>/<metric>, with a set of heldout "
        "and a protocol of plain"
    ),
    ("pinned:", "canary:"): "subjects.canary is the fixed model's name: set `canary.folder`, or rename it",
    ("deadline_hours", "deadline_hour"): (
        "schedule.deadline_hour=5 is no key of a nightly: did you mean deadline_hours?"
    ),
    ("kind: recipe", "kind: receipt"): "subjects.newest.kind='receipt': set it to one of 'recipe', 'folder'",
    ("https://user:pass@example.org", "ftp://example.org"): (
        "alerts.hook.url: 'ftp://example.org/hook' is no address (scheme 'ftp'): "
        "set it to one with https:// or http://"
    ),
    ("path: alerts.jsonl", "path: s3://b/alerts.jsonl"): (
        "alerts.log.path: 's3://b/alerts.jsonl' is a URL, to which no line can be appended: give a path"
    ),
    ("deadline_hours: 5", "deadline_hours: 0"): "schedule.deadline_hours=0: should be greater than 0",
    ("start: 2026-12-01", "start: 2026-12-32"): "schedule.start='2026-12-32': should be a valid date",
}


@pytest.mark.parametrize("change", MISTAKES, ids=lambda change: str(change[1])[:30])
def test_a_mistake_is_one_line(change: tuple[str, str], tmp_path: Path) -> None:
    assert change[0] in SPEC
    file = write(tmp_path, SPEC.replace(*change))
    with pytest.raises(UserError) as error:
        load_nightly(file)
    assert str(error.value).startswith(f"{file}: {MISTAKES[change]}")
    assert "\n" not in str(error.value)


def test_a_file_that_is_none_or_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nightly '.*nowhere.yaml' is no file"):
        load_nightly(str(tmp_path / "nowhere.yaml"))
    for text, message in {
        "a: [": "not YAML",
        "- 1": "holds list, not keys",
        "a: 1\na: 2": "stands twice",
    }.items():
        with pytest.raises(UserError, match=message):
            load_nightly(write(tmp_path, text))


def test_a_stored_spec_is_a_spec_again(tmp_path: Path) -> None:
    record: dict[str, Any] = load_nightly(write(tmp_path)).record()
    assert validate_nightly(record, "spec").record() == record
