"""A seeded permutation of 0..n-1 that needs no table: a Feistel network over the next power of four, with cycle walking.

Any number of samples in any order, from two integers: position to row is a pure function of (n, seed, epoch), so a loader
resumes from a count. Source: Black and Rogaway, "Ciphers with arbitrary finite domains" (CT-RSA 2002); the round function is
SplitMix64's finaliser.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Rows = np.ndarray[Any, np.dtype[np.int64]]
_Words = np.ndarray[Any, np.dtype[np.uint64]]

ROUNDS = 6
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


@dataclass(frozen=True, slots=True)
class Permutation:
    """One epoch's order of `size` rows; equal arguments give an equal order on every machine."""

    size: int
    seed: int
    epoch: int = 0
    name: str = ""
    """Of what is permuted, so that two corpora of one size have different orders."""
    _keys: tuple[np.uint64, ...] = field(init=False, repr=False, compare=False)
    _half_bits: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(
            f"{self.seed}\0{self.epoch}\0{self.name}\0{self.size}".encode(), digest_size=8 * ROUNDS
        ).digest()
        object.__setattr__(self, "_keys", tuple(np.frombuffer(digest, "<u8")))
        # At least two bits a half: fewer leave too few orders to choose from.
        object.__setattr__(self, "_half_bits", max(2, ((self.size - 1).bit_length() + 1) // 2))

    def __call__(self, positions: Rows) -> Rows:
        """Return the rows at positions, each of 0 to size - 1; equal positions give equal rows."""
        assert positions.size == 0 or (positions.min() >= 0 and positions.max() < self.size), (
            "a position outside the epoch"
        )
        rows = self._scramble(positions.astype(np.uint64))
        while (outside := rows >= self.size).any():
            rows[outside] = self._scramble(rows[outside])
        return rows.astype(np.int64)

    def _scramble(self, words: _Words) -> _Words:
        """Permute 0 to 4 ** half_bits - 1."""
        bits, mask = np.uint64(self._half_bits), np.uint64((1 << self._half_bits) - 1)
        left, right = words >> bits, words & mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right + key) & mask)
        return (left << bits) | right


def chances(seed: int, purpose: str, numbers: Rows) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a number in [0, 1) for each sample number; equal arguments give equal numbers, purposes independent ones."""
    key = hashlib.blake2b(f"{seed}\0{purpose}".encode(), digest_size=16).digest()
    first, second = np.frombuffer(key, "<u8")
    return (_mixed(_mixed(numbers.astype(np.uint64) + first) + second) >> np.uint64(11)) / float(1 << 53)


def _mixed(words: _Words) -> _Words:
    words = (words ^ (words >> _SHIFTS[0])) * _MULTIPLIERS[0]
    words = (words ^ (words >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return words ^ (words >> _SHIFTS[2])
