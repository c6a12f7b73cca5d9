"""A run that is killed by SIGKILL at any write leaves a history that the next command brings to its end."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from dualtoken.pipelines.errors import ExitCode
from dualtoken.pipelines.nightly.check import check
from dualtoken.pipelines.nightly.history import History
from dualtoken.pipelines.nightly.run import run_night
from dualtoken.pipelines.nightly.session import Session
from dualtoken.pipelines.nightly.states import night_states
from tests.helpers.nights import RULES, SmallNightly, write_model
from tests.helpers.tiny_run import PROJECT

NIGHT = "2026-11-06"
KILLED = """
import os, signal, sys
from pathlib import Path
from dualtoken.infra.storage import Store
from dualtoken.pipelines.nightly import sinks
from dualtoken.pipelines.nightly.run import run_night
from dualtoken.pipelines.nightly.session import Session
from tests.helpers.nights import SmallNightly, write_model

def killing(owner, name, when):
    real = getattr(owner, name)
    def write(*given, **named):
        global writes
        writes += 1
        if writes == stop and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*given, **named)
        if writes == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, write)

folder, when = Path(sys.argv[1]), sys.argv[2]
for line in sys.stdin:  # one process forks one that is killed for each line
    place, number = line.split()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    writes, stop = 0, int(number)
    for name in ("put", "put_bytes", "put_if_absent", "remove"):
        killing(Store, name, when)
    killing(sinks, "_append", when)
    place = Path(place)
    alerts = {"log": {"kind": "file", "path": f"{place}/alerts.jsonl"}}
    small = SmallNightly(place, alerts=alerts).at("2026-11-06")
    write_model(small.models / "model", psnr=29.0)
    run_night(Session(small.spec, small.nightly))
    os._exit(0)
"""


def nights_before(folder: Path) -> None:
    small = SmallNightly(folder)
    for day in range(2, 6):
        small.at(f"2026-11-{day:02d}")
        run_night(Session(small.spec, small.nightly))


def resolve(folder: Path) -> None:
    """Run the night again as the next command does, minutes later, and check that it came to its end."""
    alerts = {"log": {"kind": "file", "path": f"{folder}/alerts.jsonl"}}
    small = SmallNightly(folder, alerts=alerts).at(NIGHT, "01:05")
    write_model(small.models / "model", psnr=29.0)
    history = History(small.spec.root, "small")
    looked = night_states(history.read(), small.clock(), RULES)  # readable as it was left
    assert [state.state for state in looked if state.night < NIGHT] == ["ok"] * 4
    assert run_night(Session(small.spec, small.nightly)) == ExitCode.REGRESSED
    assert check(Session(small.spec, small.nightly), 14) == ExitCode.REGRESSED
    files = history.read().files(NIGHT)
    assert files.night is not None
    found = files.verdict(RULES)
    assert found is not None
    assert found.state == "regressed"
    assert found.confirmation is not None
    assert found.confirmation.differing == ()
    [line] = (folder / "alerts.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == f"small/{NIGHT}/regressed-onset"
    again = SmallNightly(folder, alerts=alerts).at(NIGHT, "01:06")
    write_model(again.models / "model", psnr=29.0)
    run_night(Session(again.spec, again.nightly))
    assert again.measure.measured == [], "nothing is left to do"


def killed_at_each_write(folder: Path, when: str) -> int:
    """Kill runs at their first write, their second and so on, until one has none left; return how many."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), when],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        number = 0
        while True:
            number += 1
            place = folder / str(number)
            nights_before(place)
            process.stdin.write(f"{place} {number}\n")
            process.stdin.flush()
            code = int(process.stdout.readline())
            if code == 0:
                break
            assert code == -signal.SIGKILL
            resolve(place)
        process.stdin.close()
    return number - 1


def test_killed_before_any_write_of_a_night_the_next_run_ends_it(tmp_path: Path) -> None:
    assert killed_at_each_write(tmp_path, "before") > 15


def test_killed_after_any_write_of_a_night_the_next_run_ends_it(tmp_path: Path) -> None:
    assert killed_at_each_write(tmp_path, "after") > 15
