"""Workflow: a recipe's stages as Dagster assets by corpus, and a nightly by night.

May import the rooms before it in `ROOMS` (tests/test_imports.py), up to `nightly`. It is the only room
that imports Dagster, and its face imports nothing, since that takes a second: `assets.py` declares the
assets, `run.py` runs all of them in this process, `definitions.py` is what `dagster dev` serves, and
`finished_work.py` shows there what commands have finished. `nightly.py` declares the nights with their
schedule and checks, `nightly_sensors.py` asks for those that are overdue. Dagster keeps records of its own;
what is done is for receipts to say, and for a nightly's history.
"""
