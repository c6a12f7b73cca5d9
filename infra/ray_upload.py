"""What a Ray job's working directory may hold, and how large it may be."""

from pathlib import Path

from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

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
"""Files that are never uploaded, in .gitignore's syntax."""
MAX_UPLOAD_MIB = 100
"""Largest working directory that is uploaded."""


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
