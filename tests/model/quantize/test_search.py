"""The nearest-code search: exact, and the same whatever surrounds a vector."""

import copy
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dualtoken.model.config.quantizer import QuantizerConfig, ScalarQuantizerConfig, SplitQuantizerConfig
from dualtoken.model.quantize import (
    Quantizer,
    ResidualQuantizer,
    build_quantizer,
    candidates,
    nearest,
    nearest_codes,
)
from dualtoken.model.quantize.residual_search import residual_codes, runs_on

PROJECT = Path(__file__).resolve().parents[3]


def exact(vectors: Tensor, codes: Tensor) -> Tensor:
    return (vectors.double()[:, None] - codes.double()).square().sum(-1).argmin(1)


@pytest.fixture(params=["normal", "far", "twins", "close", "tiny"])
def hard(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """Vectors and codes: ordinary, and such that float32 products cannot tell the nearest."""
    torch.manual_seed(0)
    vectors = torch.randn(150, 12)
    codes = torch.randn(200, 12)
    cases = {
        "normal": (vectors, codes),
        "far": (vectors + 1000, codes + 1000),
        "twins": (vectors, codes.repeat(3, 1)),
        "close": (vectors, codes[:1] + 1e-7 * codes),
        "tiny": (vectors * 1e-22, codes * 1e-22),
    }
    return cases[request.param]


def test_codes_are_exact_with_ties_to_the_lowest(hard: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(nearest_codes(*hard), exact(*hard))


def test_a_code_whose_square_is_beyond_float32_is_found() -> None:
    assert nearest_codes(torch.tensor([[1e19]]), torch.tensor([[-2e19], [2.7e19], [-1e19]])).tolist() == [1]


def test_codes_do_not_depend_on_batch_chunk_or_threads(
    hard: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, codes = hard
    whole = nearest_codes(vectors, codes)
    assert torch.equal(torch.cat([nearest_codes(vector, codes) for vector in vectors.split(1)]), whole)
    torch.set_num_threads(2)
    try:
        assert torch.equal(nearest_codes(vectors, codes), whole)
    finally:
        torch.set_num_threads(1)
    monkeypatch.setattr(nearest, "_THREAD_PRODUCTS", 1000)
    assert torch.equal(nearest_codes(vectors, codes), whole)
    monkeypatch.setattr(candidates, "MAX_PAIRS", 300)
    assert torch.equal(nearest_codes(vectors, codes), whole)


def test_coarser_products_cost_time_and_no_codes(
    hard: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "_input_rounding", lambda _: 2.0**-7)
    assert torch.equal(nearest_codes(*hard), exact(*hard))


def test_what_is_not_a_finite_number_gets_code_0_and_what_is_huge_its_own() -> None:
    vectors = torch.tensor([[float("nan"), 0.0], [1.0, 1.0], [1.0, float("-inf")], [1e30, 1e30]])
    assert nearest_codes(vectors, torch.tensor([[-1e30, 5.0], [1.0, 1.0], [1e30, 1e30]])).tolist() == [
        0,
        1,
        0,
        2,
    ]


def test_several_nearest_codes_come_in_order_equal_ones_once(hard: tuple[Tensor, Tensor]) -> None:
    vectors, codes = hard
    distances = (vectors.double()[:, None] - codes.double()).square().sum(-1)
    different = []
    for code in range(len(codes)):
        has_equal_before = (codes[:code] == codes[code]).all(1).any()
        if not has_equal_before:
            different.append(code)
    order = distances[:, different].sort(dim=1, stable=True).indices
    expected = torch.tensor(different)[order[:, :5]]
    assert torch.equal(nearest.CodebookIndex(codes).k_nearest(vectors, 5).ids, expected)


def nearly_equal_codes() -> dict[str, tuple[Tensor, Tensor]]:
    """Vectors and thousands of codes that float32 products cannot tell apart, as after restarts."""
    torch.manual_seed(0)
    vectors = torch.randn(30, 8)
    codes = torch.randn(3000, 8)
    few = torch.randn(7, 8)
    signed = torch.where(torch.rand(3000, 1) < 0.5, -1.0, 1.0).expand(-1, 8)
    return {
        "equal": (vectors, few[torch.randint(7, (3000,))]),
        "equal lengths": (vectors, signed),
        "signs of zero": (vectors, torch.cat((0 * signed, few))),
        "beside zero": (torch.cat((vectors, 1e-7 * vectors)), torch.cat((10 * few, 1e-7 * codes))),
        "beside a point": (few[0] + 1e-6 * vectors, torch.cat((few[1:], few[0] + 1e-6 * codes))),
    }


@pytest.mark.parametrize("name", nearly_equal_codes())
def test_nearly_equal_codes_are_told_apart_by_few_exact_distances(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, codes = nearly_equal_codes()[name]
    squared_distances = nearest.squared_distances
    num_distances = []

    def counting(vectors: Tensor, codes: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
        num_distances.append(len(rows))
        return squared_distances(vectors, codes, rows, ids)

    monkeypatch.setattr(nearest, "squared_distances", counting)
    assert torch.equal(nearest_codes(vectors, codes), exact(vectors, codes))
    # Of a block of 64 that holds short codes and long ones, all are compared.
    assert sum(num_distances) <= 64 * len(vectors)


@pytest.mark.parametrize("beam", [1, 3])
def test_vectors_that_are_no_numbers_get_code_0_alone_too(beam: int) -> None:
    quantizer = ResidualQuantizer(QuantizerConfig(num_codes=64, depth=2, width=8, beam=beam))
    for value in (torch.nan, torch.inf):
        assert not quantizer.encode(torch.full((2, 3, 8), value)).any()
    assert quantizer.encode(torch.zeros(0, 3, 8)).shape == (0, 3, 2)


def test_rounding_does_not_decide_a_beam_s_order_of_codes() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(QuantizerConfig(num_codes=64, depth=4, width=8, beam=4))
    tokens = torch.randn(1, 500, 8)
    # One book for all depths: the same codes in another order are the same sum, but for its last bits.
    assert torch.equal(quantizer.encode(tokens * (1 + 2**-22)), quantizer.encode(tokens))


def test_a_beam_of_4_lowers_the_error_by_half_a_decibel_and_a_beam_of_1_changes_nothing() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(1, 200, 8)
    errors = []
    for beam in (1, 4):
        quantizer = ResidualQuantizer(QuantizerConfig(num_codes=64, depth=4, width=8, beam=beam))
        torch.manual_seed(1)
        assert isinstance(quantizer, ResidualQuantizer)
        quantizer.codes.copy_(torch.randn(64, 8) * torch.linspace(0.3, 1, 64)[:, None])
        if beam == 1:
            assert torch.equal(quantizer.encode(tokens), quantizer(tokens).ids)
        errors.append((quantizer.lookup(quantizer.encode(tokens)) - tokens).square().mean().item())
    assert 10 * math.log10(errors[0] / errors[1]) > 0.5


@pytest.fixture(
    params=[
        QuantizerConfig(num_codes=40, depth=4, width=8, shared=False),
        QuantizerConfig(num_codes=40, depth=4, width=8, beam=3),
        SplitQuantizerConfig(kind="split", num_codes=40, depth=4, width=8),
        ScalarQuantizerConfig(kind="scalar", levels=(8, 5), depth=4),
    ],
    ids=["separate", "beam", "split", "scalar"],
)
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    torch.manual_seed(0)
    return build_quantizer(request.param)


def test_every_quantiser_keeps_the_contract(quantizer: Quantizer) -> None:
    tokens = torch.randn(3, 10, 8, requires_grad=True)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantized = quantizer(tokens)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(quantizer.lookup(quantized.ids), quantized.vectors)
    assert quantized.ids.amin() >= 0
    assert quantized.ids.amax() < 40
    single_tokens = tokens.detach().flatten(0, 1)[:, None].split(1)
    ids = torch.cat([quantizer.encode(token) for token in single_tokens])
    assert torch.equal(ids.view(3, 10, 4), quantizer.encode(tokens))
    quantized.vectors.sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.abs().sum() > 0


def test_micro_batches_update_as_their_whole(quantizer: Quantizer) -> None:
    tokens = torch.randn(4, 10, 8)
    other = copy.deepcopy(quantizer)
    quantizer.update(quantizer(tokens), torch.Generator().manual_seed(1))
    other.update([other(part) for part in tokens.split(1)], torch.Generator().manual_seed(1))
    for name, value in quantizer.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-6, atol=1e-7)


def test_scalar_ids_are_rounded_tanh_in_mixed_radix() -> None:
    scalar = build_quantizer(ScalarQuantizerConfig(kind="scalar", levels=(8, 5), depth=1))
    quantized = scalar(torch.tensor([[[0.0, 0.0], [9.0, 9.0], [-9.0, -9.0]]]))
    assert quantized.ids.flatten().tolist() == [4 + 2 * 8, 39, 0]
    assert quantized.vectors[0].tolist() == [[0.0, 0.0], [0.75, 1.0], [-1.0, -1.0]]


TRITON_CASES = [
    *("shared", "separate", "wide", "one_code", "twins", "same_lane", "all_lengths", "close", "crowded"),
    *("huge", "square_too_large", "small_codes", "permuted", "tiny", "small_of_large", "zeros"),
    *("not_finite", "large_programs"),
]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def triton_check(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `triton_check.py` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, str(PROJECT / "tests/model/quantize/triton_check.py"), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@needs_triton
def test_the_fused_kernel_s_logic_gives_exact_codes() -> None:
    checked = triton_check(TRITON_INTERPRET="1")
    assert checked.stdout.split() == TRITON_CASES, checked.stderr


@pytest.mark.gpu
@needs_triton
def test_the_fused_kernel_gives_a_cpu_s_codes_on_a_gpu() -> None:
    checked = triton_check("--device", "cuda")
    assert checked.stdout.split() == TRITON_CASES, checked.stderr


@needs_triton
def test_batches_of_any_number_of_images_need_two_builds_of_the_kernel() -> None:
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.backends.nvidia.compiler import CUDABackend  # noqa: PLC0415
    from triton.runtime.jit import create_function_from_signature  # noqa: PLC0415

    from dualtoken.model.quantize import triton_kernel  # noqa: PLC0415

    backend = CUDABackend(GPUTarget("cuda", 90, 32))
    kernel = triton_kernel._residual_codes
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    table = torch.zeros(64)
    shape = {"WIDTH": 32, "PADDED": 32, "COLUMNS": 128, "RANKED": 4, "num_warps": 8}
    builds: set[str] = set()
    for num_images in range(1, 65):
        rows = 64 if 2 * -(-729 * num_images // 64) >= 132 else 16
        _, specialization, _ = bind(
            *[table] * 7, 729 * num_images, 1, 16384, 128, 8, **shape, ROWS=rows, enable_fp_fusion=False
        )
        builds.add(str(specialization))
    assert len(builds) == 2


@needs_triton
def test_the_fused_kernel_takes_float32_alone() -> None:
    from dualtoken.model.quantize.triton_kernel import fused_residual_codes  # noqa: PLC0415

    vectors = torch.zeros(1, 2, 8)
    with pytest.raises(AssertionError, match=r"vectors are torch\.bfloat16, and compared in float32"):
        fused_residual_codes(vectors.bfloat16(), torch.zeros(1, 1, 4, 8), 1)


def test_a_kernel_that_does_not_build_is_told_once_and_not_used() -> None:
    def without_a_compiler(*_: object) -> Tensor:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable")

    with pytest.warns(UserWarning, match="Failed to find C compiler.*: install gcc and python3-dev"):
        assert not runs_on(without_a_compiler, torch.device("cpu"))
    assert runs_on(
        lambda vectors, codes, depth: residual_codes(vectors, codes, depth, 1), torch.device("cpu")
    )


def test_a_kernel_is_not_given_up_for_want_of_memory() -> None:
    def without_memory(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        runs_on(without_memory, torch.device("cpu"))


def test_without_triton_a_cpu_finds_codes_all_the_same() -> None:
    script = """
import sys
sys.modules["triton"] = None
import torch
from dualtoken.model.quantize.residual_search import residual_codes
ids = residual_codes(torch.eye(4)[None], torch.eye(4)[None, None].flip(2), 1, 1)
print(ids.flatten().tolist())
"""
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert finished.stdout == "[3, 2, 1, 0]\n", finished.stderr


def test_two_processes_update_as_one_with_their_batches_joined(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("gloo_check.py"))
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(2):
        command = [sys.executable, script, str(tmp_path), str(rank)]
        processes.append(subprocess.Popen(command, env=environment))
    for process in processes:
        assert process.wait(timeout=300) == 0
    rank_0 = torch.load(tmp_path / "0.pt")
    rank_1 = torch.load(tmp_path / "1.pt")
    one_process = torch.load(tmp_path / "alone.pt")
    for first, second, alone in zip(rank_0, rank_1, one_process, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, alone, rtol=1e-6, atol=1e-7)
