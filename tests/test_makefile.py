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
    # `make test` may itself be called by a make, which hands its own flags and depth to every make below it.
    of_make = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    alone = {name: value for name, value in os.environ.items() if name not in of_make}
    return subprocess.run(command, cwd=PROJECT, env=alone, capture_output=True, text=True, check=False)


def test_make_tensorboard_shows_the_newest_run_of_each_training(tmp_path: Path) -> None:
    data = tmp_path / "data"
    began = {"teacher/a": 1, "tokenizer/b": 9, "tokenizer/c": 3, "tokenizer/d": 4, "mllm/e": 2}
    for run, seconds in began.items():
        logs = data / "models" / run / "logs/tensorboard"
        logs.mkdir(parents=True)
        os.utime(logs, (seconds, seconds))
    ran = tensorboard(data, tmp_path / "bin")
    assert ran.stderr == ""
    models = data / "models"
    newest = (("teacher", "a"), ("tokenizer", "b"), ("mllm", "e"))
    runs = ",".join(f"{kind}:{models}/{kind}/{run}/logs/tensorboard" for kind, run in newest)
    assert ran.stdout.split() == ["--logdir_spec", runs]


def test_make_tensorboard_says_where_no_training_has_logs(tmp_path: Path) -> None:
    ran = tensorboard(tmp_path / "nothing", tmp_path / "bin")
    assert ran.returncode == 2
    assert f"no training has logs below {tmp_path}/nothing/models: run one, or set DATA" in ran.stderr
