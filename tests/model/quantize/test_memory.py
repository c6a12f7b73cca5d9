"""Memory of the quantiser beside its inputs and outputs, at the size of the published 384-pixel model."""

import subprocess
import sys

import pytest

from tests.helpers.tiny_run import PROJECT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize(
    ("case", "num_calls"), [("ordinary", 2), ("nearly-equal", 2), ("separate", 1), ("beam", 1)]
)
def test_no_call_needs_64_mb_beside_inputs_and_outputs(case: str, num_calls: int) -> None:
    command = [sys.executable, "-m", "tests.model.quantize.memory_check", case]
    ended = subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True)
    peaks = [float(line) for line in ended.stdout.split()]
    assert len(peaks) == num_calls
    assert max(peaks) < 64
