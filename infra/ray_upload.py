"""What is uploaded as a Ray job's working directory: code by an allow-list, and how much."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

from dualtoken.infra.source_code import CODE_SUFFIXES, PACKAGE, locations, package_files

EXCLUDES = (
    # Secrets.
    ".env",
    ".env.*",
    ".netrc",
    ".aws",
    ".ssh",
    ".ray",
    "auth_token",
    "id_rsa*",
    "id_ed25519*",
    "*.pem",
    "*.key",
    # Files that a job does not need.
    ".git",
    ".venv",
    "__pycache__",
    "node_modules",
    "/data",
)
"""Files that are never uploaded of any folder, in .gitignore's syntax."""
MAX_UPLOAD_MIB = 100
"""Largest working directory that is uploaded."""

PROJECT_FILE = "pyproject.toml"
_OWN_SUFFIXES = (*CODE_SUFFIXES, ".pyi", ".yaml", ".safetensors")
"""Files of our own package that are uploaded, as a wheel has them: the canary's weights too.

YAML is that of its recipes alone, since other files may hold secrets.
"""


@contextmanager
def staged_upload(packages: Iterable[str], private_files: Mapping[str, bytes]) -> Iterator[Path]:
    """Yield a temporary folder with what a job needs, wherever this package is installed.

    That is the code of our own package and of further top-level `packages` or modules, and `private_files`
    by name, which only the job's user may read. Nothing else that lies beside them is copied.
    """
    with tempfile.TemporaryDirectory(prefix="dualtoken-upload-") as folder:
        target = Path(folder)
        for path, file in package_files(PACKAGE, _OWN_SUFFIXES):
            if file.suffix != ".yaml" or path.parts[1] == "recipes":
                _copy(file, target / path)
        for package in packages:
            for path, file in package_files(package, CODE_SUFFIXES):
                _copy(file, target / path)
        for location in locations(PACKAGE):
            if (location.parent / PROJECT_FILE).is_file():
                _copy(location.parent / PROJECT_FILE, target / PROJECT_FILE)
        for name, content in private_files.items():
            descriptor = os.open(target / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
        yield target


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def check_size(folder: Path) -> None:
    """Refuse to upload a folder over the limit, as Ray itself would walk it."""
    if not folder.is_dir():
        raise ValueError(f"working_dir={folder} is no folder")
    sizes: dict[Path, int] = {}

    def add(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(folder)] = path.stat().st_size

    _dir_travel(folder, [_get_excludes(folder, list(EXCLUDES))], add, include_gitignore=True)
    total = sum(sizes.values())
    if total > MAX_UPLOAD_MIB * 2**20:
        largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:5]
        listed = ", ".join(f"{path} ({sizes[path] / 2**20:.0f} MiB)" for path in largest)
        raise ValueError(
            f"working_dir={folder} holds {total / 2**20:.0f} MiB, over {MAX_UPLOAD_MIB}: "
            f"name in .gitignore or .rayignore what the job does not need. Largest: {listed}"
        )
