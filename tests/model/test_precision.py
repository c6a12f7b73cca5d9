"""The precision of a block of code, and float32 that means float32 on a GPU, in processes of their own."""

import subprocess
import sys

import pytest
import torch

from dualtoken.model.precision import tower_precision, without_autocast
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


RESTORE = """
import torch
from dualtoken.model.precision import forbid_tf32, kept_float32_precision
cudnn = torch.backends.cudnn
matmul = torch.backends.cuda.matmul
{before}
def settings():
    newer = (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, matmul.fp32_precision)
    return newer + (torch.backends.mkldnn.matmul.fp32_precision,)
def older():
    try:
        return torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:
        return None
expected = settings(), older()
restore = kept_float32_precision()
forbid_tf32()
assert (settings(), older()) != expected
restore()
print((settings(), older()) == expected, settings(), older(), expected)
"""


@pytest.mark.parametrize(
    "before",
    [
        "",
        "torch.set_float32_matmul_precision('high')",
        "cudnn.conv.fp32_precision = 'tf32'; cudnn.rnn.fp32_precision = 'ieee'",
        "cudnn.allow_tf32 = True; matmul.allow_tf32 = True",
    ],
)
def test_a_process_gets_its_settings_back(before: str) -> None:
    command = [sys.executable, "-W", "error", "-c", RESTORE.format(before=before)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("True "), done.stdout + done.stderr


def test_towers_compute_in_the_precision_that_is_chosen_and_searches_in_float32() -> None:
    device = torch.device("cpu")
    matrix = torch.ones(2, 2)
    with tower_precision(device, "bfloat16"):
        assert (matrix @ matrix).dtype == torch.bfloat16
        with without_autocast(device):
            assert (matrix @ matrix).dtype == torch.float32
    with tower_precision(device, "float32"):
        assert (matrix @ matrix).dtype == torch.float32
    with without_autocast(torch.device("meta")):
        assert (matrix @ matrix).dtype == torch.float32


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
