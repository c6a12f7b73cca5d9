"""Batches go into embeddings, and print themselves in one line."""

import numpy as np
import pytest
import torch

from dualtoken.pipelines.loader.batches import PackedBatch, TokenBatch
from dualtoken.pipelines.loader.documents import Markers, PackPlan
from dualtoken.pipelines.loader.packed_loader import PackedLoader
from dualtoken.pipelines.loader.plan import LoadPlan
from dualtoken.pipelines.loader.token_loader import TokenLoader, iterate
from dualtoken.pipelines.tokens.reader import TokenDataset
from tests.helpers.token_datasets import NUM_CODES, write_tokens


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> LoadPlan:
    url = write_tokens(tmp_path_factory.mktemp("tokens"), 40)
    return LoadPlan(datasets=(TokenDataset(url),), epochs=(1,))


def packed_loader(plan: LoadPlan) -> PackedLoader:
    packing = PackPlan(
        load=plan,
        capacity=32,
        tokenize=lambda text: np.frombuffer(text.encode(), np.uint8),
        markers=Markers(image_start=301, image_end=302),
    )
    return PackedLoader(packing, 2)


def batches(plan: LoadPlan, num_workers: int) -> tuple[TokenBatch, PackedBatch]:
    single = next(iterate(TokenLoader(plan, 8), num_workers=num_workers))
    packed = next(iterate(packed_loader(plan), num_workers=num_workers))
    return single, packed


@pytest.mark.parametrize("num_workers", [0, 1])
def test_ids_of_both_kinds_of_batches_go_into_embeddings(plan: LoadPlan, num_workers: int) -> None:
    embed = torch.nn.Embedding(NUM_CODES, 3)
    for batch in batches(plan, num_workers):
        ids = batch.ids("cpu")
        for stream in ("semantic", "pixel"):
            codes = getattr(batch, stream)
            embedded = embed(getattr(ids, stream))
            assert embedded.shape == (*codes.shape, 3)
            assert torch.equal(embedded, embed(codes.long()))


def test_codes_of_the_whole_range_stay_what_they_are_as_ids(plan: LoadPlan) -> None:
    batch = batches(plan, 0)[0]._replace(semantic=torch.tensor([0, 32768, 65535], dtype=torch.uint16))
    ids = batch.ids().semantic
    assert ids is not None
    assert ids.tolist() == [0, 32768, 65535]


def test_a_stream_that_is_not_read_has_no_ids(plan: LoadPlan) -> None:
    url = plan.datasets[0].url
    semantic_only = LoadPlan(datasets=(TokenDataset(url, streams=["semantic"]),))
    batch = next(iter(TokenLoader(semantic_only, 2)))
    assert batch.ids().pixel is None
    assert "pixel None" in repr(batch)


def test_batches_print_themselves_in_one_line(plan: LoadPlan) -> None:
    single, packed = batches(plan, 0)
    assert repr(single) == (
        "TokenBatch(8 samples, semantic (8, 2, 2, 2) uint16, pixel (8, 2, 2, 2) uint16, no captions, "
        "0 lost, 8 samples done)"
    )
    used = packed.cu_seqlens.diff()[packed.segments >= 0].sum().item()
    num_visual = int(packed.visual.sum())
    assert repr(packed) == (
        f"PackedBatch({len(packed.keys)} documents in 2 sequences of 32, {used / 64:.1%} filled, "
        f"text (2, 32) int64, {num_visual} visual positions, semantic ({num_visual}, 2) uint16, "
        f"pixel ({num_visual}, 2) uint16, 0 lost, position {packed.position})"
    )
    assert str(packed) == repr(packed)
