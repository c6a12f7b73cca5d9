"""The night chart: tells whether a night of a metric is unlike the nights before it.

`judging.py` says by which rules, `calibration.py` how their limits follow from a history.
"""

from dualtoken.pipelines.nightly.calibration import calibrate
from dualtoken.pipelines.nightly.judging import judge
from dualtoken.pipelines.nightly.ruleset import History, Judged, Point, Ruleset, State

__all__ = ["History", "Judged", "Point", "Ruleset", "State", "calibrate", "judge"]
