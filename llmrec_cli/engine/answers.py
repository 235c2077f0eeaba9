"""Which answers rows have, and the token sequences in which they stand.

A row is laid out in one of two ways.  *Chained*: all targets of a row stand one after the other in
one sequence.  *Packed*: every answer has a sequence of its own, and those of a row share their
beginnings (``tensors.packing``): so do negatives, and the prompts of a user row.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmrec_cli.engine.rows import AnyRow, IntArray, PairRow, Row, contexts, shared_tokens
from llmrec_cli.tensors.trie import Trie, build_trie, paths


@dataclass(frozen=True)
class Answers:
    """The answers of a micro-batch, in row order; each follows ``prefix`` tokens of its row.

    A row of the model's input is fed one or more sequences, ``tokens``: in a chained row all
    answers stand in one, in a packed row each has its own.
    """

    trie: Trie
    leaf_A: Tensor
    prefix_A: Tensor  # tokens before the answer in its sequence
    sequence_A: Tensor  # the sequence that an answer stands in
    tokens: list[IntArray]  # of each sequence, before its last answer
    row_S: Tensor  # input row of each sequence


def chained(rows: Sequence[Row], trie: Trie) -> Answers:
    """All targets of a row in one sequence, one after the other."""
    items = torch.tensor([item for row in rows for item in row.targets])
    leaf_A = trie.leaf_of_item_I[items]
    row_A = torch.repeat_interleave(torch.tensor([len(row.targets) for row in rows]))
    length_A = paths(trie, leaf_A)[2]
    prompt_B = torch.tensor([len(row.prompt) for row in rows])
    return Answers(
        trie=trie,
        leaf_A=leaf_A,
        prefix_A=_starts_in_row(prompt_B, row_A, length_A),
        sequence_A=row_A,
        tokens=[row.prompt for row in rows],
        row_S=torch.arange(len(rows)),
    )


def packed(rows: Sequence[Row], trie: Trie) -> Answers:
    """Every target and every negative in a sequence of its own, behind what stands before them."""
    tokens: list[IntArray] = []
    items: list[int] = []
    row_of: list[int] = []
    for number, row in enumerate(rows):
        negatives = row.negatives or ((),) * len(row.targets)
        before = _before_targets(row, trie)
        for target, others, prefix in zip(row.targets, negatives, before, strict=True):
            items += (target, *others)
            tokens += [prefix] * (1 + len(others))
            row_of += [number] * (1 + len(others))
    return _apart(trie, trie.leaf_of_item_I[torch.tensor(items)], tokens, row_of)


def _before_targets(row: Row, trie: Trie) -> list[IntArray]:
    _, token_AT, length_A = paths(trie, trie.leaf_of_item_I[torch.tensor(row.targets)])
    tokens = zip(token_AT.tolist(), length_A.tolist(), strict=True)
    of_item = {item: ids[:n] for item, (ids, n) in zip(row.targets, tokens, strict=True)}
    return contexts(row, of_item.__getitem__)


def pair_answers(rows: Sequence[PairRow], *, rejected: bool) -> Answers:
    """The answers of pair rows: texts, so they get a trie of their own, of this micro-batch only.

    Chosen answers alone need no packing; with the rejected ones, all prompts of a row share the
    history that they begin with.
    """
    sides = (0, 1) if rejected else (0,)
    texts, tokens, row_of = [], [], []
    for number, row in enumerate(rows):
        for prompt, answers in zip(row.prompts, row.answers, strict=True):
            texts += [answers[side].tolist() for side in sides]
            tokens += [prompt] * len(sides)
            row_of += [number] * len(sides)
    trie = build_trie(texts)
    return _apart(trie, trie.leaf_of_item_I, tokens, row_of if rejected else range(len(texts)))


def _apart(trie: Trie, leaf_A: Tensor, tokens: list[IntArray], row_of: Sequence[int]) -> Answers:
    return Answers(
        trie=trie,
        leaf_A=leaf_A,
        prefix_A=torch.tensor([len(prefix) for prefix in tokens]),
        sequence_A=torch.arange(len(tokens)),
        tokens=tokens,
        row_S=torch.tensor(list(row_of)),
    )


def fed_sequences(answers: Answers, token_AT: Tensor, kept_AT: Tensor, inside_AT: Tensor) -> Tensor:
    """Token ids to feed, one sequence a row, -1 behind: all that a kept position comes after."""
    position_AT = answers.prefix_A[:, None] + torch.arange(token_AT.shape[1])
    needed_A = torch.where(kept_AT, position_AT, answers.prefix_A[:, None]).max(1).values
    n_sequences = len(answers.tokens)
    length_S = torch.zeros(n_sequences, dtype=torch.int64)
    length_S.scatter_reduce_(0, answers.sequence_A, needed_A, "amax")
    fed_SW = torch.full((n_sequences, int(length_S.max())), -1)
    for s, prefix in enumerate(answers.tokens):
        fed_SW[s, : len(prefix)] = torch.from_numpy(prefix.astype(np.int64))
    sequence_AT = answers.sequence_A[:, None].expand_as(position_AT)
    fed_AT = inside_AT & (position_AT < length_S[answers.sequence_A][:, None])
    fed_SW[sequence_AT[fed_AT], position_AT[fed_AT]] = token_AT[fed_AT]
    return fed_SW


def lengths(rows: Sequence[AnyRow], trie: Trie) -> list[int]:
    """Tokens of each row: its prompts and every answer; less where it can be cut or shared."""
    items = [_items(row) for row in rows]
    leaf_A = trie.leaf_of_item_I[torch.tensor([i for part in items for i in part]).long()]
    length = iter(paths(trie, leaf_A)[2].tolist())
    return [
        _own_tokens(row) + sum(itertools.islice(length, len(part)))
        for row, part in zip(rows, items, strict=True)
    ]


def _items(row: AnyRow) -> list[int]:
    """Catalogue items that a row lays out as answers."""
    if isinstance(row, PairRow):
        return []
    return [*row.targets, *(item for negatives in row.negatives for item in negatives)]


def _own_tokens(row: AnyRow) -> int:
    """Tokens of a row apart from catalogue items."""
    if isinstance(row, PairRow):
        return _joint(row.prompts) + sum(len(text) for pair in row.answers for text in pair)
    return _joint(row.prompts) if row.prompts else len(row.prompt)


def _joint(prompts: Sequence[IntArray]) -> int:
    """Tokens of prompts of which each shares its beginning with the one before."""
    shared = sum(shared_tokens(a, b) for a, b in itertools.pairwise(prompts))
    return sum(map(len, prompts)) - shared


def _starts_in_row(prompt_B: Tensor, row_A: Tensor, length_A: Tensor) -> Tensor:
    """Position at which each target begins: its row's prompt, then the targets before it."""
    before_A = length_A.cumsum(0) - length_A
    first_of_row = torch.ones_like(row_A, dtype=torch.bool)
    first_of_row[1:] = row_A[1:] != row_A[:-1]
    row_offset_B = before_A[first_of_row]
    return prompt_B[row_A] + before_A - row_offset_B[row_A]
