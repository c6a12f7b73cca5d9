"""Entry points. Imported before torch, so that what is set here counts in this process and in Ray's workers."""

import os

# OpenMP's threads spin while they wait, which starves a machine that has other work: a training step of 1.7 s took 13.5 s
# beside one busy process on 2 cores (Xeon, 2026-11-24). Set it yourself to overrule this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
