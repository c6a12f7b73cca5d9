"""Many tests at once: p-values that may still be compared with the level of one."""

from collections.abc import Sequence

import numpy as np

from dualtoken.pipelines.errors import UserError


def holm(p_values: Sequence[float]) -> list[float]:
    """Return adjusted p-values, in the order given: at a level of .05, the chance of any error is .05.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (1979).
    """
    _check(p_values)
    num = len(p_values)
    adjusted = [0.0] * num
    largest = 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (num - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Return adjusted p-values, in the order given: at a level of .05, that share of discoveries is wrong.

    Benjamini and Hochberg, "Controlling the False Discovery Rate" (1995).
    """
    _check(p_values)
    num = len(p_values)
    adjusted = [0.0] * num
    least = 1.0
    order = np.argsort(p_values, kind="stable")
    for rank in range(num, 0, -1):
        place = order[rank - 1]
        least = min(least, num / rank * p_values[place])
        adjusted[place] = least
    return adjusted


def _check(p_values: Sequence[float]) -> None:
    for p_value in p_values:
        if not 0 <= p_value <= 1:
            raise UserError(f"p={p_value} is no probability: leave the test out")
