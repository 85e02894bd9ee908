"""Random numbers by counting: each is a hash of (stream, seed, epoch, sample id), never the state of a generator.

Guarantee: the same key gives the same number on every machine, in any order, in any thread, on any rank and after any
resume. The hash is SplitMix64's finaliser (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014),
chained over the parts of the key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)

ORDER, IMAGE, TEXT, TEXT_CHOICE, MODEL, CROP, HIDE, GROUP, VIEW = range(9)
"""Streams: draws of different kinds under one seed are independent of each other. Further views count on from VIEW."""


def _mix(value: UInt64[np.ndarray, " ..."]) -> UInt64[np.ndarray, " ..."]:
    value = (value ^ (value >> np.uint64(30))) * _MULTIPLY_1
    value = (value ^ (value >> np.uint64(27))) * _MULTIPLY_2
    return value ^ (value >> np.uint64(31))


def hash_key(stream: int, *key: int | Int[np.ndarray, " ..."]) -> UInt64[np.ndarray, " ..."]:
    """Return a 64-bit hash of the key; parts that are arrays broadcast. Negative parts wrap around."""
    value = np.full(1, stream, dtype=np.uint64)
    for part in key:
        array = np.atleast_1d(np.asarray(part)).astype(np.int64, copy=False).view(np.uint64)
        value = _mix((value + _GOLDEN) ^ _mix(array + _GOLDEN))
    return value


def uniforms(
    stream: int, seed: int, epoch: int, ids: Int[np.ndarray, " n"], count: int
) -> Float[np.ndarray, "n count"]:
    """Return `count` numbers in [0, 1) for each id."""
    keys = hash_key(stream, seed, epoch, ids)[:, None]
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return (_mix(keys + steps) >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, epoch: int, n: int) -> Int[np.ndarray, " n"]:
    """Return the order of `n` samples in an epoch."""
    return np.argsort(hash_key(ORDER, seed, epoch, np.arange(n)), kind="stable")


def generator(stream: int, *key: int) -> np.random.Generator:
    """Return a numpy generator whose start is the hash of the key, for draws of unknown number."""
    return np.random.Generator(np.random.Philox(key=int(hash_key(stream, *key)[0])))
