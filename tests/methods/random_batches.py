"""Synthetic batches for the tests of methods: a small catalogue, random states, whatever a method
needs.  Everything is float64 unless asked for otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from llmrec_cli.methods.contract import Batch, Forward, Head, Needs, Preferences, RolloutGroups
from llmrec_cli.tensors.trie import (
    LeafMass,
    Trie,
    build_trie,
    edges_of,
    leaf_mass,
    leaf_ranges,
    paths,
)

V, D, EOS = 16, 6, 2
ITEMS = [  # shared prefixes, a prefix of another item, a duplicate, forced tails, single tokens
    *([3, 8, 9], [3, 8, 10], [3, 11], [3, 11, 12], [3, 11]),
    *([4, 8, 13, 14], [5, 9], [5, 10], [6], [7, 12, 12, 12], [7, 13], [7]),
]


def catalogue() -> Trie:
    """Eleven entries, twelve items, five first tokens."""
    return build_trie([[*item, EOS] for item in ITEMS])


def one_item() -> Trie:
    """Every position has one legal token."""
    return build_trie([[3, 8, 9, EOS]])


def positions(trie: Trie, leaves: Sequence[int], *, cut: bool = False) -> Batch:
    """All response positions of some answers; ``cut``: up to each answer's last branching one."""
    leaf_A = torch.tensor(leaves, dtype=torch.int64)
    node_AT, token_AT, length_A = paths(trie, leaf_A)
    kept_AT = node_AT >= 0
    if cut:
        branching_AT = kept_AT & (trie.fan_out(node_AT.clamp_min(0)) > 1)
        kept_AT = branching_AT.flip(1).cummax(1).values.flip(1)
    step_T = torch.arange(node_AT.shape[1])
    return Batch(
        trie=trie,
        target_P=token_AT[kept_AT],
        node_P=node_AT[kept_AT],
        answer_P=torch.arange(len(leaves))[:, None].expand_as(kept_AT)[kept_AT],
        final_P=(step_T == length_A[:, None] - 1)[kept_AT],
        length_A=length_A,
        answers=len(leaves),
        positions=int(length_A.sum()),
    )


def states(
    batch: Batch, layers: int = 0, *, bias: bool = False, dtype: torch.dtype = torch.float64
) -> Forward:
    """Random hidden states and head, all of them leaves of the graph."""

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()

    torch.manual_seed(len(batch.target_P) + 7 * layers)
    n = len(batch.target_P)
    hidden_PD, weight_VD = leaf(n, D), leaf(V, D)
    layers_LPD = leaf(layers, n, D) if layers else None
    return Forward(hidden_PD, Head(weight_VD, leaf(V) if bias else None), layers_LPD)


def draw(
    trie: Trie, targets: Sequence[int], needs: Needs, *, cut: bool = False
) -> tuple[Batch, Forward]:
    """A batch of some target leaves with everything that is needed."""
    torch.manual_seed(len(targets))
    if needs.rollouts:
        return draw_rollouts(trie, targets, needs, cut=cut)
    k = needs.negatives.k if needs.negatives else 0
    leaves = [int(leaf) for t in targets for leaf in (t, *torch.randint(trie.n_leaves, (k,)))]
    batch = positions(trie, leaves, cut=cut)
    if needs.negatives:
        number_GA = torch.arange(len(leaves)).view(-1, 1 + k)
        reference_A = -5 * torch.rand(len(leaves), dtype=torch.float64)
        preferences = Preferences(number_GA[:, :1], number_GA[:, 1:])
        known = reference_A if needs.reference else None
        batch = replace(batch, preferences=preferences, reference=known)
    if needs.item_scores:
        batch = replace(batch, mass=masses(trie, len(leaves)))
    return batch, states(batch, needs.hidden_states)


def draw_rollouts(
    trie: Trie, targets: Sequence[int], needs: Needs, *, cut: bool = False
) -> tuple[Batch, Forward]:
    """Random rollouts of each target, k distinct leaves where there are as many.

    Every other target is one of its own, so that a group has the target or not.
    """
    assert needs.rollouts is not None
    k, groups = needs.rollouts.k, list[list[int]]()
    for at, target in enumerate(targets):
        others = [leaf for leaf in torch.randperm(trie.n_leaves).tolist() if leaf != target]
        chosen = ([target] * (at % 2 == 0) + others)[:k]
        chosen += [(target + 1) % trie.n_leaves] * (k - len(chosen))
        groups.append([chosen[i] for i in torch.randperm(k).tolist()])
    leaf_GK = torch.tensor(groups, dtype=torch.int64).view(-1, k)
    target_G1 = torch.tensor(targets, dtype=torch.int64).view(-1, 1)
    batch = positions(trie, leaf_GK.flatten().tolist(), cut=cut)
    batch = replace(
        batch,
        rollouts=RolloutGroups(torch.arange(leaf_GK.numel()).view(-1, k), leaf_GK == target_G1),
        reference=reference_of(batch) if needs.reference else None,
    )
    return batch, states(batch, needs.hidden_states)


def reference_of(batch: Batch) -> Tensor:
    """Made-up log-probabilities of tokens, nats: the same ones whether forced tails are cut."""
    number_P = batch.node_P * 31 + batch.target_P + 7 * batch.answer_P
    branches_P = batch.trie.fan_out(batch.node_P) > 1
    return -(number_P % 13).double().div(4).where(branches_P, torch.tensor(0.0).double())


def masses(trie: Trie, answers: int) -> LeafMass:
    """Random item probabilities for each answer, some of them 0."""
    torch.manual_seed(answers)
    probability_AF = torch.rand(answers, trie.n_leaves, dtype=torch.float64)
    probability_AF[probability_AF < 0.3] = 0
    return leaf_mass(probability_AF, leaf_ranges(trie))


def part(batch: Batch, forward: Forward, targets: Sequence[int]) -> tuple[Batch, Forward]:
    """The answers of some targets (by number, ascending), as a batch of their own."""
    preferences, rollouts = batch.preferences, batch.rollouts
    size = 1 + preferences.rejected_GK.shape[1] if preferences else 1
    size = rollouts.answer_GK.shape[1] if rollouts else size
    mine_A = torch.tensor([t * size + i for t in targets for i in range(size)], dtype=torch.int64)
    keep_P = torch.isin(batch.answer_P, mine_A)
    number_A = torch.zeros(batch.answers, dtype=torch.int64)
    number_A[mine_A] = torch.arange(len(mine_A))
    length_A = batch.length_A[mine_A]
    cut = replace(
        batch,
        target_P=batch.target_P[keep_P],
        node_P=batch.node_P[keep_P],
        answer_P=number_A[batch.answer_P[keep_P]],
        final_P=batch.final_P[keep_P],
        length_A=length_A,
        answers=len(mine_A),
        positions=int(length_A.sum()),
    )
    if batch.reference is not None:
        kept = keep_P if rollouts else mine_A
        cut = replace(cut, reference=batch.reference[kept])
    if rollouts:
        number_GK = number_A[rollouts.answer_GK[list(targets)]]
        cut = replace(cut, rollouts=RolloutGroups(number_GK, rollouts.hit_GK[list(targets)]))
    if preferences:
        chosen_GC, rejected_GK = preferences.chosen_GC, preferences.rejected_GK
        mine = Preferences(
            number_A[chosen_GC[list(targets)]],
            number_A[rejected_GK[list(targets)]],
        )
        cut = replace(cut, preferences=mine)
    if batch.mass:
        cumulative_AF1 = batch.mass.cumulative_AF1[mine_A]
        cut = replace(cut, mass=replace(batch.mass, cumulative_AF1=cumulative_AF1))
    layers_LPD = forward.layers_LPD
    return cut, replace(
        forward,
        hidden_PD=forward.hidden_PD[keep_P],
        layers_LPD=None if layers_LPD is None else layers_LPD[:, keep_P],
    )


def legal_tokens(trie: Trie, node: int) -> list[int]:
    """Tokens that may be chosen at a node, ascending."""
    edges, _ = edges_of(trie, torch.tensor([node]))
    return [int(token) for token in trie.edge_token_E[edges]]


def leaves_of(forward: Forward) -> list[Tensor]:
    """The tensors that a loss may have gradients for."""
    head = forward.head
    found = (forward.hidden_PD, forward.layers_LPD, head.weight_VD, head.bias_V)
    return [x for x in found if x is not None]
