"""Loader: batches of tokens for a training run, exact, elastic and resumed from a count.

May import the rooms before it in `ROOMS` (tests/test_imports.py), up to `runtime`. Reads token datasets from
disks and object stores, keeps copies in a cache folder, and writes a quarantine ledger. Uses torch on the
CPU, no accelerator.

`from_recipe.py`, `documents.py` and `packed_loader.py` have no caller but tests and benchmarks yet: the MLLM
stage will be it.
"""

from dualtoken.pipelines.loader.batches import CodeIds, PackedBatch, TargetCounts, TokenBatch
from dualtoken.pipelines.loader.document_kinds import KINDS, DocumentKind
from dualtoken.pipelines.loader.documents import Markers, PackPlan
from dualtoken.pipelines.loader.from_recipe import load_plan
from dualtoken.pipelines.loader.packed_loader import PackedLoader
from dualtoken.pipelines.loader.plan import LoadPlan
from dualtoken.pipelines.loader.quarantine import read_quarantine
from dualtoken.pipelines.loader.token_loader import TokenLoader, iterate

__all__ = [
    "KINDS",
    "CodeIds",
    "DocumentKind",
    "LoadPlan",
    "Markers",
    "PackPlan",
    "PackedBatch",
    "PackedLoader",
    "TargetCounts",
    "TokenBatch",
    "TokenLoader",
    "iterate",
    "load_plan",
    "read_quarantine",
]
