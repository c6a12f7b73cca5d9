"""Which steps torch.profiler records, and on which worker; `test_engine.py` has whole trainings."""

from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity

from dualtoken.pipelines.training import profiling
from dualtoken.pipelines.training.profiling import StepProfiler
from tests.helpers.training_groups import CPU, GlooContext
from tests.pipelines.training.test_engine import toy_job


def test_the_first_worker_alone_stores_a_trace(tmp_path: Path) -> None:
    for rank in range(2):
        job = toy_job(tmp_path / f"rank {rank}", "train.profile=1:3")
        with StepProfiler(job, GlooContext(rank, 2), tmp_path) as profiler:
            for step in range(4):
                profiler.before_step(step)
    assert [path.name for path in tmp_path.glob("rank */logs/profile/*")] == ["steps-1-2.json.gz"]
    assert (tmp_path / "rank 0/logs/profile").exists()


def test_a_gpus_own_work_is_recorded_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[ProfilerActivity]] = []

    class Recorder(torch.profiler.profile):
        """Notes what is asked for, and records what this machine has."""

        def __init__(self, *, activities: list[ProfilerActivity], acc_events: bool) -> None:
            asked.append(set(activities))
            super().__init__(activities=[ProfilerActivity.CPU], acc_events=acc_events)

    monkeypatch.setattr(profiling, "profile", Recorder)
    for device in (CPU, torch.device("cuda")):
        job = toy_job(tmp_path / device.type, "train.profile=0:1")
        with StepProfiler(job, GlooContext(0, 1, device), tmp_path) as profiler:
            profiler.before_step(0)
            profiler.before_step(1)
    assert asked == [{ProfilerActivity.CPU}, {ProfilerActivity.CPU, ProfilerActivity.CUDA}]
