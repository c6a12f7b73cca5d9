"""An error that leaves a process without its GPU is told from others, for want of memory above all."""

import pytest
import torch

from dualtoken.infra.device_errors import is_device_lost
from dualtoken.pipelines.errors import ExitCode, exit_code
from dualtoken.pipelines.runtime.ray_executor import is_final

ILLEGAL = "CUDA error: an illegal memory access was encountered"


def raised_from(cause: Exception) -> Exception:
    error = ValueError("while encoding")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(ILLEGAL),
        torch.AcceleratorError("uncorrectable ECC error encountered"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED_CUDART"),
        raised_from(torch.AcceleratorError(ILLEGAL)),
    ],
)
def test_errors_of_a_lost_device_may_pass_in_a_new_process(error: Exception) -> None:
    assert is_device_lost(error)
    assert exit_code(error) == ExitCode.TEMPORARY


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError(ILLEGAL),
    ],
)
def test_other_errors_leave_the_device_as_it_is(error: Exception) -> None:
    assert not is_device_lost(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
    ],
)
def test_a_full_gpu_is_a_matter_of_the_recipe_and_no_bug(error: Exception) -> None:
    assert exit_code(error) == ExitCode.CONFIGURATION
    assert is_final(error), "a training is not restarted for it"


@pytest.mark.parametrize("answers", [True, False])
def test_a_device_that_runs_is_asked(answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronize() -> None:
        if not answers:
            raise torch.AcceleratorError(ILLEGAL)

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    error = torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device")
    assert is_device_lost(error) != answers
