"""What a job's working directory holds: code by an allow-list, wherever the package is installed."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

from dualtoken.infra.ray_upload import staged_upload
from tests.helpers.tiny_run import PROJECT

SECRETS = (
    *("keys.env", "credentials", ".npmrc", ".git-credentials", "kubeconfig", "service-account.json"),
    *("secrets.yaml", "id_dsa", "hf_token", ".aws/credentials", "rclone.conf", "terraform.tfstate"),
)
CANARY = "pipelines/evaluation/canary_mllm.safetensors"
STAGE = """
import shutil, sys
from dualtoken.infra.ray_upload import staged_upload
with staged_upload(["my_stages"], {"recipe.json": b"{}"}) as folder:
    shutil.copytree(folder, sys.argv[1])
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the package as it is installed, another package, and secrets in and beside both."""
    site = tmp_path / "site-packages"
    shutil.copytree(PROJECT / "dualtoken", site / "dualtoken", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "my_stages").mkdir()
    (site / "my_stages/__init__.py").write_text("")
    (site / "my_stages/brightness.py").write_text("")
    (site / "other_library.py").write_text("")
    for folder in (site, site / "dualtoken", site / "dualtoken/infra", site / "my_stages"):
        for name in SECRETS:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("S3CRET")
    return site


def test_an_installed_package_is_uploaded_without_what_lies_beside_it(
    installed: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    staged = tmp_path / "staged"
    subprocess.run([sys.executable, "-c", STAGE, staged], cwd=tmp_path, env=environment, check=True)
    files = {path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file()}
    tops = {file.partition("/")[0] for file in files}
    assert tops == {"dualtoken", "my_stages", "recipe.json"}
    assert {"dualtoken/__init__.pyi", "dualtoken/recipes/scenes.yaml", "my_stages/brightness.py"} <= files
    weights = [file for file in files if file.endswith(".safetensors")]
    assert weights == [f"dualtoken/{CANARY}"]
    others = {Path(file).suffix for file in files if file not in weights}
    assert others == {".py", ".pyi", ".jinja", ".yaml", ".json"}
    assert not any(Path(file).name in SECRETS for file in files)


def test_the_upload_of_a_checkout_has_files_for_links_and_runs_by_itself() -> None:
    with staged_upload([], {"recipe.json": b"{}"}) as folder:
        assert not any(path.is_symlink() for path in folder.rglob("*"))
        assert (folder / "pyproject.toml").read_bytes() == (PROJECT / "pyproject.toml").read_bytes()
        assert stat.S_IMODE((folder / "recipe.json").stat().st_mode) == 0o600
        command = [sys.executable, "-m", "dualtoken.jobs.scenes", "recipe.json"]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
        # From the uploaded code, which finds the uploaded recipe.
        assert "recipe.json: name is missing" in ended.stderr
    assert not folder.exists()


def test_rays_own_upload_of_a_checkout_takes_code_alone(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    ours = ("infra/fetch.py", "recipes/scenes.yaml", "pyproject.toml", CANARY)
    others = (*SECRETS, "infra/keys.env", "model/model.safetensors", "pipelines/model.safetensors")
    for name in (*ours, *others):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("")
    (checkout / "dualtoken").mkdir()
    for room in ("recipes", "pipelines"):
        (checkout / "dualtoken" / room).symlink_to(f"../{room}")
    shutil.copyfile(PROJECT / ".rayignore", checkout / ".rayignore")
    taken: list[str] = []

    def take(path: Path) -> None:
        if path.is_file():
            taken.append(path.relative_to(checkout).as_posix())

    _dir_travel(checkout, [_get_excludes(checkout, [])], take, include_gitignore=True)
    assert sorted(taken) == sorted([*ours, "dualtoken/recipes/scenes.yaml", f"dualtoken/{CANARY}"])
