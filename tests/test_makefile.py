"""What `make` gives to the programs that it starts."""

import os
import subprocess
from pathlib import Path

from tests.helpers.tiny_run import PROJECT


def tensorboard(data: Path, programs: Path) -> "subprocess.CompletedProcess[str]":
    """Run `make tensorboard` on a root, without setting up, with a program that says how it was called."""
    programs.mkdir(exist_ok=True)
    program = programs / "tensorboard"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    command = ["make", "--silent", "--old-file=setup", "tensorboard", f"DATA={data}", f"BIN={programs}"]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)


def test_make_tensorboard_shows_the_newest_run_of_each_training(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for run, began in {"teacher/a": 1, "tokenizer/b": 9, "tokenizer/c": 3, "tokenizer/d": 4}.items():
        logs = data / "models" / run / "logs/tensorboard"
        logs.mkdir(parents=True)
        os.utime(logs, (began, began))
    ran = tensorboard(data, tmp_path / "bin")
    assert ran.stderr == ""
    models = data / "models"
    assert ran.stdout.split() == [
        "--logdir_spec",
        f"teacher:{models}/teacher/a/logs/tensorboard,tokenizer:{models}/tokenizer/b/logs/tensorboard",
    ]


def test_make_tensorboard_says_where_no_training_has_logs(tmp_path: Path) -> None:
    ran = tensorboard(tmp_path / "nothing", tmp_path / "bin")
    assert ran.returncode == 2
    assert f"no training has logs below {tmp_path}/nothing/models: run one, or set DATA" in ran.stderr
