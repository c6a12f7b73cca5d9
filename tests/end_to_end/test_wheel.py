"""The wheel beside other people's modules: it brings one name, `dualtoken`, and needs none of ours."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dualtoken.pipelines.config.recipe import Recipe
from tests.helpers.ray_head import RayHead
from tests.helpers.tiny_run import PROJECT, TINY, LoadTiny, planned, planned_job, tokens_job

pytestmark = pytest.mark.slow

TRAINING_SCRIPT = """
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import infra, jobs, model, pipelines, recipes  # those of this folder
import dualtoken

assert "torch" not in sys.modules, "the public names are imported on first use"
assert "site-packages" in dualtoken.__file__
assert model.MINE and Path(infra.__file__).parent.parent == Path.cwd()

def main():
    tokens, tokenizer_folder = sys.argv[1:]
    dataset = dualtoken.TokenDataset(tokens)
    print(dataset.read(np.arange(2)).semantic.shape)
    sha256 = dualtoken.digest(Path(tokenizer_folder) / "model.safetensors").sha256
    plan = dualtoken.LoadPlan(datasets=(dataset,), tokenizer=sha256)
    loader = dualtoken.TokenLoader(plan, batch_size=8)
    print(sum(len(batch.keys) for batch in dualtoken.iterate(loader, num_workers=2)))
    tokenizer = dualtoken.DualTokenizer.from_pretrained(tokenizer_folder)
    codes = tokenizer.encode(tokenizer.transform([Image.new("RGB", (40, 30), "teal")]))
    print(tuple(codes.semantic.shape), tuple(codes.pixel.shape))
    print(dualtoken.load_recipe("scenes").name, dualtoken.SCHEMA_VERSION)

if __name__ == "__main__":
    main()
"""


def run(*command: object, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if "PIP_FIND_LINKS" in environment:
        environment.setdefault("UV_FIND_LINKS", environment["PIP_FIND_LINKS"])  # uv reads no setting of pip's
    ended = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a clean copy of what git tracks."""
    folder = tmp_path_factory.mktemp("wheel")
    run("git", "clone", "--quiet", PROJECT, folder / "copy", folder=folder)
    run(
        sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", folder, folder=folder / "copy"
    )
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_one_top_level_name_and_all_of_its_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dualtoken"}
    for file in ("__init__.pyi", "recipes/scenes.yaml", "pipelines/evaluation/report.html.jinja"):
        assert f"dualtoken/{file}" in names


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("installed")
    python = folder / "env" / "bin" / "python"
    run(sys.executable, "-m", "venv", folder / "env", folder=folder)
    constraints = PROJECT / "constraints.txt"
    run(
        *(sys.executable, "-m", "uv", "pip", "install", "--quiet"),
        *("--python", python, "--constraint", constraints, wheel),
        folder=folder,
    )
    return python


def test_a_training_script_beside_a_model_py_of_its_own_reads_tokens_and_tokenizes(
    python: Path, tmp_path: Path, finished: Recipe
) -> None:
    project = tmp_path / "project"
    for package in ("infra", "jobs", "pipelines", "recipes"):
        (project / package).mkdir(parents=True)
        (project / package / "__init__.py").write_text("MINE = True\n")
    (project / "model.py").write_text("MINE = True\n")
    (project / "train.py").write_text(TRAINING_SCRIPT)
    tokens = tokens_job(finished)
    tokenizer = planned_job(finished, "train")
    lines = run(python, "train.py", tokens.folder, tokenizer.folder, folder=project).splitlines()
    kept = sum(unit.rows for unit in tokens.units)
    assert lines == ["(2, 4, 4, 2)", str(kept), "(1, 4, 4, 2) (1, 4, 4, 2)", "scenes 1"]


def test_an_installed_wheel_submits_a_stage_with_its_own_code(
    python: Path, tmp_path: Path, ray_head: RayHead, load_tiny: LoadTiny
) -> None:
    shutil.copy(TINY, tmp_path / "mine.yaml")
    (tmp_path / "keys.env").write_text("SECRET=1\n")
    # What the job runs is told from the code that the cluster has.
    recipes = next(python.parents[1].glob("lib/*/site-packages/dualtoken/recipes/__init__.py"))
    recipes.write_text(recipes.read_text() + "\n# as installed\n")
    command = [python.with_name("dualtoken"), "submit", "scenes", "mine.yaml", "--root", tmp_path / "root"]
    ended = run(*command, "--address", ray_head.address, folder=tmp_path)
    assert "scenes tiny-train 00000 done" in ended
    manifest = planned(load_tiny(tmp_path / "root"), "scenes", "tiny-train").manifest
    assert manifest is not None
    assert manifest.counts == {"ok": 40}
    uploaded = list(ray_head.folder.glob("session_2*/runtime_resources/working_dir_files/*/dualtoken"))
    assert [(folder / "recipes/__init__.py").read_bytes() for folder in uploaded] == [recipes.read_bytes()]
    assert not list(ray_head.folder.rglob("keys.env"))
