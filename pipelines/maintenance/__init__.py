"""Maintenance: verify, repair, forget, garbage collection, explain, and the inspection of a shard.

May import the rooms before it in `ROOMS` (tests/test_imports.py), up to `evaluation`; nothing but `jobs`
needs it. It reads and writes stages' folders, on disk or an object store. Only deep verification and the
picture of a shard's row use a network, on an accelerator where there is one; importing the room brings no
torch.
"""

from dualtoken.pipelines.maintenance.explain import explain
from dualtoken.pipelines.maintenance.findings import Finding, FindingKind, Problem, VerifiedFolder
from dualtoken.pipelines.maintenance.forget_plan import plan_forget
from dualtoken.pipelines.maintenance.garbage import find_garbage
from dualtoken.pipelines.maintenance.repair import repair

__all__ = [
    "Finding",
    "FindingKind",
    "Problem",
    "VerifiedFolder",
    "explain",
    "find_garbage",
    "plan_forget",
    "repair",
]
