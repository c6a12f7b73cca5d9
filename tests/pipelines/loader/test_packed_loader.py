"""Packed sequences: every sample once and whole, in its order, the same after a stop, under any ranks, workers and batches."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dualtoken.pipelines.loader.documents import Markers, PackPlan
from dualtoken.pipelines.loader.packed_loader import PackedBatch, PackedLoader
from dualtoken.pipelines.loader.plan import LoadPlan
from dualtoken.pipelines.loader.sample_reader import SampleReader
from dualtoken.pipelines.loader.token_loader import iterate
from dualtoken.pipelines.tokens.reader import TokenDataset
from tests.helpers.loader_workers import by_workers
from tests.helpers.token_datasets import DEPTH, GRID, codes_of_rows, key_of, write_tokens

ROWS = {"a": 330, "b": 90}
START, END, IMAGE_START, IMAGE_END, PADDING = 1000, 1001, 1002, 1003, 1004
POSITIONS = GRID * GRID


def tokenize(caption: str) -> list[int]:
    """Return a document of 1 to 9 ids whose first two name the caption."""
    name, row = caption.split() if caption[:2] in ("a ", "b ") else ("x", "7")
    return [ord(name[0]), int(row), *range(int(row) % 8)]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenDataset, ...]:
    folder = tmp_path_factory.mktemp("tokens")
    return tuple(
        TokenDataset(write_tokens(folder / name, rows, name=name, rows_per_shard=100))
        for name, rows in ROWS.items()
    )


def plan_of(load: LoadPlan, **changed: Any) -> PackPlan:
    markers = Markers(image_start=IMAGE_START, image_end=IMAGE_END, start=START, end=END, padding=PADDING)
    plan = PackPlan(
        load=load, capacity=64, tokenize=tokenize, markers=markers, pool_size=16, caption_dropout=0.3
    )
    return replace(plan, **changed)


def documents(batch: PackedBatch) -> Counter[tuple[Any, ...]]:
    """Take a batch apart by its boundaries: all that a model would see of each document."""
    text, visual = batch.text.reshape(-1).numpy(), batch.visual.reshape(-1).numpy()
    semantic, pixel = (np.zeros((len(text), DEPTH), int) for _ in range(2))
    assert batch.semantic is not None
    assert batch.pixel is not None
    semantic[visual], pixel[visual] = batch.semantic.numpy(), batch.pixel.numpy()
    found: Counter[tuple[Any, ...]] = Counter()
    keys = iter(batch.keys.numpy())
    for number, begin, end in zip(
        batch.segments.tolist(), batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True
    ):
        assert begin // batch.text.shape[1] == (end - 1) // batch.text.shape[1], (
            "a segment over two sequences"
        )
        if number < 0:
            assert set(text[begin:end]) == {PADDING}
            assert not visual[begin:end].any()
            continue
        here = slice(begin, end)
        seen = (text[here], visual[here], semantic[here][visual[here]], pixel[here][visual[here]])
        found[number, next(keys).tobytes(), *(tuple(part.reshape(-1).tolist()) for part in seen)] += 1
    return found


def spread(
    plan: PackPlan,
    batch_size: int,
    world_size: int,
    steps: int | None = None,
    state: Any = None,
    workers: int = 1,
) -> tuple[Counter[Any], Any]:
    """Run all ranks for some steps, or to the end; return their documents and the state after them."""
    found, states, lengths = Counter[Any](), [], set()
    for rank in range(world_size):
        loader = PackedLoader(plan, batch_size, rank=rank, world_size=world_size)
        if state is not None:
            loader.load_state_dict(state)
        batches = [
            batch
            for _, batch in zip(
                range(steps) if steps is not None else iter(int, 1), by_workers(loader, workers), strict=False
            )
        ]
        assert all(batch.text.shape == (batch_size, plan.capacity) for batch in batches)
        for batch in batches:
            found += documents(batch)
        lengths.add(len(batches))
        states.append(json.loads(json.dumps(loader.state_dict(batches[-1] if batches else None))))
    assert all(one == states[0] for one in states)
    assert len(lengths) == 1, "ranks of different numbers of steps"
    return found, states[0]


def expected(plan: PackPlan, numbers: range) -> Counter[Any]:
    """Return the documents of samples, each made by hand from what the corpora hold."""
    places, found = SampleReader(plan.load).locate(np.array(numbers)), Counter[Any]()
    first, dropped = plan.document_orders(places.samples)
    for number, source, row, image_first, drop in zip(*places, first, dropped, strict=True):
        name = "ab"[source]
        words = [] if drop else tokenize(f"{name} {row}")
        image = [IMAGE_START, *[PADDING] * POSITIONS, IMAGE_END]
        text = [START, *(image + words if image_first else words + image), END]
        begin = 2 if image_first else 2 + len(words)
        visual = [begin <= place < begin + POSITIONS for place in range(len(text))]
        codes = (tuple(codes_of_rows(row, 1, POSITIONS * DEPTH, offset)[0].tolist()) for offset in (0, 5))
        found[number, key_of(name, row), tuple(text), tuple(visual), *codes] += 1
    return found


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.integers(1, 9), world_size=st.integers(1, 4), workers=st.integers(1, 3), image_first=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 9),
)  # fmt: skip
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
    plan, found, state = plan_of(data.draw(st.sampled_from(loads))), Counter[Any](), None
    batch_sizes, ranks, steps, workers = (st.integers(*ends) for ends in ((1, 9), (1, 4), (0, 3), (1, 3)))
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
        waiting = {number for number, _ in state["waiting"]}
        whole = expected(plan, range(state["position"]))
        assert found == Counter(
            {document: count for document, count in whole.items() if document[0] not in waiting}
        )


def test_with_lengths_given_a_rank_tokenizes_its_own_captions_only_and_makes_the_same_documents(
    datasets: tuple[TokenDataset, ...],
) -> None:
    tokenized: list[str] = []

    def told(caption: str) -> list[int]:
        tokenized.append(caption)
        return tokenize(caption)

    words = [
        np.array([len(tokenize(caption)) for caption in dataset.captions(np.arange(len(dataset)))])
        for dataset in datasets
    ]
    plan = plan_of(
        LoadPlan(datasets=datasets, seed=4),
        tokenize=told,
        lengths=lambda source, rows: words[source][rows],
        image_first=1.0,
    )
    found, _ = spread(plan, 3, 2)
    own = Counter(caption for caption in tokenized if caption[:2] in ("a ", "b "))
    assert own == Counter(f"{name} {row}" for name, rows in ROWS.items() for row in range(rows))
    assert found == spread(replace(plan, lengths=None), 3, 2)[0]
    with pytest.raises(ValueError, match="give the lengths that it makes"):
        list(PackedLoader(replace(plan, lengths=lambda source, rows: words[source][rows] + 1), 3))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_worker_processes_change_no_sequence(datasets: tuple[TokenDataset, ...], num_workers: int) -> None:
    plan = plan_of(LoadPlan(datasets=datasets, seed=5))
    alone, together = (
        list(iterate(PackedLoader(plan, 4), num_workers=workers)) for workers in (0, num_workers)
    )
    for ours, theirs in zip(together, alone, strict=True):
        assert (ours.lost, ours.position, ours.waiting) == (theirs.lost, theirs.position, theirs.waiting)
        assert all(
            torch.equal(a, b)
            for a, b in zip(ours[:9], theirs[:9], strict=True)
            if a is not None and b is not None
        )


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
    one, both = (next(iter(PackedLoader(plan_of(LoadPlan(datasets=sets)), 8))) for sets in (view, datasets))
    other = "pixel" if stream == "semantic" else "semantic"
    assert getattr(one, other) is None
    assert torch.equal(getattr(one, stream), getattr(both, stream))
    assert torch.equal(one.text, both.text)


def test_a_state_of_other_sequences_or_another_text_tokenizer_is_refused(
    datasets: tuple[TokenDataset, ...],
) -> None:
    plan = plan_of(LoadPlan(datasets=datasets))
    state = PackedLoader(plan, 2).state_dict(None)
    for changed, said in (
        ({"capacity": 128}, "loader state has capacity=64, this run 128"),
        ({"caption_dropout": 0.0}, "loader state has caption_dropout=0.3, this run 0.0"),
        ({"tokenize": lambda _: [7]}, "loader state has tokenize="),
    ):
        with pytest.raises(ValueError, match=said):
            PackedLoader(replace(plan, **changed), 2).load_state_dict(state)


def test_a_tokenizer_that_gives_other_lengths_than_when_packed_is_refused(
    datasets: tuple[TokenDataset, ...],
) -> None:
    plan = plan_of(LoadPlan(datasets=datasets), caption_dropout=0.0)
    loader = PackedLoader(plan, 2)
    state = loader.state_dict(next(iter(loader)))
    changed = PackedLoader(
        replace(plan, tokenize=lambda text: tokenize(text) * (1 + (text[:2] in ("a ", "b ")))), 2
    )
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
