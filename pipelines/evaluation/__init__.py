"""Evaluation: measures a tokenizer on held-out samples, and renders the report of a run.

May import the rooms before it in `ROOMS` (tests/test_imports.py), up to `training`. Reads every stage's
output from disks and object stores, and uses torch on the device of the stage. The page itself asks nothing
of the network.
"""

from dualtoken.pipelines.evaluation.report_data import ReportData, to_json
from dualtoken.pipelines.evaluation.report_page import render

__all__ = ["ReportData", "render", "to_json"]
