"""The collator: rows become padded tensors with targets.

A row is laid out in one of two ways.  *Chained*: all targets of a row follow each other in one
sequence.  *Packed*: every answer has a sequence of its own, and those of a row share their
beginnings (``tensors.packing``).  Negatives and the prompts of a user row are packed.

    rows -> split by Limits -> Answers (trie entries and the tokens before them) -> MicroBatch
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmrec_cli.config.training import TrainSection
from llmrec_cli.methods.contract import Batch, Preferences, RolloutGroups
from llmrec_cli.tensors.packing import Tree, pack
from llmrec_cli.tensors.trie import Trie, build_trie, paths
from llmrec_cli.training.rows import (
    AnyRow,
    ComparedRow,
    IntArray,
    PairRow,
    Row,
    TextRow,
    build_contexts,
    list_answers,
    shared_tokens,
)


class Limits(NamedTuple):
    """The limits of one forward pass; None: no limit."""

    rows: int | None = None
    tokens: int | None = None  # padding included; a longer row has a pass of its own

    @classmethod
    def of_section(cls, section: TrainSection) -> Limits:
        """The limits of one forward pass of a training stage."""
        return cls(section.micro_batch, section.micro_tokens)


@dataclass(frozen=True)
class MicroBatch:
    """The inputs of one forward pass, and its targets."""

    input_ids_BT: Tensor  # right-padded
    take_P: Tensor  # flat position (row * T + t) whose hidden state predicts each target
    batch: Batch
    tree: Tree | None = None  # of packed rows; without one, every token sees all before it

    @property
    def tokens(self) -> int:
        """Tokens that the model computes, padding included."""
        return self.input_ids_BT.numel()

    def to(self, device: torch.device) -> MicroBatch:
        batch = self.batch
        moved = replace(
            batch,
            target_P=batch.target_P.to(device, non_blocking=True),
            node_P=batch.node_P.to(device, non_blocking=True),
            answer_P=batch.answer_P.to(device, non_blocking=True),
            final_P=batch.final_P.to(device, non_blocking=True),
            length_A=batch.length_A.to(device, non_blocking=True),
            preferences=batch.preferences and _move_preferences(batch.preferences, device),
            rollouts=batch.rollouts and _move_rollouts(batch.rollouts, device),
            reference=None
            if batch.reference is None
            else batch.reference.to(device, non_blocking=True),
            mass=batch.mass and batch.mass.to(device),
        )
        return MicroBatch(
            self.input_ids_BT.to(device, non_blocking=True),
            self.take_P.to(device, non_blocking=True),
            moved,
            self.tree and self.tree.to(device),
        )


def _move_preferences(preferences: Preferences, device: torch.device) -> Preferences:
    return Preferences(
        preferences.chosen_GC.to(device, non_blocking=True),
        preferences.rejected_GK.to(device, non_blocking=True),
    )


def _move_rollouts(rollouts: RolloutGroups, device: torch.device) -> RolloutGroups:
    return RolloutGroups(
        rollouts.answer_GK.to(device, non_blocking=True),
        rollouts.hit_GK.to(device, non_blocking=True),
    )


class Collator:
    """Rows to micro-batches.

    Args:
        trie: the catalogue, on the device where losses are computed; path look-ups use a CPU copy.
        cut_forced: leave out what follows an answer's last branching position (legal-token losses).
        dense_head: passed on to the loss.
        rejected: whether the rejected answers of pair rows are laid out too.
    """

    def __init__(
        self,
        trie: Trie,
        *,
        cut_forced: bool,
        dense_head: bool = False,
        rejected: bool = False,
    ) -> None:
        self.device_trie = trie
        self.trie = trie.to("cpu")
        self.cut_forced = cut_forced
        self.dense_head = dense_head
        self.rejected = rejected

    def __call__(self, rows: Sequence[AnyRow]) -> MicroBatch:
        """Make a micro-batch of rows of one kind.

        After the look-up of paths it is array arithmetic only.
        """
        catalogue_rows = [row for row in rows if isinstance(row, Row)]
        if len(catalogue_rows) < len(rows):
            pairs = [row for row in rows if isinstance(row, PairRow)]
            texts = [row for row in rows if isinstance(row, TextRow)]
            if texts:
                return self._lay_out(lay_out_texts(texts), [])
            return self._lay_out(lay_out_pairs(pairs, rejected=self.rejected), pairs)
        apart = any(row.negatives or row.rollouts or row.prompts for row in catalogue_rows)
        answers = (pack_answers if apart else chain_answers)(catalogue_rows, self.trie)
        return self._lay_out(answers, catalogue_rows)

    def split(self, rows: Sequence[AnyRow], limits: Limits) -> list[list[AnyRow]]:
        """The rows of one batch in forward passes of one kind and like lengths (``split_rows``)."""
        parts = split_kinds(rows)
        if limits == Limits():
            return parts
        return [
            part for own in parts for part in split_rows(own, count_tokens(own, self.trie), limits)
        ]

    def _lay_out(self, answers: Answers, rows: Sequence[ComparedRow]) -> MicroBatch:
        node_AT, token_AT, length_A = paths(answers.trie, answers.leaf_A)
        step_T = torch.arange(node_AT.shape[1])
        inside_AT = step_T < length_A[:, None]
        kept_AT = inside_AT & self._mark_kept(answers, node_AT)
        position_AT = answers.prefix_A[:, None] + step_T
        fed_SW = feed_sequences(answers, token_AT, kept_AT, inside_AT)
        alone = len(answers.row_S) == int(answers.row_S[-1]) + 1  # one sequence in every row
        if alone:
            input_ids_BT, tree = fed_SW.clamp_min(0), None
            slot_AT = answers.sequence_A[:, None] * fed_SW.shape[1] + position_AT - 1
        else:
            input_ids_BT, tree, slot_SW = pack(fed_SW, answers.row_S)
            before_AT = (position_AT - 1).clamp_max(fed_SW.shape[1] - 1)
            slot_AT = slot_SW[answers.sequence_A[:, None], before_AT]
        answer_AT = torch.arange(len(length_A))[:, None].expand_as(kept_AT)
        return MicroBatch(
            input_ids_BT=input_ids_BT,
            take_P=slot_AT[kept_AT],
            batch=Batch(
                trie=self.device_trie if answers.trie is self.trie else answers.trie,
                target_P=token_AT[kept_AT],
                node_P=node_AT[kept_AT],
                answer_P=answer_AT[kept_AT],
                final_P=(step_T == length_A[:, None] - 1)[kept_AT],
                length_A=length_A,
                answers=len(length_A),
                positions=int(length_A.sum()),
                dense_head=self.dense_head,
                preferences=_number_preferences(rows) if self.rejected else None,
                rollouts=_number_rollouts(rows, answers),
                reference=_join_references(rows) if self.rejected else None,
            ),
            tree=tree,
        )

    def _mark_kept(self, answers: Answers, node_AT: Tensor) -> Tensor:
        """All positions, or those up to the last branching one of each answer."""
        if not self.cut_forced:
            return torch.ones_like(node_AT, dtype=torch.bool)
        branching_AT = (answers.trie.fan_out(node_AT.clamp_min(0)) > 1) & (node_AT >= 0)
        return branching_AT.flip(1).cummax(1).values.flip(1)  # at or after the position


def _number_preferences(rows: Sequence[ComparedRow]) -> Preferences:
    """Answer numbers of each group; all groups have equally many rejected answers."""
    chosen: list[list[int]] = []
    rejected: list[list[int]] = []
    answer = 0
    for row in rows:
        if isinstance(row, PairRow):
            numbers = range(answer, answer + 2 * len(row.prompts))
            chosen.append(list(numbers[0::2]))
            rejected.append(list(numbers[1::2]))
            answer = numbers.stop
            continue
        for negatives in row.negatives:
            chosen.append([answer])
            rejected.append(list(range(answer + 1, answer + 1 + len(negatives))))
            answer += 1 + len(negatives)
    return Preferences(torch.tensor(chosen), torch.tensor(rejected))


def _join_references(rows: Sequence[ComparedRow]) -> Tensor | None:
    """``log pi_ref`` of all answers; None where a row has none yet."""
    known = [row.reference for row in rows if row.reference is not None]
    return torch.from_numpy(np.concatenate(known)) if len(known) == len(rows) else None


def _number_rollouts(rows: Sequence[ComparedRow], answers: Answers) -> RolloutGroups | None:
    """Answer numbers of each group, and which of them are the target's own entry."""
    asked = [row for row in rows if isinstance(row, Row) and row.rollouts]
    if not asked:
        return None
    target_G = torch.tensor([target for row in asked for target in row.targets])
    answer_GK = torch.arange(len(answers.leaf_A)).view(len(target_G), -1)
    target_leaf_G1 = answers.trie.leaf_of_item_I[target_G][:, None]
    return RolloutGroups(answer_GK, answers.leaf_A[answer_GK] == target_leaf_G1)


def has_two_kinds(rows: Sequence[AnyRow]) -> bool:
    """Whether ``split_kinds`` may make two parts of some of the rows."""
    return len({isinstance(row, TextRow) for row in rows}) > 1


def split_kinds(rows: Sequence[AnyRow]) -> list[list[AnyRow]]:
    """Rows whose answers are items, and rows whose answers are texts: they have two tries."""
    kinds: tuple[list[AnyRow], list[AnyRow]] = [], []
    for row in rows:
        kinds[isinstance(row, TextRow)].append(row)
    return [own for own in kinds if own]


def split_rows(
    rows: Sequence[AnyRow], lengths: Sequence[int], limits: Limits
) -> list[list[AnyRow]]:
    """Split a global batch into forward passes, longest rows first, like lengths together.

    A pass is padded to its longest row, so a limit on tokens puts many short rows or few long ones
    into it.  All passes then need about the same memory, with little padding.

    Args:
        lengths: tokens of each row.
    """
    most_rows, room = limits.rows or len(rows), limits.tokens or math.inf
    parts: list[list[AnyRow]] = []
    longest = 0  # of the last part
    for i in sorted(range(len(rows)), key=lambda i: -lengths[i]):
        fits = parts and len(parts[-1]) < most_rows and longest * (len(parts[-1]) + 1) <= room
        if not fits:
            parts.append([])
            longest = lengths[i]
        parts[-1].append(rows[i])
    return parts


@dataclass(frozen=True)
class Answers:
    """The answers of a micro-batch, in row order; each follows ``prefix`` tokens of its row.

    A row of the model's input has one or more sequences, ``tokens``.  In a chained row all answers
    are in one sequence, in a packed row each has its own.
    """

    trie: Trie
    leaf_A: Tensor
    prefix_A: Tensor  # tokens before the answer in its sequence
    sequence_A: Tensor  # the sequence that has the answer
    tokens: list[IntArray]  # of each sequence, before its last answer
    row_S: Tensor  # input row of each sequence


def chain_answers(rows: Sequence[Row], trie: Trie) -> Answers:
    """All targets of a row in one sequence, one after the other."""
    items = torch.tensor([item for row in rows for item in row.targets])
    leaf_A = trie.leaf_of_item_I[items]
    row_A = torch.repeat_interleave(torch.tensor([len(row.targets) for row in rows]))
    length_A = paths(trie, leaf_A)[2]
    prompt_B = torch.tensor([len(row.prompt) for row in rows])
    return Answers(
        trie=trie,
        leaf_A=leaf_A,
        prefix_A=_find_starts(prompt_B, row_A, length_A),
        sequence_A=row_A,
        tokens=[row.prompt for row in rows],
        row_S=torch.arange(len(rows)),
    )


def pack_answers(rows: Sequence[Row], trie: Trie) -> Answers:
    """Every target with its negatives, or the rollouts in its place, each in a sequence of its own.

    A sequence begins with the tokens before the target.
    """
    tokens: list[IntArray] = []
    items: list[int] = []
    row_of: list[int] = []
    for number, row in enumerate(rows):
        before = _prompts_before(row, trie)
        for own, prefix in zip(list_answers(row), before, strict=True):
            items += own
            tokens += [prefix] * len(own)
            row_of += [number] * len(own)
    return _separate_answers(trie, trie.leaf_of_item_I[torch.tensor(items)], tokens, row_of)


def _prompts_before(row: Row, trie: Trie) -> list[IntArray]:
    _, token_AT, length_A = paths(trie, trie.leaf_of_item_I[torch.tensor(row.targets)])
    tokens = zip(token_AT.tolist(), length_A.tolist(), strict=True)
    of_item = {item: ids[:n] for item, (ids, n) in zip(row.targets, tokens, strict=True)}
    return build_contexts(row, of_item.__getitem__)


def lay_out_pairs(rows: Sequence[PairRow], *, rejected: bool) -> Answers:
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
    return _separate_answers(
        trie, trie.leaf_of_item_I, tokens, row_of if rejected else range(len(texts))
    )


def lay_out_texts(rows: Sequence[TextRow]) -> Answers:
    """The answers of text rows, in a trie of this micro-batch only."""
    trie = build_trie([row.answer.tolist() for row in rows])
    prompts = [row.prompt for row in rows]
    return _separate_answers(trie, trie.leaf_of_item_I, prompts, range(len(rows)))


def _separate_answers(
    trie: Trie, leaf_A: Tensor, tokens: list[IntArray], row_of: Sequence[int]
) -> Answers:
    return Answers(
        trie=trie,
        leaf_A=leaf_A,
        prefix_A=torch.tensor([len(prefix) for prefix in tokens]),
        sequence_A=torch.arange(len(tokens)),
        tokens=tokens,
        row_S=torch.tensor(list(row_of)),
    )


def feed_sequences(
    answers: Answers, token_AT: Tensor, kept_AT: Tensor, inside_AT: Tensor
) -> Tensor:
    """Token ids of the input, one sequence a row, padded with -1, up to the last kept position."""
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


def count_tokens(rows: Sequence[AnyRow], trie: Trie) -> list[int]:
    """Tokens of each row: its prompts and answers, without what is cut or shared."""
    items = [_items_of(row) for row in rows]
    leaf_A = trie.leaf_of_item_I[torch.tensor([i for part in items for i in part]).long()]
    length = iter(paths(trie, leaf_A)[2].tolist())
    return [
        _count_own_tokens(row) + sum(itertools.islice(length, len(part)))
        for row, part in zip(rows, items, strict=True)
    ]


def _items_of(row: AnyRow) -> list[int]:
    """Catalogue items that a row lays out as answers."""
    if not isinstance(row, Row):
        return []
    answers = [item for own in list_answers(row) for item in own]
    chained = row.rollouts and not row.prompts  # targets are answers no more, but stand before them
    return [*row.targets[:-1], *answers] if chained else answers


def _count_own_tokens(row: AnyRow) -> int:
    """Tokens of a row apart from catalogue items."""
    if isinstance(row, TextRow):
        return len(row.prompt) + len(row.answer)
    if isinstance(row, PairRow):
        return _count_joint_tokens(row.prompts) + sum(
            len(text) for pair in row.answers for text in pair
        )
    return _count_joint_tokens(row.prompts) if row.prompts else len(row.prompt)


def _count_joint_tokens(prompts: Sequence[IntArray]) -> int:
    """Tokens of prompts of which each shares its beginning with the one before."""
    shared = sum(shared_tokens(a, b) for a, b in itertools.pairwise(prompts))
    return sum(map(len, prompts)) - shared


def _find_starts(prompt_B: Tensor, row_A: Tensor, length_A: Tensor) -> Tensor:
    """Position at which each target begins: its row's prompt, then the targets before it."""
    before_A = length_A.cumsum(0) - length_A
    first_of_row = torch.ones_like(row_A, dtype=torch.bool)
    first_of_row[1:] = row_A[1:] != row_A[:-1]
    row_offset_B = before_A[first_of_row]
    return prompt_B[row_A] + before_A - row_offset_B[row_A]
