"""What importing model costs and needs."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def fresh_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()


def test_the_config_imports_no_torch() -> None:
    assert fresh_python("import sys, model.config; print('torch' in sys.modules)") == "False"


@pytest.mark.parametrize("module", ["tower", "teacher", "teacher_training", "metrics", "training", "convert"])
def test_each_module_imports_first_in_a_process(module: str) -> None:
    assert fresh_python(f"import model.{module}; print('fine')") == "fine"


def test_declaring_twice_or_after_torchvision_changes_nothing() -> None:
    code = "from model.torchvision_ops import declare_missing_ops as d; d(); d(); import torchvision.transforms.v2; d(); print('fine')"
    assert fresh_python(code) == "fine"


def test_operators_that_exist_are_left_alone() -> None:
    code = (
        "import torch; lib = torch.library.Library('torchvision', 'DEF'); "
        "[lib.define(f'{n}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor') for n in ('nms', 'qnms')]; "
        "import model.torchvision_ops as ops; ops.declare_missing_ops(); import torchvision; print(ops._declared)"
    )
    assert fresh_python(code) == "None"


def test_the_readme_s_example_runs() -> None:
    readme = (ROOT / "model" / "README.md").read_text(encoding="utf-8")
    assert "(8, 3, 64, 64)" in fresh_python(readme.split("```python\n")[1].split("```")[0])
