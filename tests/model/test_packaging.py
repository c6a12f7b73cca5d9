"""What importing model costs and needs."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def fresh_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()


def test_the_config_imports_no_torch() -> None:
    code = "import sys, dualtoken.model.config.tokenizer; print('torch' in sys.modules)"
    assert fresh_python(code) == "False"


@pytest.mark.slow
def test_torchvision_imports_whatever_comes_first() -> None:
    # One process with torch loaded, forked per case: loading it takes seconds.
    code = """
import os, torch
from dualtoken.model.vision import imports

def tower_first():
    import dualtoken.model.vision.siglip_tower

def metrics_first():
    import dualtoken.model.metrics.reconstruction

def declared_twice():
    imports.declare_missing_ops(); imports.declare_missing_ops()
    import torchvision.transforms.v2
    imports.declare_missing_ops()

def operators_exist_already():
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    imports.declare_missing_ops()
    import torchvision
    assert imports._declared is None

for case in (tower_first, metrics_first, declared_twice, operators_exist_already):
    if os.fork() == 0:
        case()
        os._exit(0)
    assert os.wait()[1] == 0, case.__name__
print("fine")
"""
    assert fresh_python(code) == "fine"


@pytest.mark.slow
def test_the_compiler_loads_at_its_first_use() -> None:
    code = """
import sys
import dualtoken.model.metrics.reconstruction
import dualtoken.model.teacher
import dualtoken.model.tokenizer
import dualtoken.model.training
assert "torch._dynamo" not in sys.modules
import torch
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2
assert sys.modules["torch._dynamo"].__file__
print("fine")
"""
    assert fresh_python(code) == "fine"


def test_the_readme_s_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (ROOT / "model" / "README.md").read_text(encoding="utf-8")
    example = readme.split("```python\n")[1].split("```")[0]
    exec(example, {})
    assert capsys.readouterr().out == "(8, 3, 64, 64)\n"
