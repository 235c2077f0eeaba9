"""What the peers' ways keep in memory or compute in vain, beside ours: bytes and tokens.

*Head*: bytes that a forward and backward pass of the loss head adds to the process at its peak,
each measured in a fresh process.  *Masks*: the legal tokens of 10,000 training rows as a dense
boolean vocabulary mask at response positions, and as trie node ids.  *Tokens*: what a global batch
feeds, padded to its longest row, and in micro-batches of like length with forced tails cut.
"""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

from benchmarks import loss_head
from benchmarks.loss_head import catalogue
from benchmarks.machine import memory_of
from benchmarks.table import Row as Measured
from llmrec_cli.tensors.trie import build_trie, paths
from llmrec_cli.training.collator import Collator, Limits
from llmrec_cli.training.rows import Row

Size = Literal["ci", "full"]
MB = 2**20
HEAD_MOST, MASKS_MOST = 64, 1  # MB
TOKENS_BAR = 1.25  # at most 0.8 of the tokens
STORED_ROWS = 10_000


def rows(size: Size) -> list[Measured]:
    """Head, masks and tokens at one size."""
    return [_head(size), _masks(size), _tokens(size)]


def _head(size: Size) -> Measured:
    ours, theirs = (in_fresh_process(_extra_of_head, size, whose) for whose in ("ours", "peer"))
    within = ours <= HEAD_MOST
    return Measured(
        "extra peak memory of the loss head, frozen",
        "released MSL",
        [theirs],
        [ours],
        agrees=within,
        bar=None,
        detail=f"{ours:.0f} MB, at most {HEAD_MOST}",
        unit="MB",
    )


def _extra_of_head(size: Size, whose: str) -> float:
    problem = loss_head.draw_problem(loss_head.SHAPES[size], trained=False)
    loss = loss_head.ours if whose == "ours" else loss_head.released
    return memory_of(lambda: torch.autograd.backward(loss(problem)))[1]


def in_fresh_process(work: Callable[[Size, str], float], size: Size, whose: str) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (size, whose))


def _masks(size: Size) -> Measured:
    shape = loss_head.SHAPES[size]
    trie = build_trie(catalogue(shape.items, shape.first_tokens, shape.vocabulary))
    draw = torch.Generator().manual_seed(0)
    leaf_A = torch.randint(trie.n_leaves, (STORED_ROWS,), generator=draw)
    node_AT, _, length_A = paths(trie, leaf_A)
    positions = int(length_A.sum())
    dense = positions * shape.vocabulary  # a byte a token
    ours = positions * trie.parent_N.element_size()
    rebuilt = int((node_AT >= 0).sum()) == positions  # a node for every position
    return Measured(
        f"legal tokens of {STORED_ROWS:,} rows",
        "dense masks",
        [dense / MB],
        [ours / MB],
        agrees=rebuilt and ours <= MASKS_MOST * MB,
        bar=None,
        detail=f"at most {MASKS_MOST} MB; a training row stores its item alone",
        unit="MB",
    )


def _tokens(size: Size) -> Measured:
    items = catalogue(6_000, 2_000, 32_000)
    trie, draw = build_trie(items), random.Random(0)
    batches, rows_of_batch = (4, 64) if size == "ci" else (50, 128)
    padded = ours = targets = kept = 0
    whole, cut = Collator(trie, cut_forced=False), Collator(trie, cut_forced=True)
    for _ in range(batches):
        batch = []
        for _ in range(rows_of_batch):
            history = draw.choices(range(len(items)), k=draw.randint(4, 10))
            prompt = [1, *(token for item in history for token in items[item])]
            batch.append(Row(np.array(prompt, np.int32), (draw.randrange(len(items)),)))
        padded += whole(batch).tokens
        parts = [cut(part) for part in cut.split(batch, Limits(tokens=1_500))]
        ours += sum(micro.tokens for micro in parts)
        kept += sum(micro.batch.answers for micro in parts)
        targets += rows_of_batch
    return Measured(
        "tokens of a batch, like lengths together and forced tails cut",
        "padded to the longest row",
        [float(padded)],
        [float(ours)],
        agrees=kept == targets,
        bar=TOKENS_BAR,
        detail=f"{ours / padded:.2f} of the tokens, at most 0.8",
        unit="tokens",
    )
