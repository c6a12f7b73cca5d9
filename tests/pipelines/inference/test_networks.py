"""A stage runs on the device that its recipe gives it, whatever else the machine has."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dualtoken.pipelines.core.lent_process import lent_process
from dualtoken.pipelines.core.stage import StageJob, Unit, Work
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.inference import networks
from dualtoken.pipelines.inference.image_files import open_model
from dualtoken.pipelines.inference.networks import (
    open_teacher,
    open_tokenizer,
    prepare_process,
    stage_device,
)
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.stages import get_stage
from dualtoken.pipelines.training import teacher, train
from tests.helpers.tiny_run import LoadTiny

LOOKING = ("score", "targets", "pretokenize", "report")
GPU_THERE = True
NONE_THERE = False
NONE_HERE = "asks for a GPU, and PyTorch finds none here: run where there is one, or change it"
JobOf = Callable[..., StageJob]


@pytest.fixture
def job_of(tmp_path: Path, load_tiny: LoadTiny) -> JobOf:
    """Return a stage's job; what it reads is not there, and is not needed to choose a device."""

    def job_of(stage: str, *settings: str) -> StageJob:
        inputs = {"teacher": str(tmp_path), "train": str(tmp_path)}
        recipe = load_tiny(tmp_path, *settings)
        return get_stage(stage).job(None, recipe, str(tmp_path), "0", inputs, (Unit("model", 0),))

    return job_of


@pytest.fixture
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("machine", [GPU_THERE, NONE_THERE], indirect=True)
@pytest.mark.parametrize("stage", ["teacher", "train", *LOOKING])
def test_a_recipe_without_gpus_leaves_a_gpu_alone(stage: str, job_of: JobOf) -> None:
    assert stage_device(job_of(stage)) == torch.device("cpu")
    setting_of_other_stages = "train.use_gpu=true"
    if stage in {"teacher", "train"}:
        setting_of_other_stages = "cluster.gpus_per_worker=1"
    assert stage_device(job_of(stage, setting_of_other_stages)) == torch.device("cpu")


ASKED = {
    "teacher": "train.use_gpu=true",
    "train": "train.use_gpu=true",
    **dict.fromkeys(LOOKING, "cluster.gpus_per_worker=0.5"),
}


@pytest.fixture(autouse=True)
def memory_fractions(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the shares of a GPU's memory that PyTorch was limited to."""
    fractions: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    return fractions


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("machine", [GPU_THERE], indirect=True)
@pytest.mark.parametrize("stage", ASKED)
def test_a_share_of_a_gpu_is_a_share_of_its_memory(
    stage: str, job_of: JobOf, memory_fractions: list[float]
) -> None:
    stage_device(job_of(stage, ASKED[stage]))
    assert memory_fractions == ([] if stage in {"teacher", "train"} else [pytest.approx(0.475)])
    stage_device(job_of(stage, "train.use_gpu=true", "cluster.gpus_per_worker=1"))
    assert len(memory_fractions) <= 1, "a whole GPU is not limited"


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("machine", [NONE_THERE], indirect=True)
@pytest.mark.parametrize(
    ("cuda", "driver", "said"),
    [
        (
            "13.0",
            "535.183.01",
            "is for CUDA 13.0, which needs driver 580 or later, and here is 535",
        ),
        (
            None,
            "580.82.07",
            "is for CPUs, and the machine has NVIDIA's driver 580.82.07: install",
        ),
        ("13.0", None, "run where there is one, or change it"),
    ],
)
def test_a_driver_too_old_and_a_pytorch_for_cpus_are_named(
    cuda: str | None, driver: str | None, said: str, job_of: JobOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(networks, "driver_version", lambda: driver)
    with pytest.raises(UserError, match=re.escape(said)):
        stage_device(job_of("score", ASKED["score"]))


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("machine", [GPU_THERE], indirect=True)
@pytest.mark.parametrize("stage", ASKED)
def test_a_recipe_with_gpus_gets_one(stage: str, job_of: JobOf) -> None:
    assert stage_device(job_of(stage, ASKED[stage])) == torch.device("cuda")


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("machine", [NONE_THERE], indirect=True)
@pytest.mark.parametrize("stage", ASKED)
def test_a_gpu_that_is_not_there_is_told_in_one_line_by_what_opens_the_networks(
    stage: str, job_of: JobOf, tmp_path: Path
) -> None:
    job = job_of(stage, ASKED[stage])
    openers: dict[str, Callable[[], object]] = {
        "teacher": lambda: teacher.Worker(job).run(job.units[0], tmp_path),
        "train": lambda: train.Worker(job).run(job.units[0], tmp_path),
        "pretokenize": lambda: open_tokenizer(job),
    }
    with pytest.raises(UserError) as error:
        openers.get(stage, lambda: open_teacher(job))()
    assert str(error.value) == f"{job.label}: {ASKED[stage]} {NONE_HERE}"


@pytest.fixture
def tf32_is_allowed() -> Iterator[None]:
    before = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.usefixtures("tf32_is_allowed", "machine")
@pytest.mark.parametrize("machine", [GPU_THERE], indirect=True)
@pytest.mark.parametrize("stage", ASKED)
def test_no_stage_on_a_gpu_rounds_to_tf32(stage: str, job_of: JobOf) -> None:
    stage_device(job_of(stage, ASKED[stage]))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.usefixtures("tf32_is_allowed")
def test_a_process_is_prepared_as_its_owner_asks() -> None:
    threads = torch.get_num_threads()
    prepare_process(threads=None)
    assert torch.get_num_threads() == threads
    try:
        prepare_process(threads=threads + 1)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.usefixtures("tf32_is_allowed")
def test_a_process_that_is_lent_has_its_settings_back() -> None:
    threads = torch.get_num_threads()
    before = kept_settings()
    with lent_process():
        prepare_process(threads=threads + 1)
        prepare_process(threads=threads + 2)
        assert torch.get_num_threads() == threads + 2
        assert kept_settings() != before
    assert torch.get_num_threads() == threads
    assert kept_settings() == before


def kept_settings() -> tuple[object, ...]:
    """Return all that PyTorch says of its precision of float32."""
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    return (
        torch.get_float32_matmul_precision(),
        matmul.allow_tf32,
        matmul.fp32_precision,
        cudnn.allow_tf32,
        cudnn.conv.fp32_precision,
        cudnn.rnn.fp32_precision,
    )


@pytest.mark.parametrize("stage", ["score", "targets", "report"])
def test_a_stage_in_this_process_leaves_it_as_it_was(stage: str, job_of: JobOf) -> None:
    job = job_of(stage)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    before = kept_settings()
    during: list[int] = []
    try:
        for outcome in LocalExecutor().run([Work(job, job.units)]):
            assert outcome.error, "there are no networks to open"
            during.append(torch.get_num_threads())
        assert (torch.get_num_threads(), kept_settings()) == (2, before)
    finally:
        torch.set_num_threads(threads)
    assert during == [1]


@pytest.mark.usefixtures("tf32_is_allowed")
def test_a_command_on_image_files_leaves_no_tf32_to_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        open_model(str(tmp_path))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
