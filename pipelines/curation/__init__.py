"""Curation: scores every image and caption, and decides by the recipe's rules which samples are kept.

May import `pipelines.{errors, config, core, images, inference}` and `model`. Its stages read image shards and
write score and decision files; `score` runs the teacher on an accelerator where the recipe gives it one. No
network. This face brings no torch: import `pipelines.curation.score` by its own name.
"""

from dualtoken.pipelines.curation.filter import DECISION_SCHEMA
from dualtoken.pipelines.curation.rules import decide

__all__ = ["DECISION_SCHEMA", "decide"]
