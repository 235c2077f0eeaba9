"""Choosing the rows of one update: an epoch's order drawn once and kept, or anew for every update.

Ours is timed in the middle of an epoch; the one draw that an epoch takes stands beside it.
"""

from __future__ import annotations

import itertools
import time
from typing import Literal

import torch

from benchmarks.table import Row, alternate
from llmrec_cli.training.dataset import Sampler, draw_order

Size = Literal["ci", "full"]
ROWS: dict[Size, tuple[int, ...]] = {
    "ci": (10_000, 100_000),
    "full": (10_000, 1_000_000, 5_000_000),
}
BATCH, SEED, REPEATS = 128, 3, 5


def draw_anew(n_rows: int, step: int) -> list[int]:
    """The peer: the epoch's whole permutation for the rows of one update."""
    epoch, at = divmod(step, -(-n_rows // BATCH))
    generator = torch.Generator().manual_seed(SEED * 1_000_003 + epoch)
    order_N = torch.randperm(n_rows, generator=generator)
    numbers: list[int] = order_N[at * BATCH : (at + 1) * BATCH].tolist()
    return numbers


def rows(size: Size) -> list[Row]:
    """One comparison for each number of training rows."""
    return [_compare(n_rows) for n_rows in ROWS[size]]


def _compare(n_rows: int) -> Row:
    sampler = Sampler(n_rows, BATCH, SEED)
    per_epoch = sampler.steps_per_epoch
    draw_order(n_rows, SEED, 0)  # memory and libraries are ready
    begun = time.perf_counter()
    draw_order(n_rows, SEED, 0)
    drawn = time.perf_counter() - begun
    asked = (0, 1, per_epoch // 2, per_epoch - 1, per_epoch)
    agrees = all(sampler.numbers_of(step) == draw_anew(n_rows, step) for step in asked)
    theirs, mine = itertools.cycle(range(per_epoch)), itertools.cycle(range(per_epoch))
    peer_seconds, our_seconds = alternate(
        lambda: draw_anew(n_rows, next(theirs)),
        lambda: sampler.numbers_of(next(mine)),
        REPEATS,
    )
    detail = f"and one draw of {1e3 * drawn:.2g} ms for the {per_epoch:,} updates of an epoch"
    name = f"rows of one update, of {n_rows:,}"
    return Row(name, "a permutation per update", peer_seconds, our_seconds, agrees, None, detail)
