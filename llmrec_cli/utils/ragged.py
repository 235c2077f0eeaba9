"""Many token sequences in two arrays, which processes can map without copies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


@dataclass(frozen=True, eq=False, slots=True)
class Ragged(Sequence[Tokens]):
    """Sequence s is ``token_T[start_S1[s] : start_S1[s + 1]]``; what comes out is a view."""

    token_T: Tokens
    start_S1: NDArray[np.int64]

    @classmethod
    def of(cls, sequences: Iterable[Sequence[int] | Tokens]) -> Ragged:
        """Copied into two arrays; itself where it is one already."""
        if isinstance(sequences, Ragged):
            return sequences
        kept = list(sequences)
        start_S1 = np.cumsum([0, *map(len, kept)])
        tokens = np.fromiter(chain.from_iterable(kept), np.int32, int(start_S1[-1]))
        return cls(tokens, start_S1)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What ``from_arrays`` takes."""
        return {"token_T": self.token_T, "start_S1": self.start_S1}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Ragged:
        return cls(arrays["token_T"], arrays["start_S1"])

    def __len__(self) -> int:
        return len(self.start_S1) - 1

    @overload
    def __getitem__(self, at: int) -> Tokens: ...
    @overload
    def __getitem__(self, at: slice) -> list[Tokens]: ...
    def __getitem__(self, at: int | slice) -> Tokens | list[Tokens]:
        if isinstance(at, slice):
            return [self[s] for s in range(*at.indices(len(self)))]
        s = range(len(self))[at]
        return self.token_T[self.start_S1[s] : self.start_S1[s + 1]]
