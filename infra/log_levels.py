"""Levels of libraries' loggers for the length of a block: they belong to the whole process."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_least(level: int, *names: str) -> Iterator[None]:
    """Drop what loggers are given below a level, unless theirs is higher; "" is the root logger."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(level, logger.level))
    try:
        yield
    finally:
        for logger, level_before in zip(loggers, before, strict=True):
            logger.setLevel(level_before)
