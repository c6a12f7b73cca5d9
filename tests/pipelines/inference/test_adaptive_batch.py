"""A batch that does not fit in memory is halved, and that changes no codes."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.curation import score
from dualtoken.pipelines.inference.adaptive_batch import (
    AdaptiveBatchEncoder,
    ImageTooLargeError,
    is_out_of_memory,
)
from dualtoken.pipelines.inference.networks import (
    StreamCodes,
    TeacherRunner,
    TokenizerRunner,
    best_device,
)
from dualtoken.pipelines.tokens.shards import read_data_shard
from dualtoken.pipelines.training import targets
from tests.helpers.tiny_run import LoadTiny, planned_job


@pytest.fixture(scope="module")
def tokenizer(finished: Recipe) -> TokenizerRunner:
    return TokenizerRunner(Path(planned_job(finished, "train").folder), best_device())


class Cramped:
    """A tokenizer on a device that holds only so many images; its errors are the allocator's own."""

    def __init__(self, tokenizer: TokenizerRunner, room: int) -> None:
        self._tokenizer = tokenizer
        self._room = room
        self.sizes = list[int]()

    def encode_levels(self, levels: torch.Tensor) -> StreamCodes:
        self.sizes.append(len(levels))
        if len(levels) > self._room:
            torch.empty(1 << 60, dtype=torch.uint8)
        return self._tokenizer.encode_levels(levels)


def test_a_batch_that_does_not_fit_is_halved_and_gives_the_same_codes(tokenizer: TokenizerRunner) -> None:
    levels = torch.randint(
        0, 256, (11, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    device = Cramped(tokenizer, room=3)
    encoder = AdaptiveBatchEncoder(device, batch_size=11)
    codes = encoder.encode(levels)
    whole = tokenizer.encode_levels(levels)
    assert device.sizes == [11, 5, 2, 2, 2, 2, 2, 1]
    assert all((one == other).all() for one, other in zip(codes, whole, strict=True))
    encoder.encode(levels[:4])
    assert device.sizes[8:] == [2, 2], "a size that did not fit is not tried again within a unit"


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA out of memory. Tried to allocate 2 GiB",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "GET was unable to find an engine to execute this computation",
        "FIND was unable to find an engine to execute this computation",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    ],
)
def test_every_way_to_say_that_memory_ran_out_is_known(said: str) -> None:
    assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_an_image_that_does_not_fit_alone_is_an_error_that_says_so(tokenizer: TokenizerRunner) -> None:
    levels = torch.zeros((4, 3, 32, 32), dtype=torch.uint8)
    with pytest.raises(ImageTooLargeError, match=r"^pretokenize.batch_size=4: one image alone does not fit"):
        AdaptiveBatchEncoder(Cramped(tokenizer, room=0), 4).encode(levels)


def test_a_teacher_takes_smaller_batches_where_memory_is_full_and_says_how_small(
    finished: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def cramped(self: TeacherRunner, levels: torch.Tensor, *others: Any) -> Any:
        sizes.append(len(levels))
        if len(levels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return open_targets(self, levels, *others)

    open_targets = TeacherRunner.targets
    monkeypatch.setattr(TeacherRunner, "targets", cramped)
    job = planned_job(finished, "targets", "tiny-train")
    unit = job.units[0]
    output = targets.Worker(job).run(unit, tmp_path)
    assert sizes == [4, 2, 2]
    assert output.facts["batch_size"] == 2
    found = read_data_shard(tmp_path / f"{unit.id}.arrow")
    stored = read_data_shard(Path(job.folder) / f"{unit.id}.arrow")
    assert found["key"].equals(stored["key"])
    for name in ("pooled", "dense"):
        # A matrix product of fewer rows rounds in other ways.
        np.testing.assert_allclose(
            np.stack(found[name].to_numpy()), np.stack(stored[name].to_numpy()), atol=2e-3, rtol=1e-3
        )


def test_a_score_takes_smaller_batches_where_memory_is_full(
    finished: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cramped(self: TeacherRunner, levels: torch.Tensor) -> torch.Tensor:
        if len(levels) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return embed(self, levels)

    embed = TeacherRunner.images
    monkeypatch.setattr(TeacherRunner, "images", cramped)
    job = planned_job(finished, "score", "tiny-train")
    unit = job.units[0]
    output = score.Worker(job).run(unit, tmp_path)
    assert output.facts["batch_size"] == 1
    found = pq.read_table(tmp_path / f"{unit.id}.parquet")
    stored = pq.read_table(Path(job.folder) / f"{unit.id}.parquet")
    assert found["key"].equals(stored["key"])
    assert found["similarity"].to_pylist() == pytest.approx(stored["similarity"].to_pylist(), abs=1e-6)


@pytest.mark.parametrize("stage", ["score", "targets"])
def test_bfloat16_moves_what_a_teacher_says_by_its_rounding_and_gives_a_folder_of_its_own(
    stage: str, finished: Recipe, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    key = "filter" if stage == "score" else "targets"
    recipe = load_tiny(Path(finished.root), f"{key}.precision=bfloat16")
    before = planned_job(finished, stage, "tiny-train")
    job = planned_job(recipe, stage, "tiny-train")
    assert job.folder != before.folder
    worker = score.Worker(job) if stage == "score" else targets.Worker(job)
    unit = job.units[0]
    worker.run(unit, tmp_path)
    if stage == "score":
        found = pq.read_table(tmp_path / f"{unit.id}.parquet")
        stored = pq.read_table(Path(before.folder) / f"{unit.id}.parquet")
    else:
        found = read_data_shard(tmp_path / f"{unit.id}.arrow")
        stored = read_data_shard(Path(before.folder) / f"{unit.id}.arrow")
    similarities = found["similarity"].to_pylist()
    assert similarities == pytest.approx(stored["similarity"].to_pylist(), abs=0.03)
    assert similarities != stored["similarity"].to_pylist()


class Broken:
    """A tokenizer whose error is PyTorch's own, and not one of memory."""

    def encode_levels(self, levels: torch.Tensor) -> StreamCodes:
        torch.add(torch.zeros(len(levels)), torch.zeros(len(levels) + 1))
        raise AssertionError("the sum is an error")


def test_another_error_of_the_encoder_is_no_matter_of_memory() -> None:
    with pytest.raises(RuntimeError, match="size of tensor"):
        AdaptiveBatchEncoder(Broken(), 4).encode(torch.zeros((4, 3, 32, 32), dtype=torch.uint8))
