"""Levels of loggers are those of before once a block has ended."""

import logging

import pytest

from dualtoken.infra.log_levels import at_least


def test_levels_are_raised_in_the_block_alone(caplog: pytest.LogCaptureFixture) -> None:
    low, high = logging.getLogger("test.low"), logging.getLogger("test.high")
    low.setLevel(logging.INFO)
    high.setLevel(logging.CRITICAL)
    with at_least(logging.WARNING, "test.low", "test.high"):
        low.info("dropped")
        low.warning("kept")
        high.error("dropped as before")
    assert (low.level, high.level) == (logging.INFO, logging.CRITICAL)
    assert caplog.messages == ["kept"]


def test_levels_are_put_back_after_an_error() -> None:
    logger = logging.getLogger("test.failing")
    with pytest.raises(ZeroDivisionError), at_least(logging.ERROR, "test.failing"):
        raise ZeroDivisionError
    assert logger.level == logging.NOTSET
