"""Float32 means float32 on a GPU, whatever was set before; each case in a process of its own."""

import subprocess
import sys

import pytest

from tests.helpers.tiny_run import PROJECT

CHECK = """
import torch
from dualtoken.model.precision import forbid_tf32
{before}
forbid_tf32()
print(
    torch.backends.cudnn.conv.fp32_precision,
    torch.backends.cudnn.rnn.fp32_precision,
    torch.backends.cuda.matmul.fp32_precision,
    torch.get_float32_matmul_precision(),
    torch.backends.cudnn.allow_tf32,
    torch.backends.cuda.matmul.allow_tf32,
)
"""


@pytest.mark.parametrize(
    "before",
    [
        "",
        "torch.backends.fp32_precision = 'tf32'",
        "torch.set_float32_matmul_precision('high')",
    ],
)
def test_no_switch_leaves_tf32_on(before: str) -> None:
    command = [sys.executable, "-W", "error", "-c", CHECK.format(before=before)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["ieee", "ieee", "ieee", "highest", "False", "False"], done.stderr
