"""How good semantic IDs are: collisions, codes in use, what is lost, neighbourhood.

Shape suffixes: I items, L levels, C codes, P pairs of items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llmrec_cli.data.schema import HISTORY, TARGET

COLLAPSED: Final = 0.5  # entropy of a level, as a share of log2 C, below which it is told
DEPTHS: Final = (1, 2)  # of common beginnings
_PLACES: Final = 4  # decimals of a report


@dataclass(frozen=True)
class Level:
    """How the codes of one level are used."""

    used: int  # codes that some item has
    entropy: float  # of the codes' shares, in units of log2 of what could be: 0..1
    lost: float | None  # share of the vectors' variance lost up to this level; None: not measured


@dataclass(frozen=True)
class Neighbourhood:
    """How often items next to each other in training histories begin with the same tokens."""

    depth: int  # tokens
    share: float
    chance: float  # the same where the second item does not depend on the first


@dataclass(frozen=True)
class Quality:
    """The quality of a catalogue's codes, before collisions are dealt with."""

    items: int
    distinct: int  # codes
    colliding: int  # items whose codes another item has too
    largest: int  # items of the commonest code
    levels: tuple[Level, ...]
    pairs: int
    neighbourhood: tuple[Neighbourhood, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values, rounded."""
        rounded: dict[str, Any] = _round(asdict(self))
        return rounded

    def list_warnings(self, codes: int) -> list[str]:
        """What is a reason to worry, a line each."""
        return [
            f"warning: level {number} has collapsed: most items have one of few codes (entropy "
            f"{level.entropy:.2f} of 1; {level.used:,} of {codes:,} codes in use); lower "
            "tokens.codes or tokens.levels"
            for number, level in enumerate(self.levels, start=1)
            if level.entropy < COLLAPSED
        ]


def measure_quality(
    code_IL: NDArray[np.int64], codes: int, lost_L: Sequence[float] | None, train: pd.DataFrame
) -> Quality:
    """Measure the codes of a catalogue.

    Args:
        codes: values that a code may have.
        lost_L: share of the variance lost up to each level; None: unknown.
        train: rows of the training split.
    """
    lost: Sequence[float | None] = lost_L or [None] * code_IL.shape[1]
    _, counts = np.unique(code_IL, axis=0, return_counts=True)
    left_P, right_P = find_neighbours(train)
    return Quality(
        items=len(code_IL),
        distinct=len(counts),
        colliding=int(counts[counts > 1].sum()),
        largest=int(counts.max()),
        levels=tuple(
            _measure_level(code_I, codes, one) for code_I, one in zip(code_IL.T, lost, strict=True)
        ),
        pairs=len(left_P),
        neighbourhood=tuple(
            measure_neighbourhood(code_IL[:, :depth], left_P, right_P)
            for depth in DEPTHS
            if depth <= code_IL.shape[1] and len(left_P)
        ),
    )


def _measure_level(code_I: NDArray[np.int64], codes: int, lost: float | None) -> Level:
    count_C = np.bincount(code_I, minlength=codes)
    share = count_C[count_C > 0] / len(code_I)
    most = math.log2(min(codes, len(code_I)))  # fewer items than codes cannot use them all
    entropy = float(-(share * np.log2(share)).sum()) / most if most else 1.0
    return Level(int((count_C > 0).sum()), entropy, lost)


def find_neighbours(train: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of items that follow each other in training histories: the last one, and the target.

    Rows without a history give none, nor does an item that follows itself.
    """
    last = [history[-1] if len(history) else -1 for history in train[HISTORY]]
    left_P = np.array(last, dtype=np.int64)
    right_P = train[TARGET].to_numpy(dtype=np.int64)
    kept_P = (left_P >= 0) & (left_P != right_P)
    return left_P[kept_P], right_P[kept_P]


def measure_neighbourhood(
    begin_IL: NDArray[np.int64], left_P: NDArray[np.int64], right_P: NDArray[np.int64]
) -> Neighbourhood:
    """How many pairs begin alike, beside pairs of the same items drawn apart from each other.

    Args:
        begin_IL: the first codes of each item.
    """
    _, group_I = np.unique(begin_IL, axis=0, return_inverse=True)
    group_I = group_I.reshape(-1)
    share = float((group_I[left_P] == group_I[right_P]).mean())
    same_group, same_item = (
        float((np.bincount(a, minlength=n) * np.bincount(b, minlength=n).astype(float)).sum())
        / len(left_P) ** 2
        for a, b, n in (
            (group_I[left_P], group_I[right_P], int(group_I.max()) + 1),
            (left_P, right_P, len(group_I)),
        )
    )
    chance = (same_group - same_item) / (1 - same_item) if same_item < 1 else 0.0
    return Neighbourhood(begin_IL.shape[1], share, chance)


def _round(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _round(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_round(one) for one in value]
    return round(value, _PLACES) if isinstance(value, float) else value
