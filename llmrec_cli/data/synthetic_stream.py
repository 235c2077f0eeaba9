"""Random choices that are the same on every machine and with every version of numpy."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Stream:
    """Whole numbers from PCG64's raw 64-bit output, whose stream numpy guarantees."""

    def __init__(self, seed: int, purpose: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence((seed, purpose)))
        self._raw = self._refill()

    def _refill(self) -> Iterator[int]:
        while True:
            yield from self._bits.random_raw(4096).tolist()

    def below(self, bound: int) -> int:
        """A number in [0, bound); the bias of the remainder is below 2^-40 for bounds in use."""
        return next(self._raw) % bound

    def chance(self, percent: int) -> bool:
        """True in ``percent`` of 100 cases."""
        return self.below(100) < percent

    def choice(self, values: Sequence[T]) -> T:
        """One of ``values``, all equally likely."""
        return values[self.below(len(values))]

    def weighted(self, weights: Sequence[int]) -> int:
        """An index, with probability proportional to its weight."""
        cumulative = list(accumulate(weights))
        return bisect_right(cumulative, self.below(cumulative[-1]))

    def shuffled(self, values: Sequence[T]) -> list[T]:
        """The values in random order (Fisher-Yates)."""
        result = list(values)
        for last in range(len(result) - 1, 0, -1):
            other = self.below(last + 1)
            result[last], result[other] = result[other], result[last]
        return result
