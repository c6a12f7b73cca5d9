"""Training: the stages that train the teacher and the tokenizer, and the one that stores the teacher's targets.

May import the rooms before it in `ROOMS` (tests/test_imports.py), up to `loader`. Reads image shards, decisions and
targets from disks and object stores, fetches pretrained weights over the network, and uses torch on the device of the
stage. Other rooms read its metrics log; each stage's `Worker` is found by its module.
"""

from dualtoken.pipelines.training.metrics_log import MetricsLog, read_metrics

__all__ = ["MetricsLog", "read_metrics"]
