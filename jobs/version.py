"""The line that `dualtoken --version` prints."""

from importlib import metadata

from dualtoken.infra.source_code import PACKAGE, commit, package_hash


def version_line() -> str:
    """Return the version, the hash of the package's sources, and the commit of a checkout."""
    line = f"{PACKAGE} {package_version()}, code {package_hash()}"
    if commit():
        line += f", commit {commit()}"
    return line


def package_version() -> str:
    """Return the package's version, or that this copy of it is not installed."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:  # a copy that is not installed, such as a job's
        return "(not installed)"
