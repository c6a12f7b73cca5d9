"""Which code this is: a hash of the sources that a module imports, and the commit of a checkout.

The hash is that of the text alone, so a checkout, an installed wheel and a Ray job's copy of equal sources
have equal hashes. Nothing is imported: import statements are read from the text.
"""

import hashlib
import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dualtoken.infra.machine_trouble import is_machine_trouble

PACKAGE = "dualtoken"
COMMIT_VARIABLE = "DUALTOKEN_COMMIT"
"""Environment variable with the commit of a copy that has no history, such as a Ray job's or an image's."""
CODE_SUFFIXES = (".py", ".jinja")
"""Files that are code: modules, and resources that a module beside them fills in."""
DIGITS = 12
"""Hexadecimal digits of a hash."""

_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<module>[\w.]+)[ \t]+import[ \t]+(?P<names>\([^)]*\)|[^\n]*)"
    r"|import[ \t]+(?P<modules>[^\n]*))",
    re.MULTILINE,
)
_NAME = re.compile(r"[A-Za-z_][\w.]*")
_GIT_SECONDS = 10.0


class _Source(NamedTuple):
    """A module's text, as far as its hash and its imports go."""

    line: str
    """The module's name and its text's checksum."""
    imports: frozenset[str]
    """Names that may be modules, of whatever package."""


@cache
def code_hash(*modules: str) -> str:
    """Hash the sources of modules and of all that they import, in functions too.

    Only this package and the modules' own top-level packages count; other libraries are the environment's.
    """
    files: dict[str, Path] = {}
    for top in {PACKAGE, *(module.partition(".")[0] for module in modules)}:
        files.update(module_files(top))
    waiting = list(modules)
    seen: set[str] = set()
    lines: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module in seen or module not in files:
            continue
        seen.add(module)
        source = _source(module, files[module])
        lines.add(source.line)
        waiting += source.imports
        waiting += _parents(module)
    lines.update(_resource_lines(seen, files))
    return _hash_lines(lines)


@cache
def package_hash() -> str:
    """Hash all sources of this package."""
    sources = [_source(module, file) for module, file in module_files(PACKAGE).items()]
    return _hash_lines({source.line for source in sources})


@cache
def commit() -> str:
    """Return the commit of the checkout that this package runs from, with `-dirty` for changed files.

    "" where there is no checkout: only a repository that the package is at the top of is asked.
    """
    named = os.environ.get(COMMIT_VARIABLE, "")
    (package, *_) = locations(PACKAGE)
    if named or not (package.parent / ".git").exists():
        return named
    describe = ["describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        ended = subprocess.run(  # noqa: S603  # all of the command is ours
            ["git", "-C", str(package.parent), *describe],  # noqa: S607  # git is on the PATH
            capture_output=True,
            text=True,
            check=False,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        if is_machine_trouble(error):
            raise
        return ""
    if ended.returncode:
        return ""
    return ended.stdout.strip()


@cache
def module_files(top: str) -> dict[str, Path]:
    """Return the files of a top-level package by module, and its resources by package and file name.

    Empty for a name that is no module.
    """
    files: dict[str, Path] = {}
    for path, file in package_files(top, CODE_SUFFIXES):
        name = ".".join(path.parts)
        files.setdefault(name.removesuffix(".py").removesuffix(".__init__"), file)
    return files


def package_files(top: str, suffixes: tuple[str, ...]) -> Iterator[tuple[PurePosixPath, Path]]:
    """Yield the files of a top-level package, or of a module, that have one of the suffixes.

    Each as its path from the folder that the package lies in, and its place.
    """
    for location in locations(top):
        if location.is_file():
            yield PurePosixPath(location.name), location
            continue
        for folder, folders, names in os.walk(location, followlinks=True):  # a checkout's rooms are links
            folders[:] = [name for name in folders if name.isidentifier() and name != "__pycache__"]
            below = PurePosixPath(top, *Path(folder).relative_to(location).parts)
            for name in names:
                if name.endswith(suffixes):
                    yield below / name, Path(folder, name)


@cache
def locations(top: str) -> tuple[Path, ...]:
    """Return the folders of a top-level package, or the one file of a module; none where it is neither."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return ()
    if spec is None:
        return ()
    if spec.submodule_search_locations is not None:
        return tuple(map(Path, spec.submodule_search_locations))
    if spec.has_location and spec.origin is not None:
        return (Path(spec.origin),)
    return ()


@cache
def _source(module: str, file: Path) -> _Source:
    # Text, so that another system's line ends make no difference.
    text = file.read_text(encoding="utf-8", errors="surrogateescape")
    imports: frozenset[str] = frozenset()
    if file.suffix == ".py":
        imports = frozenset(_imported(text))
    return _Source(f"{module} {_sha256(text)}", imports)


def _imported(text: str) -> Iterator[str]:
    """Yield what a text imports; `from a import b` gives `a` and `a.b`, either of which may be a module."""
    for statement in _IMPORT.finditer(text):
        module = statement["module"]
        if module is None:
            yield from _NAME.findall(statement["modules"])
            continue
        yield module
        for name in _NAME.findall(statement["names"]):
            yield f"{module}.{name}"


def _parents(module: str) -> Iterator[str]:
    """Yield the packages that a module is in."""
    while "." in module:
        module = module.rpartition(".")[0]
        yield module


def _resource_lines(modules: set[str], files: Mapping[str, Path]) -> Iterator[str]:
    """Yield a line for each resource that lies beside one of the modules."""
    packages = {module.rpartition(".")[0] for module in modules}
    for name, file in files.items():
        if file.suffix != ".py" and name.removesuffix(f".{file.name}") in packages:
            yield _source(name, file).line


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _hash_lines(lines: set[str]) -> str:
    return _sha256("\n".join(sorted(lines)))[:DIGITS]
