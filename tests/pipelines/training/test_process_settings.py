"""A training leaves its caller's process as it was."""

import logging
import os
import signal
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.training.process_settings import process_settings
from dualtoken.pipelines.training.teacher import train_loop as train_teacher
from dualtoken.pipelines.training.train import train_loop
from dualtoken.pipelines.training.train_context import SingleProcessContext
from tests.helpers.tiny_run import planned_job


def process() -> dict[str, object]:
    environment = dict(os.environ)
    # PyTorch sets it when its compiler is first imported, by whomever.
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    return {
        "environment": environment,
        "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "root logger": (logging.getLogger().level, list(logging.getLogger().handlers)),
        "warnings": list(warnings.filters),
        "threads": torch.get_num_threads(),
        "random numbers": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "folder": Path.cwd(),
    }


def test_beside_a_gpu_pytorch_has_one_thread_no_tf32_and_no_more_builders_than_the_worker_has_cpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    threads_before = torch.get_num_threads()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_num_threads(2)
    try:
        with process_settings(None):
            assert torch.get_num_threads() == 1
            assert not torch.backends.cudnn.allow_tf32
            assert os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == "2"
        assert torch.get_num_threads() == 2
        assert "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ
    finally:
        torch.set_num_threads(threads_before)


@pytest.mark.parametrize("stage", ["train", "teacher"])
def test_a_training_leaves_its_callers_process_as_it_was(
    stage: str, finished: Recipe, tmp_path: Path
) -> None:
    job = replace(planned_job(finished, stage), folder=str(tmp_path / "stage"))
    threads_before = torch.get_num_threads()
    torch.set_num_threads(2)
    logging.getLogger().setLevel(logging.INFO)
    try:
        before = process()
        if stage == "train":
            train_loop({"job": job}, SingleProcessContext(torch.device("cpu")))
        else:
            assert job.recipe.teacher.kind == "train"
            train_teacher({"job": job}, SingleProcessContext(torch.device("cpu")))
        after = process()
    finally:
        torch.set_num_threads(threads_before)
        logging.getLogger().setLevel(logging.WARNING)
    assert after == before
