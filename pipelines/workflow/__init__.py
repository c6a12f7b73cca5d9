"""Workflow: a recipe's stages as Dagster assets, its corpora as partitions.

May import the rooms before it in `ROOMS` (tests/test_imports.py), up to `maintenance`. It is the only room
that imports Dagster, and its face imports nothing, since that takes a second: `assets.py` declares the
assets, `run.py` runs all of them in this process, `definitions.py` is what `dagster dev` serves, and
`finished_work.py` shows there what commands have finished. Dagster keeps records of its own; what is done is
for receipts to say.
"""
