"""Runtime: how stages are declared, planned and run, in this process, on Ray, or as a submitted job.

May import the rooms before it in `ROOMS` (tests/test_imports.py), up to `tokens`. It reads and writes stages'
folders, on disk or an object store; only `ray_executor` and `submit` bring Ray and talk to a cluster, and
neither this face nor the other files import them. Workers are imported in the process that runs them, so
importing the room brings no torch.
"""

from dualtoken.pipelines.runtime.executor import Executor, LocalExecutor
from dualtoken.pipelines.runtime.open_executor import open_executor
from dualtoken.pipelines.runtime.plan import PlannedStage, Planner
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.runtime.stage import Budget, SharedFiles, Stage, single_unit, source_units, units_of
from dualtoken.pipelines.runtime.stages import all_stages, commands, declare, get_stage

__all__ = [
    "Budget",
    "Executor",
    "LocalExecutor",
    "PlannedStage",
    "Planner",
    "SharedFiles",
    "Stage",
    "all_stages",
    "commands",
    "declare",
    "get_stage",
    "open_executor",
    "run_command",
    "single_unit",
    "source_units",
    "units_of",
]
