"""Token loader: every key once, and a resumed run takes the samples of an uninterrupted one."""

import contextlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dualtoken.pipelines.core.ledger import key_fraction
from dualtoken.pipelines.loader.batches import TokenBatch
from dualtoken.pipelines.loader.sample_reader import SampleReader
from dualtoken.pipelines.loader.token_loader import LoadPlan, TokenLoader, iterate
from dualtoken.pipelines.tokens.reader import TokenDataset
from tests.helpers.loader_workers import by_workers, keys_in, keys_of_rows
from tests.helpers.token_datasets import key_of, write_tokens

ROWS = {"a": 700, "b": 130}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenDataset, ...]:
    folder = tmp_path_factory.mktemp("tokens")
    opened: list[TokenDataset] = []
    for name, rows in ROWS.items():
        url = write_tokens(folder / name, rows, name=name)
        opened.append(TokenDataset(url, streams=["semantic"]))
    return tuple(opened)


def all_keys() -> Counter[bytes]:
    return keys_of_rows({name: range(rows) for name, rows in ROWS.items()})


def spread(
    plan: LoadPlan,
    batch_size: int,
    world_size: int,
    steps: int | None = None,
    state: dict[str, object] | None = None,
    workers: int = 1,
) -> tuple[list[TokenBatch], dict[str, object]]:
    """Run all ranks for some steps, or to the end; return all ranks' batches and the state after them."""
    batches: list[TokenBatch] = []
    states: list[dict[str, object]] = []
    steps_taken: set[int] = set()
    for rank in range(world_size):
        loader = TokenLoader(plan, batch_size, rank=rank, world_size=world_size)
        if state is not None:
            loader.load_state_dict(state)
        rank_batches = list(itertools.islice(by_workers(loader, workers), steps))
        batches += rank_batches
        steps_taken.add(len(rank_batches))
        last = rank_batches[-1] if rank_batches else None
        states.append(json.loads(json.dumps(loader.state_dict(last))))
    assert states == [states[0]] * world_size
    assert len(steps_taken) == 1, "ranks of different numbers of steps"
    return batches, states[0]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.integers(1, 90),
    world_size=st.integers(1, 7),
    workers=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_an_epoch_has_every_key_once_over_any_number_of_ranks(
    datasets: tuple[TokenDataset, ...], batch_size: int, world_size: int, workers: int, seed: int
) -> None:
    batches, state = spread(LoadPlan(datasets=datasets, seed=seed), batch_size, world_size, workers=workers)
    assert keys_in(batches) == all_keys()
    assert state["samples"] == sum(ROWS.values())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_run_resumes_under_other_ranks_and_batches_with_the_samples_of_an_uninterrupted_one(
    datasets: tuple[TokenDataset, ...], data: st.DataObject
) -> None:
    weights = {
        0: [3.0, 1.0],
        data.draw(st.integers(1, 6000)): data.draw(st.sampled_from([[1.0, 0.0], [0.2, 5.0]])),
    }
    plans = [
        LoadPlan(datasets=datasets, seed=1),
        LoadPlan(datasets=datasets, epochs=(1, 2.5), seed=2),
        LoadPlan(datasets=datasets, epochs=(2, 1.5), seed=4, shuffle_shards=2),
        LoadPlan(datasets=datasets, weights=weights, seed=3),
    ]
    plan = data.draw(st.sampled_from(plans))
    ranks = st.integers(1, 5)
    batch_sizes = st.integers(1, 60)
    steps = st.integers(0, 4)
    workers = st.integers(1, 3)
    first, state = spread(
        plan, data.draw(batch_sizes), data.draw(ranks), data.draw(steps), workers=data.draw(workers)
    )
    second, end = spread(
        plan, data.draw(batch_sizes), data.draw(ranks), 1 + data.draw(steps), state, data.draw(workers)
    )
    total = end["samples"]
    assert isinstance(total, int)
    reader = SampleReader(plan)
    expected = reader.read(reader.locate(np.arange(total)))
    assert keys_in(first) + keys_in(second) == Counter(key.tobytes() for key in expected.keys)


@pytest.mark.parametrize(("num_workers", "method"), [(1, "fork"), (2, "fork"), (2, "spawn")])
def test_worker_processes_change_nothing(
    datasets: tuple[TokenDataset, ...], num_workers: int, method: Literal["fork", "spawn"]
) -> None:
    plan = LoadPlan(datasets=datasets, seed=5, with_captions=True)
    alone = list(iterate(TokenLoader(plan, 64)))
    together = list(iterate(TokenLoader(plan, 64), num_workers=num_workers, start_method=method))
    for batch, expected in zip(together, alone, strict=True):
        assert batch.samples == expected.samples
        assert np.array_equal(batch.keys, expected.keys)
        assert batch.captions == expected.captions
        assert batch.semantic is not None
        assert expected.semantic is not None
        assert np.array_equal(batch.semantic, expected.semantic)
        assert batch.pixel is None


def test_a_run_of_worker_processes_goes_on_after_its_last_batch_under_other_numbers(
    datasets: tuple[TokenDataset, ...],
) -> None:
    plan = LoadPlan(datasets=datasets, seed=5)
    first = TokenLoader(plan, 64)
    rest = TokenLoader(plan, 48)
    before = list(itertools.islice(iterate(first, num_workers=2), 5))
    rest.load_state_dict(json.loads(json.dumps(first.state_dict(before[-1]))))
    after = list(iterate(rest, num_workers=1))
    assert after
    assert keys_in(before) + keys_in(after) == all_keys()


@pytest.mark.parametrize("world_size", [1, 3])
def test_held_out_samples_are_never_yielded_and_all_others_once(
    datasets: tuple[TokenDataset, ...], world_size: int
) -> None:
    plan = LoadPlan(datasets=datasets, seed=2, heldout_fraction=0.4, with_captions=True)
    batches, state = spread(plan, 8, world_size)
    seen = Counter({key: 1 for key in all_keys() if key_fraction(key) >= 0.4})
    assert 0.5 < len(seen) / sum(ROWS.values()) < 0.7
    assert keys_in(batches) == seen
    assert state["samples"] == sum(ROWS.values())
    assert sum(batch.lost for batch in batches) == 0, "they are lost to nobody"
    whole, _ = spread(replace(plan, heldout_fraction=0.0), 8, world_size)
    everything = {bytes(key): (codes.tolist(), caption) for key, codes, caption in _samples(whole)}
    for key, codes, caption in _samples(batches):
        assert (codes.tolist(), caption) == everything[bytes(key)]


def _samples(batches: list[TokenBatch]) -> Iterator[tuple[Tensor, Tensor, str]]:
    for batch in batches:
        assert batch.semantic is not None
        assert batch.captions is not None
        yield from zip(batch.keys, batch.semantic, batch.captions, strict=True)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_that_leaves_nothing_is_refused(
    datasets: tuple[TokenDataset, ...], fraction: float
) -> None:
    with pytest.raises(ValueError, match=f"heldout_fraction={fraction}: give a fraction from 0, below 1"):
        LoadPlan(datasets=datasets, heldout_fraction=fraction)


def test_captions_and_sources_belong_to_their_keys(datasets: tuple[TokenDataset, ...]) -> None:
    (batch,) = TokenLoader(LoadPlan(datasets=datasets, with_captions=True), 1000)
    assert batch.captions is not None
    for key, source, caption in zip(batch.keys.numpy(), batch.source.tolist(), batch.captions, strict=True):
        name, row = caption.split()
        assert (key.tobytes(), "ab"[source]) == (key_of(name, int(row)), name)


def test_epochs_differ_in_order_and_an_unshuffled_run_is_in_order(datasets: tuple[TokenDataset, ...]) -> None:
    twice = LoadPlan(datasets=datasets[:1], epochs=(2,), with_captions=True)
    (batch,) = TokenLoader(twice, 2000)
    assert batch.captions is not None
    assert batch.captions[:700] != batch.captions[700:]
    in_order = LoadPlan(datasets=datasets[:1], shuffle=False, with_captions=True)
    (batch,) = TokenLoader(in_order, 2000)
    assert batch.captions is not None
    assert batch.captions == [f"a {row}" for row in range(700)]


@pytest.mark.parametrize("world_size", [3, 4, 7])
def test_ranks_share_each_step_in_parts_side_by_side_as_evenly_as_can_be(
    datasets: tuple[TokenDataset, ...], world_size: int
) -> None:
    plan = LoadPlan(datasets=datasets[:1], shuffle=False, with_captions=True)
    loaders = [TokenLoader(plan, 16, rank=rank, world_size=world_size) for rank in range(world_size)]
    steps = list(zip(*loaders, strict=True))
    taken: list[str] = []
    for step in steps:
        sizes: list[int] = []
        for batch in step:
            assert batch.captions is not None
            sizes.append(len(batch.captions))
            taken += batch.captions
        assert max(sizes) - min(sizes) <= 1
        assert set(sizes) == {16} or step is steps[-1]
    assert taken == [f"a {row}" for row in range(700)]


def test_a_windowed_shuffle_opens_few_shards_at_a_time_and_gives_each_key_once(
    datasets: tuple[TokenDataset, ...], tmp_path: Path
) -> None:
    dataset = TokenDataset(write_tokens(tmp_path / "a", 200, rows_per_shard=10))
    batches = list(TokenLoader(LoadPlan(datasets=(dataset,), shuffle_shards=4, with_captions=True), 40))
    assert keys_in(batches) == keys_of_rows({"a": range(200)})
    assert len(batches) == 5
    for batch in batches:
        assert batch.captions is not None
        shards = {int(caption.removeprefix("a ")) // 10 for caption in batch.captions}
        assert len(shards) == 4
    for num_shards, shuffle in ((0, True), (3, False)):
        with pytest.raises(
            ValueError,
            match=f"shuffle_shards={num_shards}, shuffle={shuffle}: give at least 1 shard, and shuffle",
        ):
            LoadPlan(datasets=datasets, shuffle_shards=num_shards, shuffle=shuffle)


def test_a_batch_that_is_held_stays_as_it_is(datasets: tuple[TokenDataset, ...]) -> None:
    loader = TokenLoader(LoadPlan(datasets=datasets), 8)
    held = [(batch, batch.keys.clone()) for batch in loader]
    semantic = next(iter(loader)).semantic
    assert semantic is not None
    row = semantic[3]
    copy_of_row = row.clone()
    del semantic
    for _ in loader:
        pass
    assert torch.equal(row, copy_of_row), "memory of a batch of which a part is still held"
    for batch, copy_of_keys in held:
        assert torch.equal(batch.keys, copy_of_keys)


def test_a_worker_that_hangs_is_told_within_the_time_given(datasets: tuple[TokenDataset, ...]) -> None:
    with pytest.raises(TimeoutError, match=r"no batch came for 1 s: look at the storage of .*/a, .*/b$"):
        list(iterate(_Hanging(LoadPlan(datasets=datasets), 64), num_workers=1, stall_seconds=1))


class _Hanging(TokenLoader):
    """Storage that gives a first batch and never answers again."""

    def __iter__(self) -> Iterator[TokenBatch]:
        for batch in super().__iter__():
            yield batch
            time.sleep(600)


def test_a_worker_that_fails_is_not_said_to_hang(datasets: tuple[TokenDataset, ...]) -> None:
    with pytest.raises(RuntimeError, match="the store timed out"):
        list(iterate(_Failing(LoadPlan(datasets=datasets), 64), num_workers=1))


class _Failing(TokenLoader):
    """Storage that gives up."""

    def __iter__(self) -> Iterator[TokenBatch]:
        raise RuntimeError("the store timed out")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
def test_batches_of_workers_take_no_shared_memory(datasets: tuple[TokenDataset, ...]) -> None:
    held = list(iterate(TokenLoader(LoadPlan(datasets=datasets), 64), num_workers=1))
    assert held
    assert "/torch_" not in Path("/proc/self/maps").read_text(encoding="utf-8")


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm here")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_killed_run_leaves_no_shared_memory_behind(datasets: tuple[TokenDataset, ...]) -> None:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    run = context.Process(
        target=_report_then_wait, args=(TokenLoader(LoadPlan(datasets=datasets), 8), sender)
    )
    run.start()
    assert receiver.poll(60)
    workers = receiver.recv()
    run.kill()
    run.join()
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    for file in Path("/dev/shm").iterdir():
        for process in (run.pid, *workers):
            assert str(process) not in file.name


def _report_then_wait(loader: TokenLoader, sender: Any) -> None:
    batches = iterate(loader, num_workers=2)
    next(batches)
    sender.send([child.pid for child in multiprocessing.active_children()])
    time.sleep(600)


def _first_key(loader: TokenLoader) -> bytes:
    return next(iter(loader)).keys[0].numpy().tobytes()


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_loader_goes_to_processes_of_either_kind(datasets: tuple[TokenDataset, ...], method: str) -> None:
    loader = TokenLoader(LoadPlan(datasets=datasets), 8)
    here = _first_key(loader)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(_first_key, (loader,)) == here


def test_a_state_of_other_data_or_another_order_is_refused(datasets: tuple[TokenDataset, ...]) -> None:
    state = TokenLoader(LoadPlan(datasets=datasets, seed=1), 8).state_dict(None)
    for plan, message in (
        (LoadPlan(datasets=datasets, seed=2), "loader state has seed=1, this run 2"),
        (LoadPlan(datasets=datasets[:1], seed=1), "loader state has datasets="),
        (LoadPlan(datasets=datasets, seed=1, epochs=(1, 2)), "loader state has epochs=None"),
        (
            LoadPlan(datasets=datasets, seed=1, shuffle_shards=8),
            "loader state has shuffle_shards=None, this run 8",
        ),
        (
            LoadPlan(datasets=datasets, seed=1, heldout_fraction=0.1),
            "loader state has heldout_fraction=None, this run 0.1",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            TokenLoader(plan, 8).load_state_dict(state)
    with pytest.raises(ValueError, match="loader state has version 99"):
        TokenLoader(LoadPlan(datasets=datasets), 8).load_state_dict({**state, "version": 99})
    del state["plan"]["shuffle_shards"]  # as states were before there were windows
    TokenLoader(LoadPlan(datasets=datasets, seed=1), 8).load_state_dict(state)


def test_a_state_of_the_same_place_and_rows_with_other_tokens_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    state = TokenLoader(LoadPlan(datasets=(TokenDataset(write_tokens(folder, 10)),)), 8).state_dict(None)
    shutil.rmtree(folder)
    other = TokenLoader(LoadPlan(datasets=(TokenDataset(write_tokens(folder, 10, tokenizer="e" * 12)),)), 8)
    with pytest.raises(ValueError, match="loader state has datasets="):
        other.load_state_dict(state)


def test_a_state_in_mid_run_without_the_batch_that_it_is_after_is_refused(
    datasets: tuple[TokenDataset, ...],
) -> None:
    loader = TokenLoader(LoadPlan(datasets=datasets), 8)
    next(iter(loader))
    state_dict: Any = loader.state_dict
    with pytest.raises(TypeError, match="last"):
        state_dict()


def test_a_mixture_of_two_tokenizers_is_refused(datasets: tuple[TokenDataset, ...], tmp_path: Path) -> None:
    other = TokenDataset(write_tokens(tmp_path / "other", 10, tokenizer="e" * 12), streams=["semantic"])
    with pytest.raises(
        ValueError, match=r"tokens of tokenizer ffffffffffff, .* of eeeeeeeeeeee: a mixture has one tokenizer"
    ):
        LoadPlan(datasets=(datasets[0], other))


@pytest.mark.parametrize(
    ("ours", "other"), [("f" * 12, "e" * 12), ("f" * 60, "e" * 60)], ids=["fingerprint", "weights"]
)
def test_tokens_of_another_tokenizer_than_the_models_are_refused(
    datasets: tuple[TokenDataset, ...], ours: str, other: str
) -> None:
    LoadPlan(datasets=datasets, tokenizer=ours)
    with pytest.raises(
        ValueError, match=f"/a has tokens of tokenizer {ours}, the model reads those of {other}: pretokenize"
    ):
        LoadPlan(datasets=datasets, tokenizer=other)
