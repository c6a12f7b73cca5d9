"""Entry points: the `dualtoken` command, and `python -m jobs.<stage>`, which a Ray job runs.

May import every folder; nobody imports this one. It prints, reads arguments and ends the process.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType


class _StageModules(MetaPathFinder):
    """Finds `jobs.<stage>` for every declared stage: one file, `stage_command.py`, serves them all."""

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != __name__:
            return None
        from dualtoken.pipelines.runtime.stages import commands  # noqa: PLC0415  (other imports of this package need no catalogue)

        if name not in commands():
            return None
        return spec_from_file_location(fullname, Path(__file__).with_name("stage_command.py"))


# Python's name of a program that it is still looking for: a module of this package, by `python -m`.
if sys.argv[0] == "-m":
    from dualtoken.jobs.stopping import stop_on_signals

    stop_on_signals()

# Last, so that the files of this folder are found first.
sys.meta_path.append(_StageModules())
