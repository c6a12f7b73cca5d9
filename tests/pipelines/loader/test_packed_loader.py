"""Packed sequences: every sample once and whole, in its order.

They are the same after a stop, under any ranks, workers and batches.
"""

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dualtoken.pipelines.loader.batches import PackedBatch
from dualtoken.pipelines.loader.documents import Markers, PackPlan
from dualtoken.pipelines.loader.packed_loader import PackedLoader
from dualtoken.pipelines.loader.plan import LoadPlan
from dualtoken.pipelines.loader.sample_reader import SampleReader
from dualtoken.pipelines.loader.token_loader import iterate
from dualtoken.pipelines.tokens.mapped_shards import Rows
from dualtoken.pipelines.tokens.reader import TokenDataset
from tests.helpers.loader_workers import by_workers
from tests.helpers.token_datasets import DEPTH, GRID, codes_of_rows, key_of, write_tokens

ROWS = {"a": 330, "b": 90}
START = 1000
END = 1001
IMAGE_START = 1002
IMAGE_END = 1003
PADDING = 1004
POSITIONS = GRID * GRID


def tokenize(caption: str) -> list[int]:
    """Return a document of 1 to 9 ids whose first two name the caption."""
    if not caption.startswith(("a ", "b ")):
        caption = "x 7"
    name, row = caption.split()
    return [ord(name), int(row), *range(int(row) % 8)]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenDataset, ...]:
    folder = tmp_path_factory.mktemp("tokens")
    opened: list[TokenDataset] = []
    for name, rows in ROWS.items():
        url = write_tokens(folder / name, rows, name=name, rows_per_shard=100)
        opened.append(TokenDataset(url))
    return tuple(opened)


def plan_of(load: LoadPlan, **changed: Any) -> PackPlan:
    markers = Markers(image_start=IMAGE_START, image_end=IMAGE_END, start=START, end=END, padding=PADDING)
    plan = PackPlan(
        load=load, capacity=64, tokenize=tokenize, markers=markers, pool_size=16, caption_dropout=0.3
    )
    return replace(plan, **changed)


class SeenDocument(NamedTuple):
    """All that a model would see of a document."""

    sample: int
    key: bytes
    text: tuple[int, ...]
    visual: tuple[bool, ...]
    semantic: tuple[int, ...]
    pixel: tuple[int, ...]


def documents(batch: PackedBatch) -> Counter[SeenDocument]:
    """Take a batch apart by its boundaries."""
    text = batch.text.reshape(-1).numpy()
    visual = batch.visual.reshape(-1).numpy()
    semantic = np.zeros((len(text), DEPTH), int)
    pixel = np.zeros((len(text), DEPTH), int)
    assert batch.semantic is not None
    assert batch.pixel is not None
    semantic[visual] = batch.semantic.numpy()
    pixel[visual] = batch.pixel.numpy()

    found: Counter[SeenDocument] = Counter()
    keys = iter(batch.keys.numpy())
    spans = itertools.pairwise(batch.cu_seqlens.tolist())
    for sample, (begin, end) in zip(batch.segments.tolist(), spans, strict=True):
        sequence_length = batch.text.shape[1]
        assert begin // sequence_length == (end - 1) // sequence_length, "a segment over two sequences"
        span = slice(begin, end)
        if sample < 0:
            assert set(text[span]) == {PADDING}
            assert not visual[span].any()
            continue
        document = SeenDocument(
            sample,
            key=next(keys).tobytes(),
            text=tuple(text[span].tolist()),
            visual=tuple(visual[span].tolist()),
            semantic=tuple(semantic[span][visual[span]].reshape(-1).tolist()),
            pixel=tuple(pixel[span][visual[span]].reshape(-1).tolist()),
        )
        found[document] += 1
    return found


def spread(
    plan: PackPlan,
    batch_size: int,
    world_size: int,
    steps: int | None = None,
    state: Any = None,
    workers: int = 1,
) -> tuple[Counter[SeenDocument], Any]:
    """Run all ranks for some steps, or to the end; return their documents and the state after them."""
    found = Counter[SeenDocument]()
    states: list[Any] = []
    lengths: set[int] = set()
    for rank in range(world_size):
        loader = PackedLoader(plan, batch_size, rank=rank, world_size=world_size)
        if state is not None:
            loader.load_state_dict(state)
        batches = list(itertools.islice(by_workers(loader, workers), steps))
        for batch in batches:
            assert batch.text.shape == (batch_size, plan.capacity)
            found += documents(batch)
        lengths.add(len(batches))
        last = batches[-1] if batches else None
        states.append(json.loads(json.dumps(loader.state_dict(last))))
    assert states == [states[0]] * world_size
    assert len(lengths) == 1, "ranks of different numbers of steps"
    return found, states[0]


def expected(plan: PackPlan, samples: range) -> Counter[SeenDocument]:
    """Return the documents of samples, each made by hand from what the corpora hold."""
    locations = SampleReader(plan.load).locate(np.array(samples))
    orders = plan.document_orders(locations.samples)
    found = Counter[SeenDocument]()
    for sample, source, row, image_first, dropped in zip(*locations, *orders, strict=True):
        name = "ab"[source]
        caption = [] if dropped else tokenize(f"{name} {row}")
        image = [IMAGE_START, *[PADDING] * POSITIONS, IMAGE_END]
        before = 2 if image_first else 2 + len(caption)
        after = len(caption) + 4 - before
        document = SeenDocument(
            sample,
            key=key_of(name, row),
            text=(START, *(image + caption if image_first else caption + image), END),
            visual=(False,) * before + (True,) * POSITIONS + (False,) * after,
            semantic=tuple(codes_of_rows(row, 1, POSITIONS * DEPTH, 0)[0].tolist()),
            pixel=tuple(codes_of_rows(row, 1, POSITIONS * DEPTH, 5)[0].tolist()),
        )
        found[document] += 1
    return found


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 4),
    workers=st.integers(1, 3),
    image_first=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 9),
)
def test_an_epoch_has_every_document_once_and_whole_over_any_number_of_ranks(
    datasets: tuple[TokenDataset, ...],
    batch_size: int,
    world_size: int,
    workers: int,
    image_first: float,
    seed: int,
) -> None:
    plan = plan_of(LoadPlan(datasets=datasets, seed=seed), image_first=image_first)
    found, state = spread(plan, batch_size, world_size, workers=workers)
    assert found == expected(plan, range(sum(ROWS.values())))
    assert (state["position"], state["waiting"]) == (sum(ROWS.values()), [])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_run_resumes_under_other_ranks_and_batches_with_the_documents_of_an_uninterrupted_one(
    datasets: tuple[TokenDataset, ...], data: st.DataObject
) -> None:
    weights = {
        0: [3.0, 1.0],
        data.draw(st.integers(1, 400)): data.draw(st.sampled_from([[1.0, 0.0], [0.2, 5.0]])),
    }
    loads = [
        LoadPlan(datasets=datasets, seed=1),
        LoadPlan(datasets=datasets, epochs=(0.5, 2.5), seed=2),
        LoadPlan(datasets=datasets, weights=weights, seed=3),
    ]
    plan = plan_of(data.draw(st.sampled_from(loads)))
    found = Counter[SeenDocument]()
    state = None
    batch_sizes = st.integers(1, 9)
    ranks = st.integers(1, 4)
    steps = st.integers(0, 3)
    workers = st.integers(1, 3)
    for _ in range(data.draw(st.integers(1, 3))):
        part, state = spread(
            plan, data.draw(batch_sizes), data.draw(ranks), data.draw(steps), state, data.draw(workers)
        )
        found += part
    if plan.load.weights is None:
        rest, state = spread(plan, 4, 2, state=state, workers=data.draw(workers))
        assert found + rest == expected(plan, range(state["position"]))
        assert not state["waiting"]
    elif state is not None:
        in_sequences = expected(plan, range(state["position"]))
        waiting = {sample for sample, _ in state["waiting"]}
        for document in list(in_sequences):
            if document.sample in waiting:
                del in_sequences[document]
        assert found == in_sequences


def test_with_lengths_given_a_rank_tokenizes_its_own_captions_only_and_makes_the_same_documents(
    datasets: tuple[TokenDataset, ...],
) -> None:
    tokenized: list[str] = []

    def recording_tokenize(caption: str) -> list[int]:
        if caption.startswith(("a ", "b ")):
            tokenized.append(caption)
        return tokenize(caption)

    captions = Counter[str]()
    lengths: list[Rows] = []
    for name, rows in ROWS.items():
        dataset_captions = [f"{name} {row}" for row in range(rows)]
        captions.update(dataset_captions)
        lengths.append(np.array([len(tokenize(caption)) for caption in dataset_captions]))
    plan = plan_of(
        LoadPlan(datasets=datasets, seed=4),
        tokenize=recording_tokenize,
        lengths=lambda source, rows: lengths[source][rows],
        image_first=1.0,
    )
    found, _ = spread(plan, 3, 2)
    assert Counter(tokenized) == captions
    assert found == spread(replace(plan, lengths=None), 3, 2)[0]
    with pytest.raises(ValueError, match="give the lengths that it makes"):
        list(PackedLoader(replace(plan, lengths=lambda source, rows: lengths[source][rows] + 1), 3))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_worker_processes_change_no_sequence(datasets: tuple[TokenDataset, ...], num_workers: int) -> None:
    plan = plan_of(LoadPlan(datasets=datasets, seed=5))
    alone = list(iterate(PackedLoader(plan, 4)))
    together = list(iterate(PackedLoader(plan, 4), num_workers=num_workers))
    for batch, expected_batch in zip(together, alone, strict=True):
        for field, expected_field in zip(batch, expected_batch, strict=True):
            if isinstance(field, Tensor):
                assert isinstance(expected_field, Tensor)
                assert torch.equal(field, expected_field)
            else:
                assert field == expected_field


def test_orders_and_dropped_captions_come_in_the_shares_asked_for(datasets: tuple[TokenDataset, ...]) -> None:
    first, dropped = plan_of(
        LoadPlan(datasets=datasets), image_first=0.25, caption_dropout=0.1
    ).document_orders(np.arange(40_000))
    assert abs(first.mean() - 0.25) < 0.01
    assert abs(dropped[~first].mean() - 0.1) < 0.01
    assert not dropped[first].any(), "an image with nothing to say of it"


@pytest.mark.parametrize("stream", ["semantic", "pixel"])
def test_a_view_of_one_stream_has_no_other(datasets: tuple[TokenDataset, ...], stream: str) -> None:
    view = tuple(TokenDataset(dataset.url, streams=[stream]) for dataset in datasets)
    one = next(iter(PackedLoader(plan_of(LoadPlan(datasets=view)), 8)))
    both = next(iter(PackedLoader(plan_of(LoadPlan(datasets=datasets)), 8)))
    other = "pixel" if stream == "semantic" else "semantic"
    assert getattr(one, other) is None
    assert torch.equal(getattr(one, stream), getattr(both, stream))
    assert torch.equal(one.text, both.text)


def test_a_state_of_other_sequences_or_another_text_tokenizer_is_refused(
    datasets: tuple[TokenDataset, ...],
) -> None:
    plan = plan_of(LoadPlan(datasets=datasets))
    state = PackedLoader(plan, 2).state_dict(None)
    for changed, message in (
        ({"capacity": 128}, "loader state has capacity=64, this run 128"),
        ({"caption_dropout": 0.0}, "loader state has caption_dropout=0.3, this run 0.0"),
        ({"tokenize": lambda _: [7]}, "loader state has tokenize="),
    ):
        with pytest.raises(ValueError, match=message):
            PackedLoader(replace(plan, **changed), 2).load_state_dict(state)


def test_a_tokenizer_that_gives_other_lengths_than_when_packed_is_refused(
    datasets: tuple[TokenDataset, ...],
) -> None:
    plan = plan_of(LoadPlan(datasets=datasets), caption_dropout=0.0)
    loader = PackedLoader(plan, 2)
    state = loader.state_dict(next(iter(loader)))

    def longer_tokenize(caption: str) -> list[int]:
        repeats = 2 if caption.startswith(("a ", "b ")) else 1
        return tokenize(caption) * repeats

    changed = PackedLoader(replace(plan, tokenize=longer_tokenize), 2)
    changed.load_state_dict(state)
    with pytest.raises(ValueError, match=r"positions, .* when it was packed: resume with the text tokenizer"):
        list(changed)


def test_an_image_that_no_sequence_can_hold_is_refused_before_anything_is_read(
    datasets: tuple[TokenDataset, ...],
) -> None:
    with pytest.raises(
        ValueError, match="capacity=7: an image takes 8 positions with its markers, and is never cut"
    ):
        plan_of(LoadPlan(datasets=datasets), capacity=7)


def test_without_captions_and_markers_an_image_stands_alone(tmp_path: Path) -> None:
    dataset = TokenDataset(write_tokens(tmp_path / "a", 5))
    plan = PackPlan(
        load=LoadPlan(datasets=(dataset,)),
        capacity=30,
        tokenize=lambda _: [],
        markers=Markers(image_start=1, image_end=2),
    )
    (batch,) = PackedLoader(plan, 1)
    assert batch.text.tolist() == [[1, 0, 0, 0, 0, 2] * 5]
    assert batch.cu_seqlens.tolist() == [0, 6, 12, 18, 24, 30]
