"""Packed sequences: every sample once and whole, in its order.

They are the same after a stop, under any ranks, workers and batches.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dualtoken.pipelines.core.ledger import key_fraction
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.loader.batches import PackedBatch
from dualtoken.pipelines.loader.document_kinds import KINDS, DocumentKind
from dualtoken.pipelines.loader.documents import Markers, PackPlan
from dualtoken.pipelines.loader.packed_loader import PackedLoader
from dualtoken.pipelines.loader.plan import LoadPlan
from dualtoken.pipelines.loader.sample_reader import SampleReader
from dualtoken.pipelines.loader.token_loader import iterate
from dualtoken.pipelines.loader.turns import Turn, choose_turns
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
USER = (1005, 1006)
ASSISTANT = (1007,)
TURN_END = (1008, 1009)
POSITIONS = GRID * GRID
Shares = Mapping[DocumentKind, float]
ALL_KINDS: Shares = {
    DocumentKind.DRAW: 3,
    DocumentKind.DESCRIBE: 2,
    DocumentKind.ANSWER: 4,
    DocumentKind.TEXT: 1,
}
SHARES: list[Shares | None] = [
    None,
    ALL_KINDS,
    {DocumentKind.DRAW: 1, DocumentKind.TEXT: 1},
    *({kind: 1.0} for kind in KINDS),
]


def tokenize(caption: str) -> list[int]:
    """Return 2 to 9 ids whose first two name the caption's row, and the third of a turn's text the turn."""
    if not caption.startswith(("a ", "b ")):
        caption = "x 7"
    name, row, *turn = caption.split()
    if turn:
        part, number = turn
        return [ord(name), int(row), int(number) + (100 if part == "question" else 200)]
    return [ord(name), int(row), *range(int(row) % 8)]


def turns_of(name: str, row: int) -> list[Turn]:
    """Return the turns of a row: up to four, none for every fifth row."""
    return [
        Turn(f"{name} {row} question {number}", f"{name} {row} answer {number}") for number in range(row % 5)
    ]


def turns_as_json(name: str, row: int) -> str | None:
    if row % 10 == 0:
        return None
    return json.dumps([{"kind": "colour", **turn._asdict()} for turn in turns_of(name, row)])


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenDataset, ...]:
    folder = tmp_path_factory.mktemp("tokens")
    opened: list[TokenDataset] = []
    for name, rows in ROWS.items():
        questions = [turns_as_json(name, row) for row in range(rows)]
        url = write_tokens(
            folder / name, rows, name=name, rows_per_shard=100, columns={"questions": questions}
        )
        opened.append(TokenDataset(url))
    return tuple(opened)


def plan_of(load: LoadPlan, **changed: Any) -> PackPlan:
    markers = Markers(image_start=IMAGE_START, image_end=IMAGE_END, start=START, end=END, padding=PADDING)
    plan = PackPlan(
        load=load, capacity=64, tokenize=tokenize, markers=markers, pool_size=16, caption_dropout=0.3
    )
    return replace(plan, **changed)


def plan_of_kinds(load: LoadPlan, documents: Shares | None = ALL_KINDS, **changed: Any) -> PackPlan:
    plan = plan_of(load)
    markers = replace(plan.markers, user=USER, assistant=ASSISTANT, turn_end=TURN_END)
    of_kinds = replace(plan, markers=markers, documents=documents, questions_column="questions", max_turns=3)
    return replace(of_kinds, **changed)


class SeenDocument(NamedTuple):
    """All that a model would see of a document."""

    sample: int
    key: bytes
    text: tuple[int, ...]
    visual: tuple[bool, ...]
    semantic: tuple[int, ...]
    pixel: tuple[int, ...]
    targets: tuple[int, ...]
    """Ids that are predicted."""
    visual_targets: tuple[bool, ...]
    kind: DocumentKind


def documents(batch: PackedBatch) -> Counter[SeenDocument]:
    """Take a batch apart by its boundaries."""
    text = batch.text.reshape(-1).numpy()
    visual = batch.visual.reshape(-1).numpy()
    semantic = np.zeros((len(text), DEPTH), int)
    pixel = np.zeros((len(text), DEPTH), int)
    targets = batch.targets.reshape(-1).numpy()
    visual_targets = np.zeros(len(text), bool)
    assert batch.semantic is not None
    assert batch.pixel is not None
    semantic[visual] = batch.semantic.numpy()
    pixel[visual] = batch.pixel.numpy()
    visual_targets[visual] = batch.visual_targets.numpy()
    assert batch.num_targets == (targets.sum(), visual_targets.sum())
    assert batch.longest == batch.cu_seqlens.diff().max()
    assert not (targets & visual).any(), "a text id where an image is"
    for turn in batch.turns.tolist():
        assert tuple(text[turn : turn + len(USER)]) == USER

    found: Counter[SeenDocument] = Counter()
    keys = iter(batch.keys.numpy())
    kinds = iter(batch.kinds.tolist())
    image_first = iter(batch.image_first.tolist())
    spans = itertools.pairwise(batch.cu_seqlens.tolist())
    for sample, (begin, end) in zip(batch.segments.tolist(), spans, strict=True):
        sequence_length = batch.text.shape[1]
        assert begin // sequence_length == (end - 1) // sequence_length, "a segment over two sequences"
        span = slice(begin, end)
        assert not targets[begin], "nothing to predict the first position from"
        if sample < 0:
            assert set(text[span]) == {PADDING}
            assert not visual[span].any()
            assert not targets[span].any()
            continue
        kind = KINDS[next(kinds)]
        assert next(image_first) == (kind in (DocumentKind.DESCRIBE, DocumentKind.ANSWER))
        document = SeenDocument(
            sample,
            key=next(keys).tobytes(),
            text=tuple(text[span].tolist()),
            visual=tuple(visual[span].tolist()),
            semantic=tuple(semantic[span][visual[span]].reshape(-1).tolist()),
            pixel=tuple(pixel[span][visual[span]].reshape(-1).tolist()),
            targets=tuple(text[span][targets[span]].tolist()),
            visual_targets=tuple(visual_targets[span][visual[span]].tolist()),
            kind=kind,
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
    kinds = plan.document_kinds(locations.samples)
    dropped = plan.captions_dropped(locations.samples, kinds)
    found = Counter[SeenDocument]()
    for sample, source, row, number, is_dropped in zip(*locations, kinds, dropped, strict=True):
        name = "ab"[source]
        kind = KINDS[number]
        turns = turns_of(name, row)
        if kind is DocumentKind.ANSWER and not turns:
            kind = DocumentKind.DESCRIBE
        if kind is DocumentKind.ANSWER:
            (turns,) = choose_turns(plan.load.seed, np.array([sample]), [turns], plan.max_turns)
        text = expected_text(plan, kind, [] if is_dropped else tokenize(f"{name} {row}"), turns)
        has_image = kind is not DocumentKind.TEXT
        document = SeenDocument(
            sample,
            key=key_of(name, row),
            text=text.ids,
            visual=text.visual,
            semantic=tuple(codes_of_rows(row, has_image, POSITIONS * DEPTH, 0).reshape(-1).tolist()),
            pixel=tuple(codes_of_rows(row, has_image, POSITIONS * DEPTH, 5).reshape(-1).tolist()),
            targets=text.targets,
            visual_targets=(kind is DocumentKind.DRAW,) * (POSITIONS * has_image),
            kind=kind,
        )
        found[document] += 1
    return found


class ExpectedText(NamedTuple):
    """The text of a document, written out."""

    ids: tuple[int, ...]
    visual: tuple[bool, ...]
    targets: tuple[int, ...]


def expected_text(plan: PackPlan, kind: DocumentKind, caption: list[int], turns: list[Turn]) -> ExpectedText:
    markers = plan.markers
    image = (IMAGE_START, *[PADDING] * POSITIONS, IMAGE_END)
    description = (*markers.assistant, *caption, *markers.turn_end)
    asked: list[int] = []
    answered: list[int] = []
    for turn in turns:
        answer = (*tokenize(turn.answer), *markers.turn_end)
        asked += (*markers.user, *tokenize(turn.question), *markers.assistant, *answer)
        answered += answer
    before, after, targets = {
        DocumentKind.DRAW: ((*caption, *image), (), ()),
        DocumentKind.DESCRIBE: (image, description, (*caption, *markers.turn_end, END)),
        DocumentKind.ANSWER: (image, asked, (*answered, END)),
        DocumentKind.TEXT: (caption, (), (*caption, END)),
    }[kind]
    ids = (START, *before, *after, END)
    visual = [False] * len(ids)
    if kind is not DocumentKind.TEXT:
        first = ids.index(IMAGE_START) + 1
        visual[first : first + POSITIONS] = [True] * POSITIONS
    return ExpectedText(ids, tuple(visual), targets)


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
@given(
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 4),
    workers=st.integers(1, 3),
    shares=st.sampled_from(SHARES),
    max_turns=st.sampled_from([1, 2, None]),
    capacity=st.integers(56, 90),
    seed=st.integers(0, 9),
)
def test_an_epoch_has_every_kind_of_document_once_and_whole_over_any_number_of_ranks(
    datasets: tuple[TokenDataset, ...],
    batch_size: int,
    world_size: int,
    workers: int,
    shares: Shares | None,
    max_turns: int | None,
    capacity: int,
    seed: int,
) -> None:
    load = LoadPlan(datasets=datasets, seed=seed)
    plan = plan_of_kinds(load, shares, max_turns=max_turns, capacity=capacity)
    found, state = spread(plan, batch_size, world_size, workers=workers)
    assert found == expected(plan, range(sum(ROWS.values())))
    assert (state["position"], state["waiting"]) == (sum(ROWS.values()), [])


@pytest.mark.parametrize("shares", [None, ALL_KINDS])
@pytest.mark.parametrize("world_size", [1, 3])
def test_no_document_is_made_of_a_held_out_sample_and_one_is_of_every_other(
    datasets: tuple[TokenDataset, ...], shares: Shares | None, world_size: int
) -> None:
    plan = plan_of_kinds(LoadPlan(datasets=datasets, seed=2, heldout_fraction=0.4), shares)
    num_samples = sum(ROWS.values())
    all_documents = expected(plan, range(num_samples))
    seen = [document for document in all_documents if key_fraction(document.key) >= 0.4]
    assert 0.5 < len(seen) / num_samples < 0.7
    found, state = spread(plan, 4, world_size)
    assert found == Counter(seen)
    assert (state["position"], state["waiting"]) == (num_samples, [])

    first, state = spread(plan, 3, world_size, steps=4)
    rest, _ = spread(plan, 2, 1, state=state)
    assert first + rest == found


def test_held_out_samples_count_as_lost_to_nobody(datasets: tuple[TokenDataset, ...]) -> None:
    plan = plan_of(LoadPlan(datasets=datasets, heldout_fraction=0.4))
    assert sum(batch.lost for batch in PackedLoader(plan, 4)) == 0


def test_an_endless_run_of_which_all_is_held_out_is_refused(datasets: tuple[TokenDataset, ...]) -> None:
    plan = plan_of(LoadPlan(datasets=datasets, weights={0: [1, 1]}, heldout_fraction=1 - 1e-9))
    with pytest.raises(UserError, match=r"heldout_fraction=0.99\d* leaves none of 420 samples to learn from"):
        next(iter(PackedLoader(plan, 2)))


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
    load = data.draw(st.sampled_from(loads))
    plan = data.draw(st.sampled_from([plan_of(load), *(plan_of_kinds(load, shares) for shares in SHARES)]))
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


@pytest.mark.parametrize(
    "shares", [None, {DocumentKind.DRAW: 1, DocumentKind.DESCRIBE: 2, DocumentKind.TEXT: 2}]
)
def test_with_lengths_given_a_rank_tokenizes_its_own_captions_only_and_makes_the_same_documents(
    datasets: tuple[TokenDataset, ...], shares: Shares | None
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
    plan = plan_of_kinds(
        LoadPlan(datasets=datasets, seed=4),
        shares,
        tokenize=recording_tokenize,
        lengths=lambda source, rows: lengths[source][rows],
        caption_dropout=0.0,
    )
    found, _ = spread(plan, 3, 2)
    assert Counter(tokenized) == captions
    for dropout in (0.0, 0.5):
        dropping = replace(plan, caption_dropout=dropout)
        found, _ = spread(dropping, 3, 2)
        assert found == spread(replace(dropping, lengths=None), 3, 2)[0]
    with pytest.raises(ValueError, match="give the lengths that it makes"):
        list(PackedLoader(replace(plan, lengths=lambda source, rows: lengths[source][rows] + 1), 3))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_worker_processes_change_no_sequence(datasets: tuple[TokenDataset, ...], num_workers: int) -> None:
    plan = plan_of_kinds(LoadPlan(datasets=datasets, seed=5))
    alone = list(iterate(PackedLoader(plan, 4)))
    together = list(iterate(PackedLoader(plan, 4), num_workers=num_workers))
    for batch, expected_batch in zip(together, alone, strict=True):
        for field, expected_field in zip(batch, expected_batch, strict=True):
            if isinstance(field, Tensor):
                assert isinstance(expected_field, Tensor)
                assert torch.equal(field, expected_field)
            else:
                assert field == expected_field


def test_old_plans_give_the_bytes_and_states_that_they_always_gave(
    datasets: tuple[TokenDataset, ...],
) -> None:
    # Unshuffled and without the datasets' fingerprints, which change with the versions that wrote them.
    loader = PackedLoader(plan_of(LoadPlan(datasets=datasets, seed=3, shuffle=False)), 4)
    digest = hashlib.sha256()
    for batch in loader:
        for name in batch._fields[: batch._fields.index("targets")]:
            field = getattr(batch, name)
            digest.update(field.numpy().tobytes() if isinstance(field, Tensor) else repr(field).encode())
        state = loader.state_dict(batch)
        del state["plan"]["datasets"]
        digest.update(json.dumps(state).encode())
    assert digest.hexdigest() == "e9417a9a5208ec1a4e3b8679c3714e4b6a123201806fdf61728611b241841c09"


def test_a_document_that_no_sequence_can_hold_is_named_with_what_to_raise(
    datasets: tuple[TokenDataset, ...],
) -> None:
    plan = plan_of_kinds(
        LoadPlan(datasets=datasets[:1], shuffle=False),
        {DocumentKind.ANSWER: 1},
        max_turns=None,
        capacity=48,
    )
    # Row 4 has four turns of 11 positions.
    with pytest.raises(
        UserError,
        match=rf"^sample 4 \({datasets[0].url}, shard 00000, row 4, key {key_of('a', 4).hex()}\) takes 52 "
        r"positions, capacity=48: raise capacity to 52 at least, or set max_turns lower; nothing is cut$",
    ):
        list(PackedLoader(plan, 2))
    with pytest.raises(UserError, match=r"takes 17 positions, capacity=16: .*, or shorten captions;"):
        list(PackedLoader(plan_of(plan.load, capacity=16, caption_dropout=0.0), 2))
    assert list(PackedLoader(replace(plan, capacity=52), 2))


def test_damaged_turns_are_named_by_dataset_shard_and_row(tmp_path: Path) -> None:
    questions = ['[{"question": "a", "answer": "b"}]'] * 3 + ['[{"question": "a"}]']
    dataset = TokenDataset(
        write_tokens(tmp_path / "a", 4, rows_per_shard=3, columns={"questions": questions})
    )
    plan = plan_of_kinds(LoadPlan(datasets=(dataset,)), {DocumentKind.ANSWER: 1})
    with pytest.raises(
        UserError,
        match=rf"^{dataset.url}, shard 00001, row 0: questions holds a turn without a string as answer: ",
    ):
        list(PackedLoader(plan, 2))


def test_an_unknown_column_of_turns_is_refused_with_those_that_exist(
    datasets: tuple[TokenDataset, ...],
) -> None:
    plan = plan_of_kinds(LoadPlan(datasets=datasets), questions_column="turns")
    with pytest.raises(
        UserError, match="has no column 'turns': use one of key, caption, questions, or carry"
    ):
        PackedLoader(plan, 2)
    assert PackedLoader(replace(plan, documents={DocumentKind.DRAW: 1}), 2)


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


OLD_PLAN = {
    "weights": None,
    "epochs": None,
    "seed": 0,
    "shuffle": True,
    "shuffle_shards": None,
    "capacity": 64,
    "pool_size": 16,
    "image_first": 0.5,
    "caption_dropout": 0.3,
    "markers": {
        "image_start": IMAGE_START,
        "image_end": IMAGE_END,
        "start": START,
        "end": END,
        "padding": PADDING,
    },
    "tokenize": "0af3fdb32e63",
}
"""Plan in a state that was written before there were kinds of documents."""


def test_a_state_from_before_there_were_kinds_of_documents_goes_on(
    datasets: tuple[TokenDataset, ...],
) -> None:
    plan = plan_of(LoadPlan(datasets=datasets))
    identity = {"datasets": [dataset.fingerprint for dataset in datasets], **OLD_PLAN}
    state = {"version": 1, "position": 70, "waiting": [[3, 12]], "plan": identity}
    loader = PackedLoader(plan, 2)
    loader.load_state_dict(state)
    assert loader.state_dict(None) == state
    with pytest.raises(ValueError, match="loader state has markers="):
        PackedLoader(plan_of_kinds(plan.load, None), 2).load_state_dict(state)
    with pytest.raises(ValueError, match=r"loader state has documents=None, this run \{'draw': 1.0\}"):
        PackedLoader(replace(plan, documents={DocumentKind.DRAW: 7}), 2).load_state_dict(state)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"documents": None}, "loader state has documents={'draw': 0.3, .*}, this run None"),
        ({"documents": {DocumentKind.DRAW: 1}}, "loader state has documents=.*, this run {'draw': 1.0}"),
        ({"questions_column": "caption"}, "loader state has questions_column=questions, this run caption"),
        ({"max_turns": 2}, "loader state has max_turns=3, this run 2"),
        ({"prompt_targets": True}, "loader state has prompt_targets=None, this run True"),
        ({"image_targets_of_describe": True}, "loader state has image_targets_of_describe=None, this run"),
    ],
)
def test_a_state_of_other_documents_is_refused(
    datasets: tuple[TokenDataset, ...], changed: dict[str, Any], message: str
) -> None:
    plan = plan_of_kinds(LoadPlan(datasets=datasets))
    state = json.loads(json.dumps(PackedLoader(plan, 2).state_dict(None)))
    shares_of_another_sum = {kind: share * 10 for kind, share in ALL_KINDS.items()}
    PackedLoader(replace(plan, documents=shares_of_another_sum), 2).load_state_dict(state)
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
