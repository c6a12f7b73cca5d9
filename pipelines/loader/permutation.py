"""Seeded permutation of 0..n-1 without a table: a Feistel network with cycle walking.

The network permutes 0 to 4^b - 1, the smallest such range that holds n. Cycle walking restricts it to 0..n-1: a
result of n or more is permuted again, until it falls inside. Position to row is a pure function of (n, seed, epoch,
name), so a loader resumes from a count, and a billion rows need no memory.

Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002), which gives both methods. The round
function is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators",
OOPSLA 2014).
"""

import hashlib
from typing import Any

import numpy as np

Rows = np.ndarray[Any, np.dtype[np.int64]]
_Words = np.ndarray[Any, np.dtype[np.uint64]]

ROUNDS = 6
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


class FeistelPermutation:
    """One epoch's order of `size` rows; equal arguments give an equal order on every machine."""

    def __init__(self, size: int, seed: int, epoch: int = 0, name: str = "") -> None:
        """Derive the round keys; `name` tells apart the orders of two datasets of one size."""
        digest = hashlib.blake2b(f"{seed}\0{epoch}\0{name}\0{size}".encode(), digest_size=8 * ROUNDS).digest()
        self._size = size
        self._round_keys = tuple(np.frombuffer(digest, "<u8"))
        # Fewer than two bits a half leave too few orders to choose from.
        half_bits = max(2, ((size - 1).bit_length() + 1) // 2)
        self._half_bits = np.uint64(half_bits)
        self._half_mask = np.uint64((1 << half_bits) - 1)

    def __call__(self, positions: Rows) -> Rows:
        """Return the rows at positions, each of 0 to size - 1; equal positions give equal rows."""
        is_inside = positions.size == 0 or (positions.min() >= 0 and positions.max() < self._size)
        assert is_inside, "a position outside the epoch"

        rows = self._feistel(positions.astype(np.uint64))
        outside = rows >= self._size
        while outside.any():
            rows[outside] = self._feistel(rows[outside])
            outside = rows >= self._size
        return rows.astype(np.int64)

    def _feistel(self, words: _Words) -> _Words:
        """Permute 0 to 4^b - 1, where b is the number of bits in a half."""
        left = words >> self._half_bits
        right = words & self._half_mask
        for key in self._round_keys:
            mixed = left ^ (_splitmix64_finalizer(right + key) & self._half_mask)
            left = right
            right = mixed
        return (left << self._half_bits) | right


def seeded_uniform(seed: int, purpose: str, indices: Rows) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a number in [0, 1) for each sample index, by hashing it.

    Equal arguments give equal numbers; different purposes give independent ones.
    """
    digest = hashlib.blake2b(f"{seed}\0{purpose}".encode(), digest_size=16).digest()
    first_key, second_key = np.frombuffer(digest, "<u8")
    hashed = _splitmix64_finalizer(indices.astype(np.uint64) + first_key)
    hashed = _splitmix64_finalizer(hashed + second_key)
    # A float64 holds 53 bits.
    return (hashed >> np.uint64(11)) / float(1 << 53)


def _splitmix64_finalizer(words: _Words) -> _Words:
    words = (words ^ (words >> _SHIFTS[0])) * _MULTIPLIERS[0]
    words = (words ^ (words >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return words ^ (words >> _SHIFTS[2])
