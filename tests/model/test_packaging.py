"""What importing model costs and needs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def fresh_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()


def test_the_config_imports_no_torch() -> None:
    assert fresh_python("import sys, model.config; print('torch' in sys.modules)") == "False"


def test_each_module_that_needs_torchvision_can_be_the_first_import() -> None:
    # Forks of one process with torch loaded: eight fresh ones would take most of a minute.
    code = (
        "import os, torch\n"
        "for name in ('tower', 'teacher', 'teacher_training', 'metrics', 'training'):\n"
        "    if os.fork() == 0:\n"
        "        __import__(f'model.{name}'); os._exit(0)\n"
        "    assert os.wait()[1] == 0, name\n"
        "from model.torchvision_ops import declare_missing_ops\n"
        "declare_missing_ops(); declare_missing_ops()\n"
        "import torchvision.transforms.v2\n"
        "declare_missing_ops(); print('fine')"
    )
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
