"""The driver's version is read as the kernel module writes it."""

from pathlib import Path

import pytest

from dualtoken.infra.nvidia_driver import driver_version

PROPRIETARY = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024
GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)
"""
OPEN = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build
GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)
"""


@pytest.mark.parametrize(
    ("text", "version"), [(PROPRIETARY, "535.183.01"), (OPEN, "580.82.07"), ("else", "unknown")]
)
def test_both_kernel_modules_tell_their_version(text: str, version: str, tmp_path: Path) -> None:
    file = tmp_path / "version"
    file.write_text(text)
    assert driver_version(file) == version
    assert driver_version(tmp_path / "none") is None
