"""Small files that ask for much; ``make bombs`` tries more of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.robustness.bombs import BOMBS, MEGABYTES, SECONDS, Bomb, Went, went_off

pytestmark = pytest.mark.slow

BASE = Went("good", 1, 0, "", (), 1.0, 200 << 20)
WELL = Went("bomb", 1, 2, "llmrec prepare: error: file:1: a gzip bomb?", (), 1.0, 220 << 20)
QUICK = ("gzip, 10 GB of zeros", "line of 1 GB, literal", "literal of 1 MB", "number of 1 MB")


_TRIED = [bomb for bomb in BOMBS if bomb.name in QUICK]


@pytest.mark.parametrize("bomb", _TRIED, ids=[bomb.name for bomb in _TRIED])
def test_a_bomb_costs_one_line(bomb: Bomb) -> None:
    went = went_off(bomb)
    assert not replace(went, seconds=0.0).wrong(BASE)  # how long it takes is no matter of a test


@pytest.mark.parametrize(
    "went",
    [
        replace(WELL, code=1),
        replace(WELL, said=""),
        replace(WELL, said=f"{WELL.said}\n{WELL.said}"),
        replace(WELL, left=("runs",)),
        replace(WELL, seconds=SECONDS + 1.0),
        replace(WELL, peak=(200 + MEGABYTES + 1) << 20),
    ],
)
def test_what_a_bomb_must_not_do_would_be_told(went: Went) -> None:
    assert not WELL.wrong(BASE)
    assert went.wrong(BASE)
