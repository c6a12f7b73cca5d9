"""Packed layouts against ones that are written out, position by position."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dualtoken.pipelines.loader.document_kinds import KINDS, DocumentKind
from dualtoken.pipelines.loader.documents import Markers, PackPlan
from dualtoken.pipelines.loader.layout import DocumentText, Layout, lay_out_sequences
from dualtoken.pipelines.loader.packed_loader import PackedLoader
from dualtoken.pipelines.loader.packing import Document
from dualtoken.pipelines.loader.plan import LoadPlan
from dualtoken.pipelines.tokens.reader import TokenDataset
from tests.helpers.token_datasets import codes_of_rows, write_tokens

MARKERS = Markers(
    start=1, end=2, image_start=3, image_end=4, padding=0, user=(5, 6), assistant=(7,), turn_end=(8, 9)
)
IMAGE = "3 . . . . 4"
"""An image of 2 by 2 positions with its markers; a dot is a position with codes."""
QUESTIONS = [
    '[{"question": "A", "answer": "B"}]',
    None,
    '[{"question": "CD", "answer": "E"}, {"question": "F", "answer": ""}]',
]
"""Turns of three samples, whose captions are `a 0` to `a 2`."""
WORDS = {
    "a 0": [20],
    "a 1": [21, 22],
    "a 2": [23],
    "A": [30],
    "B": [31, 32],
    "CD": [33, 34],
    "E": [35],
    "F": [36],
}
"""Ids of captions, and from 30 on of turns."""


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> LoadPlan:
    folder = tmp_path_factory.mktemp("tokens") / "a"
    url = write_tokens(folder, 3, columns={"questions": QUESTIONS})
    return LoadPlan(datasets=(TokenDataset(url),), shuffle=False)


def plan_of(load: LoadPlan, kind: str, **changed: Any) -> PackPlan:
    plan = PackPlan(
        load=load,
        capacity=40,
        tokenize=lambda text: WORDS.get(text, [99]),
        markers=MARKERS,
        pool_size=1,
        documents={DocumentKind(kind): 1},
        questions_column="questions",
    )
    return replace(plan, **changed)


def written_out(plan: PackPlan) -> list[tuple[str, str, str]]:
    """Return each document's kind, positions and marks: `^` for a target of text, `v` for one of an image."""
    documents: list[tuple[str, str, str]] = []
    for batch in PackedLoader(plan, 1):
        text = batch.text.flatten().tolist()
        visual = batch.visual.flatten().tolist()
        targets = batch.targets.flatten().tolist()
        visual_targets = np.zeros(len(text), bool)
        visual_targets[batch.visual.flatten().numpy()] = batch.visual_targets.numpy()
        kinds = iter(batch.kinds.tolist())
        begin = 0
        for sample, end in zip(batch.segments.tolist(), batch.cu_seqlens[1:].tolist(), strict=True):
            if sample < 0:
                assert not any(targets[begin:end])
                assert not visual_targets[begin:end].any()
                continue
            span = range(begin, end)
            ids = " ".join("." if visual[place] else str(text[place]) for place in span)
            marks = "".join(
                "^" if targets[place] else "v" if visual_targets[place] else "-" for place in span
            )
            documents.append((KINDS[next(kinds)].value, ids, marks))
            begin = end
    return documents


def test_documents_that_draw(load: LoadPlan) -> None:
    plan = plan_of(load, "draw")
    assert written_out(plan) == [
        ("draw", f"1 20 {IMAGE} 2", "---vvvv--"),
        ("draw", f"1 21 22 {IMAGE} 2", "----vvvv--"),
        ("draw", f"1 23 {IMAGE} 2", "---vvvv--"),
    ]
    assert [marks for _, _, marks in written_out(replace(plan, prompt_targets=True))] == [
        "-^^vvvv-^",
        "-^^^vvvv-^",
        "-^^vvvv-^",
    ]
    without = written_out(replace(plan, caption_dropout=1.0, prompt_targets=True))
    assert without == [("draw", f"1 {IMAGE} 2", "-^vvvv-^")] * 3


def test_documents_that_describe(load: LoadPlan) -> None:
    plan = plan_of(load, "describe")
    expected = [
        ("describe", f"1 {IMAGE} 7 20 8 9 2", "--------^^^^"),
        ("describe", f"1 {IMAGE} 7 21 22 8 9 2", "--------^^^^^"),
        ("describe", f"1 {IMAGE} 7 23 8 9 2", "--------^^^^"),
    ]
    assert written_out(plan) == expected
    # Nothing is dropped from them, and prompts are those of other documents.
    assert written_out(replace(plan, caption_dropout=1.0, prompt_targets=True)) == expected
    assert written_out(replace(plan, image_targets_of_describe=True))[0][2] == "--vvvv--^^^^"


def test_documents_that_answer(load: LoadPlan) -> None:
    plan = plan_of(load, "answer")
    first, second, third = written_out(plan)
    assert first == ("answer", f"1 {IMAGE} 5 6 30 7 31 32 8 9 2", "-----------^^^^^")
    assert second == ("describe", f"1 {IMAGE} 7 21 22 8 9 2", "--------^^^^^"), "a sample without turns"
    turns = [("5 6 33 34 7 35 8 9", "-----^^^"), ("5 6 36 7 8 9", "----^^")]
    orders = []
    for one, two in (turns, turns[::-1]):
        orders.append(("answer", f"1 {IMAGE} {one[0]} {two[0]} 2", f"-------{one[1]}{two[1]}^"))
    assert third in orders
    assert written_out(replace(plan, image_targets_of_describe=True))[0][2] == "--vvvv-----^^^^^"


def test_documents_of_text_alone(load: LoadPlan) -> None:
    expected = [("text", "1 20 2", "-^^"), ("text", "1 21 22 2", "-^^^"), ("text", "1 23 2", "-^^")]
    assert written_out(plan_of(load, "text", image_targets_of_describe=True)) == expected


def test_nothing_is_predicted_at_a_documents_first_position(load: LoadPlan) -> None:
    bare = Markers(image_start=3, image_end=4)
    draw = plan_of(load, "draw", markers=bare, prompt_targets=True)
    assert written_out(draw)[1] == ("draw", f"21 22 {IMAGE}", "-^^vvvv-")
    assert written_out(replace(draw, caption_dropout=1.0))[1] == ("draw", IMAGE, "-vvvv-")
    text = plan_of(load, "text", markers=replace(bare, end=2))
    assert written_out(text)[1] == ("text", "21 22 2", "-^^")
    empty = replace(text, tokenize=lambda _: [])
    assert written_out(empty)[1] == ("text", "2", "-")


def test_an_interleaved_sequence_is_the_one_written_out(load: LoadPlan) -> None:
    plan = plan_of(load, "answer")
    texts = [
        DocumentText(KINDS.index(DocumentKind.DRAW), np.array([20, 21])),
        DocumentText(KINDS.index(DocumentKind.TEXT), np.array([22])),
        DocumentText(
            KINDS.index(DocumentKind.ANSWER),
            np.array([5, 6, 30, 7, 31, 8, 9]),
            np.array([0, 0, 0, 0, 1, 1, 1], bool),
            turns=np.array([0]),
        ),
        DocumentText(KINDS.index(DocumentKind.DESCRIBE), np.array([23])),
    ]
    packs = [(Document(7, 10), Document(8, 3), Document(9, 15)), (), (Document(4, 9),)]
    layout = lay_out_sequences(replace(plan, capacity=30), packs, texts)
    rows = [
        "1 20 21 3 . . . . 4 2 | 1 22 2 | 1 3 . . . . 4 5 6 30 7 31 8 9 2 | 0 0",
        "0 " * 30,
        "1 3 . . . . 4 23 2",
    ]
    marks = ["----vvvv--" + "-^^" + "-----------^^^^--", "-" * 30, "-------^^" + "-" * 21]
    rows[2] += " 0" * 21
    assert positions(layout) == [row.replace("| ", "").strip() for row in rows]
    assert target_marks(layout) == marks
    assert layout.cu_seqlens.tolist() == [0, 10, 13, 28, 30, 60, 69, 90]
    assert layout.segments.tolist() == [7, 8, 9, -1, -1, 4, -1]
    assert layout.kinds.tolist() == [0, 3, 2, 1]
    assert layout.turns.tolist() == [20]


def positions(layout: Layout) -> list[str]:
    rows: list[str] = []
    for ids, visual in zip(layout.text.tolist(), layout.visual.tolist(), strict=True):
        rows.append(
            " ".join("." if is_image else str(id_) for id_, is_image in zip(ids, visual, strict=True))
        )
    return rows


def target_marks(layout: Layout) -> list[str]:
    visual_targets = np.zeros(layout.text.shape, bool)
    visual_targets[layout.visual] = layout.visual_targets
    assert not (visual_targets & layout.targets).any()
    marks = np.where(layout.targets, "^", np.where(visual_targets, "v", "-"))
    return ["".join(row) for row in marks.tolist()]


def test_codes_stand_in_the_order_of_their_images_where_documents_of_text_are_between(tmp_path: Path) -> None:
    dataset = TokenDataset(write_tokens(tmp_path / "a", 40))
    plan = plan_of(
        LoadPlan(datasets=(dataset,)),
        "draw",
        documents={DocumentKind.DRAW: 1, DocumentKind.TEXT: 1},
    )
    rows: list[int] = []
    for batch in PackedLoader(plan, 2):
        assert batch.pixel is not None
        assert batch.semantic is not None
        images = iter(batch.pixel.reshape(-1, 8).numpy())
        semantic = iter(batch.semantic.reshape(-1, 8).numpy())
        is_image = [KINDS[number] is DocumentKind.DRAW for number in batch.kinds.tolist()]
        keys = batch.keys.numpy()[is_image]
        for key in keys:
            row = next(
                row for row in range(40) if dataset.read(np.array([row])).keys[0].tobytes() == key.tobytes()
            )
            assert next(images).tolist() == codes_of_rows(row, 1, 8, 5)[0].tolist()
            assert next(semantic).tolist() == codes_of_rows(row, 1, 8, 0)[0].tolist()
            rows.append(row)
        assert next(images, None) is None
    assert 10 < len(rows) < 30
