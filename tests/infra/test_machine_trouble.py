"""The machine's own trouble is told from a fault of the data, however an error carries it."""

import errno
import os
import resource
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dualtoken.infra.machine_trouble import is_machine_trouble


@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EAGAIN]
)
def test_errors_by_number_are_the_machines(number: int) -> None:
    assert is_machine_trouble(OSError(number, os.strerror(number)))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError("out of memory error when reading image file"),  # Pillow's, which has no number
        RuntimeError("can't start new thread"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        socket.gaierror(socket.EAI_MEMORY, "Memory allocation failure"),
    ],
)
def test_errors_without_a_number_are_known_by_kind_or_words(error: Exception) -> None:
    assert is_machine_trouble(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError("image file is truncated (5 bytes not processed)"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        PermissionError(errno.EACCES, "Permission denied"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        TimeoutError(),
        ValueError("bad"),
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
    ],
)
def test_faults_of_data_hosts_and_users_are_not_the_machines(error: Exception) -> None:
    assert not is_machine_trouble(error)


def test_an_accelerators_memory_is_for_the_recipe_to_bound() -> None:
    assert not is_machine_trouble(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))


def test_trouble_is_found_in_what_an_error_was_raised_from() -> None:
    error = ValueError("cannot be read")
    error.__cause__ = OSError(errno.EMFILE, "Too many open files")
    assert is_machine_trouble(error)


def failure_while_handling(first: Exception) -> ValueError:
    """Return an error that was raised while another was handled, which it hides from its traceback."""
    try:
        try:
            raise first
        except type(first):
            int("x")
    except ValueError as error:
        error.__suppress_context__ = True
        return error
    raise AssertionError("int('x') raises")


def test_trouble_is_found_in_what_was_being_handled_when_an_error_was_raised() -> None:
    assert is_machine_trouble(failure_while_handling(MemoryError()))
    assert not is_machine_trouble(failure_while_handling(KeyError("x")))


def test_trouble_is_found_in_a_group() -> None:
    inner = ExceptionGroup("inner", [ValueError("bad"), OSError(errno.ENOSPC, "No space left on device")])
    assert is_machine_trouble(ExceptionGroup("outer", [inner]))
    assert not is_machine_trouble(ExceptionGroup("outer", [ValueError("bad")]))


def test_errors_that_lead_to_each_other_end() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert not is_machine_trouble(first)


@pytest.mark.parametrize(
    ("limit", "statement"),
    [
        (resource.RLIMIT_NOFILE, "[open('/dev/null') for _ in range(99)]"),
        (resource.RLIMIT_AS, "bytearray(2**32)"),
        (resource.RLIMIT_FSIZE, "open('/dev/full', 'wb', buffering=0).write(b'x')"),
    ],
    ids=["descriptors", "memory", "disk"],
)
def test_what_a_machine_really_raises_is_known(limit: int, statement: str, tmp_path: Path) -> None:
    program = f"""
import resource
from dualtoken.infra.machine_trouble import is_machine_trouble
resource.setrlimit({limit}, ({2**30 if limit == resource.RLIMIT_AS else 32},) * 2)
try:
    {statement}
except BaseException as error:
    print(is_machine_trouble(error), type(error).__name__)
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert found.stdout.startswith("True")


def test_a_number_of_openssl_is_no_errno() -> None:
    assert not is_machine_trouble(ssl.SSLSyscallError(errno.EIO, "a peer that hung up"))
