"""torch.compile takes encoding and a training step whole: a graph break is an error."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.slow
def test_encoding_and_the_training_step_compile_without_a_graph_break() -> None:
    # In a process of its own: elsewhere in these tests beartype checks shapes, and its checks cannot be
    # compiled.
    ran = subprocess.run(
        [sys.executable, FOLDER / "compiled.py"],
        cwd=FOLDER.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.split() == [
        "encode",
        "bfloat16",
        "residual",
        "split",
        "scalar",
        "train.compile",
        "passes",
        "blocks",
        "workers",
    ]
