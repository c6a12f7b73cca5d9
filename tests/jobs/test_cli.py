"""The command line as a user meets it: processes of its own, exit codes, one-line errors."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from dualtoken.jobs.cli import app
from dualtoken.pipelines.config.recipe import Recipe
from tests.helpers.command_line import dualtoken_command, printed_lines, run_dualtoken
from tests.helpers.damage import flip_byte
from tests.helpers.tiny_run import PROJECT, TINY, LoadTiny, tokens_job


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("run", TINY, "--set", "train.stepz=3"),
            f"dualtoken: {TINY}: train.stepz=3 is no key of a recipe: did you mean steps?",
        ),
        (
            ("plan", "nowhere.yaml"),
            "dualtoken: recipe 'nowhere.yaml' is no file: give a path, or one of the shipped recipes: ",
        ),
        (
            ("convert", "nowhere.pt", "out"),
            "dualtoken: nowhere.pt does not exist: give a checkpoint or a folder",
        ),
        (
            ("download", TINY, "--corpus", "webb"),
            "dualtoken: --corpus webb: no such corpus: use one of tiny-train, tiny-heldout",
        ),
        (
            ("submit", "downlaod", TINY, "--address", "http://127.0.0.1:1"),
            "dualtoken: submit downlaod: no such stage: use one of ",
        ),
        (
            ("plan", TINY, "--root", f"{TINY}/data"),
            f"dualtoken: root={TINY}/data: {TINY} is a file: set --root to a folder or a URL",
        ),
        (
            ("run", TINY, "--set", "teacher.tower.width=33"),
            "is no multiple of num_heads=2: change one of them",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line_and_exit_code_2(arguments: tuple[str, ...], line: str) -> None:
    ended = run_dualtoken(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert line in ended.stderr.splitlines()[0]
    assert "Traceback" not in ended.stderr


def test_a_mistake_is_told_without_loading_torch_ray_or_dagster() -> None:
    script = [
        "import sys",
        "from dualtoken.jobs.cli import main",
        "sys.argv[1:] = ['run', 'scenes', '--set', 'a=1']",
        "try: main()",
        "except SystemExit: pass",
        "print(sorted({'torch', 'ray', 'dagster'} & set(sys.modules)))",
    ]
    ended = subprocess.run(
        [sys.executable, "-c", "\n".join(script)], capture_output=True, text=True, cwd=PROJECT, check=True
    )
    assert ended.stdout.strip() == "[]"
    assert "a=1 is no key of a recipe" in ended.stderr


def test_shipped_recipes_are_found_from_any_folder(tmp_path: Path) -> None:
    # The installed script: `python -m` would put the current folder on the import path.
    script = Path(sys.executable).with_name("dualtoken")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [script, "plan", "scenes", "--root", tmp_path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_finished_run_says_so_and_names_its_report(finished: Recipe) -> None:
    started = time.monotonic()
    ended = run_dualtoken("run", TINY, "--root", finished.root)
    assert ended.returncode == 0
    assert ended.stdout.splitlines()[0] == "nothing to do: every stage is done"
    report = Path(ended.stdout.splitlines()[-1].removeprefix("report: "))
    assert report.is_file()
    assert time.monotonic() - started < 30


def test_plan_and_status_tell_of_every_step(finished: Recipe) -> None:
    for command in ("plan", "status"):
        lines = run_dualtoken(command, TINY, "--root", finished.root).stdout.splitlines()
        assert [line.split()[0] for line in lines[1:19]] == [
            *("scenes", "scenes", "download", "download", "teacher", "score", "score", "filter", "filter"),
            *("targets", "targets", "train", "pretokenize", "pretokenize", "mllm", "examine"),
            *("measure", "report"),
        ]
    assert re.match(r"seconds of +corpus +fetch +wait +encode .* encoder idle +idle longest in", lines[19])
    assert [line.split()[:2] for line in lines[20:]] == [
        ["pretokenize", "tiny-train"],
        ["pretokenize", "tiny-heldout"],
    ]
    assert all(re.search(r" \d+% +[a-z]+$", line.rstrip()) for line in lines[20:])


def test_a_damaged_page_of_a_table_passes_the_plan_and_is_named_by_the_download(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    # Private addresses are refused: no row needs a server.
    captions = [f"number {row}" for row in range(120)]
    table = pa.table({"url": ["http://127.0.0.1/x.png"] * 120, "caption": captions})
    pq.write_table(table, path, row_group_size=40, write_page_checksum=True, compression="none")
    path.write_bytes(path.read_bytes().replace(b"number 60", b"number 06", 1))
    recipe = ("urls", "--root", tmp_path / "run", "--set", f"corpora.web.source.table={path}")
    settings = ("--set", "download.rows_per_shard=40", "--set", "download.accept_dead_units=true")
    plan = run_dualtoken("plan", *recipe, *settings)
    assert (plan.returncode, plan.stderr) == (0, "")
    assert re.search(r"download +web +[0-9a-f]+ +0 +3 +120 .*ready", plan.stdout)
    ended = run_dualtoken("download", *recipe, *settings, "--in-process")
    assert ended.returncode == 2
    assert re.fullmatch(
        r"dualtoken: 1 of 3 units failed; download web 00001: "
        rf"corpora\.web\.source\.table='{path}', row group 1, cannot be read: .*checksum.*; "
        r"give a sound file\n",
        ended.stderr,
    )
    # Its neighbours are done, and nothing is committed of the unit itself.
    receipts = sorted(file.name for file in (tmp_path / "run").rglob("receipts/*.json"))
    assert receipts == ["00000.json", "00002.json"]


def test_a_table_too_small_for_a_batch_is_refused_before_anything_runs(tmp_path: Path) -> None:
    ended = run_dualtoken("run", TINY, "--root", tmp_path / "run", "--set", "teacher.batch_size=1000")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("dualtoken: teacher.batch_size=1000 is over the ")
    assert ended.stderr.endswith(" rows of corpora.tiny-train: lower it, or give more rows\n")
    assert not (tmp_path / "run").exists()


def test_an_unfinished_folder_is_named_and_is_no_damage_of_a_root(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    shutil.copytree(finished.root, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/reports")  # made from all the others
    job = tokens_job(load_tiny(tmp_path / "copy"))
    for file in ("manifest.json", "index.parquet", "README.md"):
        Path(job.folder, file).unlink()
    for path, code in ((tmp_path / "copy/tiny-train", 0), (job.folder, 1)):
        ended = run_dualtoken("verify", path)
        assert ended.returncode == code
        assert f"{job.folder}/manifest.json: unfinished: no manifest yet" in ended.stdout.splitlines()


def test_a_stage_that_waits_names_what_to_run_first(tmp_path: Path) -> None:
    ended = run_dualtoken("pretokenize", TINY, "--in-process", "--root", tmp_path)
    assert ended.returncode == 2
    # Not `download`, which waits itself.
    assert "waits for download tiny-train, score tiny-train, filter tiny-train, train" in ended.stderr
    assert "run `dualtoken scenes` first" in ended.stderr


def test_each_stage_of_a_plan_is_a_command_and_filter_also_scores(tmp_path: Path, finished: Recipe) -> None:
    shutil.copytree(finished.root, tmp_path / "copy")
    for stage in ("scores", "decision"):
        shutil.rmtree(tmp_path / "copy/tiny-heldout" / stage)
    options = (TINY, "--root", tmp_path / "copy", "--corpus", "tiny-heldout", "--in-process")
    lines = printed_lines("score", *options)
    assert lines[-1].startswith("score tiny-heldout: 12 ok; ")
    shutil.rmtree(tmp_path / "copy/tiny-heldout/scores")
    lines = printed_lines("filter", *options)
    assert [line.split(":")[0] for line in lines[-2:]] == ["score tiny-heldout", "filter tiny-heldout"]


def test_sigterm_ends_a_run_with_143_and_one_line(tmp_path: Path) -> None:
    run = subprocess.Popen(
        dualtoken_command("run", TINY, "--root", tmp_path, "--in-process"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "scenes (stage 1 of 12): 13 units to do\n"
    assert "done" in run.stdout.readline()
    run.terminate()
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 143
    assert errors.splitlines()[-1] == "dualtoken: stopped; run the same command again to go on"


def test_one_corpus_alone_can_be_done(tmp_path: Path) -> None:
    ended = run_dualtoken("scenes", TINY, "--in-process", "--root", tmp_path, "--corpus", "tiny-heldout")
    assert ended.returncode == 0
    assert [folder.name for folder in tmp_path.iterdir()] == ["tiny-heldout"]


def test_verify_exits_1_on_damage_and_repair_mends_it(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    shutil.copytree(finished.root, tmp_path / "copy")
    folder = tokens_job(load_tiny(tmp_path / "copy")).folder
    shard = Path(folder) / "data/00001.arrow"
    original = shard.read_bytes()
    flip_byte(shard, 900)
    damaged = run_dualtoken("verify", folder)
    assert damaged.returncode == 1
    assert re.match(rf"{re.escape(str(shard))}: altered", damaged.stdout)
    # In this process, which has PyTorch already.
    assert CliRunner().invoke(app, ["verify", folder, "--repair", "--in-process"]).exit_code == 0
    assert shard.read_bytes() == original
    assert run_dualtoken("verify", folder).returncode == 0


def test_the_readme_names_every_command() -> None:
    readme = (PROJECT / "README.md").read_text()
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert len(commands) > 20
    missing = [command for command in commands if not re.search(rf"`(dualtoken )?{command}\b", readme)]
    assert missing == []
