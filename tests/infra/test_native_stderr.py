"""Lines of native code that tell of nothing are dropped; all else comes, in order, at once where it can."""

import os
import re
from pathlib import Path

import pytest

from dualtoken.infra.native_stderr import without_lines
from tests.helpers.waiting import wait_until

UNWANTED = re.compile(rb"\[.*\] worker\.cc:\d+: noise")


def open_descriptors() -> list[str]:
    return [path.name for path in Path("/proc/self/fd").iterdir()]


def test_lines_are_dropped_and_all_else_comes_in_order(capfd: pytest.CaptureFixture[str]) -> None:
    with without_lines(UNWANTED, first_byte=b"["):
        os.write(2, b"a\n[12 E] worker.cc:7: noi")
        os.write(2, b"se, much of it\n[12 E] worker.cc:8: real\n")
        os.write(2, b"[unfinished")
    os.write(2, b"; after\n[12 E] worker.cc:9: noise\n")
    assert capfd.readouterr().err == (
        "a\n[12 E] worker.cc:8: real\n[unfinished; after\n[12 E] worker.cc:9: noise\n"
    )


def test_a_line_that_is_wanted_is_passed_on_before_its_end(
    capfd: pytest.CaptureFixture[str],
) -> None:
    shown: list[str] = []

    def is_shown() -> bool:
        shown.append(capfd.readouterr().err)
        return "".join(shown) == "\r50 %"

    with without_lines(UNWANTED, first_byte=b"["):
        os.write(2, b"\r50 %")
        wait_until(is_shown, seconds=10)


def test_descriptors_are_given_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    before = open_descriptors()
    with pytest.raises(ZeroDivisionError), without_lines(UNWANTED, first_byte=b"["):
        raise ZeroDivisionError
    assert open_descriptors() == before
    os.write(2, b"as before")
    assert capfd.readouterr().err == "as before"


def test_standard_error_that_was_silenced_in_the_block_stays_so(capfd: pytest.CaptureFixture[str]) -> None:
    outside = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        with without_lines(UNWANTED, first_byte=b"["):
            os.dup2(nowhere, 2)
        os.write(2, b"to nobody")
    finally:
        os.dup2(outside, 2)
        os.close(outside)
        os.close(nowhere)
    assert capfd.readouterr().err == ""


def test_writers_do_not_wait_for_a_reader_that_has_left(capfd: pytest.CaptureFixture[str]) -> None:
    outside = os.dup(2)
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 2)
    try:
        with without_lines(UNWANTED, first_byte=b"["):
            os.write(2, b"x" * 200_000)  # more than a pipe holds
    finally:
        os.dup2(outside, 2)
        os.close(outside)
        os.close(writer)
    assert capfd.readouterr().err == ""
