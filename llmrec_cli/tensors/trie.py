"""The catalogue as a flat trie: nodes, children, probabilities of children, masses of nodes."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

# The catalogue as a flat trie of token sequences.
#
# Every item is a token sequence that ends in EOS; together they form a trie. Its children at a node
# are the *legal* tokens there (``V_t`` in docs/methods). Nodes are numbered breadth first and
# children are sorted by token, so that the child behind edge ``e`` is simply node ``e + 1`` and no
# child pointers are stored.
#
# Shape suffixes: N nodes, E = N - 1 edges, L leaves (distinct token sequences), I items, B rows,
# T positions of a response.


ROOT = 0


@dataclass(frozen=True, slots=True, eq=False)
class Trie:
    """Item token sequences in compressed sparse rows; all arrays int32, about 16 bytes a node.

    Leaves are numbered in trie order (lexicographic by token), so the leaves below a node are a
    contiguous range.  Items with equal token sequences share one leaf.
    """

    edge_start_N1: Tensor  # edges of node n: edge_start_N1[n] .. edge_start_N1[n + 1]
    edge_token_E: Tensor  # token of an edge, ascending within a node; edge e leads to node e + 1
    parent_N: Tensor  # parent node, -1 at the root
    leaf_of_node_N: Tensor  # leaf index, -1 at inner nodes
    node_of_leaf_L: Tensor
    leaf_of_item_I: Tensor
    item_start_L1: Tensor  # items of leaf l: item_order_I[item_start_L1[l] .. item_start_L1[l + 1]]
    item_order_I: Tensor
    max_length: int  # tokens of the longest sequence, EOS included

    @property
    def device(self) -> torch.device:
        return self.parent_N.device

    @property
    def n_nodes(self) -> int:
        return len(self.parent_N)

    @property
    def n_leaves(self) -> int:
        return len(self.node_of_leaf_L)

    @property
    def n_items(self) -> int:
        return len(self.leaf_of_item_I)

    def fan_out(self, nodes: Tensor) -> Tensor:
        """Number of legal tokens at each node (any shape, same shape back); 0 at leaves."""
        at = nodes.long()
        return self.edge_start_N1[at + 1] - self.edge_start_N1[at]

    def to(self, device: torch.device | str) -> Trie:
        """The same trie with its arrays on ``device``; itself where they are there already."""
        if torch.device(device) == self.device:
            return self
        return replace(self, **{name: getattr(self, name).to(device) for name in _ARRAYS})

    def tensors(self) -> dict[str, Tensor]:
        """What ``from_tensors`` takes, on the CPU: to write down, or to map."""
        found = {name: getattr(self, name).cpu() for name in _ARRAYS}
        return {**found, "max_length": torch.tensor([self.max_length])}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Trie:
        """A trie in the memory of ``tensors``; further entries are not looked at."""
        arrays = {name: tensors[name] for name in _ARRAYS}
        return cls(**arrays, max_length=int(tensors["max_length"]))


_ARRAYS = tuple(f.name for f in fields(Trie) if f.name != "max_length")


def build_trie(items: Sequence[Sequence[int]]) -> Trie:
    """Build the trie of a catalogue.

    Args:
        items: one token sequence per item, non-empty, token ids >= 0, ending in a token (EOS) that
            occurs nowhere else, so that no sequence is a proper prefix of another.

    Raises:
        ValueError: empty catalogue, empty sequence, or a sequence that is a prefix of another one.
    """
    if not items or min(map(len, items)) == 0:
        raise ValueError("a catalogue needs at least one item, and every item at least one token")
    tokens_LT, leaf_of_item_I = torch.unique(_pad(items), dim=0, return_inverse=True)
    n_leaves, max_length = tokens_LT.shape

    # A row opens a new node at depth t where its first t + 1 tokens differ from the row before.
    differs_LT = torch.ones_like(tokens_LT, dtype=torch.bool)
    differs_LT[1:] = (tokens_LT[1:] != tokens_LT[:-1]).cumsum(1) > 0
    opens_LT = differs_LT & (tokens_LT >= 0)

    node_L = torch.zeros(n_leaves, dtype=torch.int64)  # node reached so far by each leaf's prefix
    n_nodes, parents, tokens = 1, [torch.tensor([-1])], []
    for t in range(max_length):
        opens_L, alive_L = opens_LT[:, t], tokens_LT[:, t] >= 0
        parents.append(node_L[opens_L])
        tokens.append(tokens_LT[opens_L, t])
        node_L = torch.where(alive_L, n_nodes - 1 + opens_L.cumsum(0), node_L)
        n_nodes += int(opens_L.sum())

    parent_N = torch.cat(parents)
    n_children = torch.bincount(parent_N[1:], minlength=n_nodes)
    leaf_of_node_N = torch.full((n_nodes,), -1)
    leaf_of_node_N[node_L] = torch.arange(n_leaves)
    if int((n_children == 0).sum()) != n_leaves or bool((n_children[node_L] > 0).any()):
        raise ValueError(
            "an item's tokens are a prefix of another item's: every item must end in EOS"
        )
    return Trie(
        edge_start_N1=_starts(n_children),
        edge_token_E=torch.cat(tokens).int(),
        parent_N=parent_N.int(),
        leaf_of_node_N=leaf_of_node_N.int(),
        node_of_leaf_L=node_L.int(),
        leaf_of_item_I=leaf_of_item_I.int(),
        item_start_L1=_starts(torch.bincount(leaf_of_item_I, minlength=n_leaves)),
        item_order_I=torch.argsort(leaf_of_item_I, stable=True).int(),
        max_length=max_length,
    )


def paths(trie: Trie, leaf_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes and tokens along the way to each leaf.

    Returns:
        node_BT: int64, the node at which token t is chosen (root first), -1 past the end.
        token_BT: int64, the token chosen there, -1 past the end; the last one is EOS.
        length_B: int64, number of tokens.
    """
    node_B = trie.node_of_leaf_L[leaf_B.long()].long()
    upward = [node_B]
    while bool((node_B > ROOT).any()):
        node_B = torch.where(node_B > ROOT, trie.parent_N[node_B.clamp_min(0)].long(), -1)
        upward.append(node_B)
    up_UB = torch.stack(upward)  # leaf first; -1 above the root
    length_B = (up_UB > ROOT).sum(0)
    t_T = torch.arange(len(upward) - 1, device=leaf_B.device)
    inside_BT = t_T < length_B[:, None]
    steps_up_BT = (length_B[:, None] - t_T).clamp_min(0)
    node_BT = torch.where(inside_BT, up_UB.T.gather(1, steps_up_BT), -1)
    child_BT = up_UB.T.gather(1, (steps_up_BT - 1).clamp_min(0))
    token_BT = torch.where(inside_BT, trie.edge_token_E[(child_BT - 1).clamp_min(0)].long(), -1)
    return node_BT, token_BT, length_B


def edges_of(trie: Trie, node_N: Tensor) -> tuple[Tensor, Tensor]:
    """All edges that leave the given nodes, concatenated in the order of the nodes.

    Returns:
        edge_C: int64 edge numbers (its token: ``edge_token_E[edge]``, its child: ``edge + 1``).
        owner_C: int64, index into ``node_N`` of the node that each edge leaves.
    """
    at_N = node_N.long()
    start_N = trie.edge_start_N1[at_N].long()
    count_N = trie.edge_start_N1[at_N + 1].long() - start_N
    owner_C = torch.repeat_interleave(count_N)
    first_N = count_N.cumsum(0) - count_N
    edge_C = torch.arange(len(owner_C), device=at_N.device) + (start_N - first_N)[owner_C]
    return edge_C, owner_C


def widest_node(trie: Trie) -> int:
    """The node with the most legal tokens; of several, the shallowest, then the lowest number.

    As a rule the root, or the node behind an opening quote that is a token of its own.
    """
    fan_out_N = trie.edge_start_N1.diff()
    return int((fan_out_N == fan_out_N.max()).nonzero()[0])  # nodes are numbered breadth first


def tokens_to(trie: Trie, node: int) -> list[int]:
    """The tokens that lead from the root to a node."""
    tokens = []
    while node != ROOT:
        tokens.append(int(trie.edge_token_E[node - 1]))
        node = int(trie.parent_N[node])
    return tokens[::-1]


def items_below(trie: Trie, node: int) -> int:
    """Number of items whose token sequence passes a node, or ends there."""
    node_L = trie.node_of_leaf_L.long()
    passes_L = node_L == node
    while bool((node_L > node).any()):  # a child's number is larger than its parent's
        node_L = torch.where(node_L > node, trie.parent_N[node_L].long(), node_L)
        passes_L |= node_L == node
    return int(trie.item_start_L1.diff()[passes_L].sum())


def _pad(items: Sequence[Sequence[int]]) -> Tensor:
    length_I = torch.tensor([len(tokens) for tokens in items])
    padded_IT = torch.full((len(items), int(length_I.max())), -1, dtype=torch.int64)
    inside_IT = torch.arange(padded_IT.shape[1]) < length_I[:, None]
    tokens = array("q", itertools.chain.from_iterable(items))
    padded_IT[inside_IT] = torch.frombuffer(tokens, dtype=torch.int64)
    return padded_IT


def _starts(counts: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).int()


# Log-probabilities of a trie node's children, from the hidden state that reached it.
#
# Only legal columns of the output head are multiplied. The vocabulary-wide sum that mask = "after"
# needs is taken a block of columns at a time and never stored.
#
# Shape suffixes: P positions, D model width, V vocabulary, U columns, F children of a node
# (padded), C edges. Scores are fp32 whatever the model's type; -inf is padding.


NONE = -1
_LOGITS_AT_ONCE = 1 << 24  # elements of one logit block: 64 MB in fp32
_GATHER_COST = 64  # one gathered multiply-add costs about as much as this many inside a gemm


@dataclass(frozen=True, slots=True)
class Scorer:
    """What turns a hidden state at a trie node into log-probabilities of the node's children."""

    trie: Trie
    weight_VD: Tensor
    bias_V: Tensor | None
    temperature: float  # > 0
    over_vocab: bool  # normalise over the vocabulary (mask "after"), not over legal tokens


def child_log_probs(scorer: Scorer, hidden_PD: Tensor, node_P: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the legal tokens at each node (docs/evaluation.md).

    Returns:
        log_prob_PF: fp32, at most 0, -inf past a node's last child.
        child_PF: int64 trie node behind each token, in ascending token order, NONE past the end.
    """
    trie = scorer.trie
    count_P = trie.fan_out(node_P).long()
    widest = int(count_P.max()) if len(count_P) > 0 else 0
    place_F = torch.arange(widest, device=node_P.device)
    legal_PF = place_F < count_P[:, None]
    edge_PF = trie.edge_start_N1[node_P].long()[:, None] + place_F
    child_PF = torch.where(legal_PF, edge_PF + 1, NONE)
    log_prob_PF = torch.full(legal_PF.shape, -torch.inf, device=node_P.device)
    log_prob_PF[:, :1] = 0.0  # a forced token has probability 1 among the legal ones
    asked_P = (count_P > 1) | scorer.over_vocab
    if bool(asked_P.any()):
        asked = (hidden_PD[asked_P], node_P[asked_P], edge_PF[asked_P], legal_PF[asked_P])
        logits_PF = _child_logits(scorer, *asked)
        total_P = vocab_logsumexp(scorer, asked[0]) if scorer.over_vocab else logits_PF.logsumexp(1)
        # Rounding may leave 1e-7 above 0; "scores only fall" must hold to the last bit.
        log_prob_PF[asked_P] = (logits_PF - total_P[:, None]).clamp_max(0)
    return log_prob_PF, child_PF


def forced_log_probs(scorer: Scorer, hidden_PD: Tensor, node_P: Tensor) -> Tensor:
    """Log-probability (mask "after") of the only legal token at each node; fp32, at most 0."""
    token_P = scorer.trie.edge_token_E[scorer.trie.edge_start_N1[node_P].long()].long()
    logits_P = _dot(scorer, hidden_PD, token_P)
    return (logits_P - vocab_logsumexp(scorer, hidden_PD)).clamp_max(0)


def vocab_logsumexp(scorer: Scorer, hidden_PD: Tensor) -> Tensor:
    """log sum_v exp(z_v / temperature) over the whole vocabulary, a block of columns at a time."""
    step = max(1, _LOGITS_AT_ONCE // len(hidden_PD))
    hidden_PD = hidden_PD.float() / scorer.temperature
    blocks = []
    for at in range(0, len(scorer.weight_VD), step):
        logits_PU = hidden_PD @ scorer.weight_VD[at : at + step].float().T
        if scorer.bias_V is not None:
            logits_PU += scorer.bias_V[at : at + step].float() / scorer.temperature
        blocks.append(logits_PU.logsumexp(1))
    return torch.stack(blocks).logsumexp(0)


def _child_logits(
    scorer: Scorer, hidden_PD: Tensor, node_P: Tensor, edge_PF: Tensor, legal_PF: Tensor
) -> Tensor:
    """Logits / temperature of the children, -inf elsewhere; never a vocabulary-wide block."""
    trie = scorer.trie
    distinct_N: Tensor = torch.unique(node_P)
    edges, _ = edges_of(trie, distinct_N)
    column_U: Tensor = torch.unique(trie.edge_token_E[edges].long())
    logits_PF = torch.full(edge_PF.shape, -torch.inf, device=hidden_PD.device)
    if int(legal_PF.sum()) * _GATHER_COST < len(node_P) * len(column_U):
        # Few children each: a dot product per edge beats a gemm over the union of columns.
        token_C = trie.edge_token_E[edge_PF[legal_PF]].long()
        logits_PF[legal_PF] = _dot(scorer, hidden_PD[legal_PF.nonzero()[:, 0]], token_C)
        return logits_PF
    token_PF = trie.edge_token_E[torch.where(legal_PF, edge_PF, 0)].long()
    place_PF = torch.searchsorted(column_U, token_PF).clamp_max(len(column_U) - 1)
    weight_UD = scorer.weight_VD[column_U].float() / scorer.temperature
    bias_U = None
    if scorer.bias_V is not None:
        bias_U = scorer.bias_V[column_U].float() / scorer.temperature
    step = max(1, _LOGITS_AT_ONCE // len(column_U))
    for at in range(0, len(node_P), step):
        rows = slice(at, at + step)
        logits_RU = torch.nn.functional.linear(hidden_PD[rows].float(), weight_UD, bias_U)
        logits_PF[rows] = logits_RU.gather(1, place_PF[rows])
    return logits_PF.masked_fill_(~legal_PF, -torch.inf)


def _dot(scorer: Scorer, hidden_CD: Tensor, token_C: Tensor) -> Tensor:
    """Logit / temperature of one token per row, in blocks of bounded size."""
    step = max(1, _LOGITS_AT_ONCE // hidden_CD.shape[1])
    blocks = [
        torch.linalg.vecdot(hidden_CD[at : at + step].float(), scorer.weight_VD[rows].float())
        for at in range(0, len(token_C), step)
        for rows in [token_C[at : at + step]]
    ]
    logits_C = torch.cat(blocks)
    if scorer.bias_V is not None:
        logits_C += scorer.bias_V[token_C].float()
    return logits_C / scorer.temperature


# Item probabilities laid over the trie: the mass of a node is the sum over the items below it.
#
# Leaves are numbered in trie order, so the leaves below a node are a range, and one cumulative sum
# over the leaves gives the mass of every node as a difference (ILRec step 6, our numbering).
#
# Shape suffixes: A answers (one probability row each), F leaves, N trie nodes.


@dataclass(frozen=True, slots=True)
class LeafMass:
    """Cumulative leaf probabilities of each answer, and the leaf range of each node."""

    cumulative_AF1: Tensor  # float64: probability of the first f leaves, 0 at f = 0
    first_N: Tensor  # int64: the leaves below node n are first_N[n] .. end_N[n] - 1
    end_N: Tensor

    def of_nodes(self, answer: Tensor, node: Tensor) -> Tensor:
        """Mass of ``node`` in the row of ``answer``: float64, in the tensors' common shape."""
        row = self.cumulative_AF1
        width = row.shape[1]
        flat = row.reshape(-1)
        start = answer * width
        mass: Tensor = flat[start + self.end_N[node]] - flat[start + self.first_N[node]]
        return mass.clamp_min(0)  # a parallel sum may fall by a rounding error

    def to(self, device: torch.device) -> LeafMass:
        """The same, with its arrays on ``device``."""
        arrays = (self.cumulative_AF1, self.first_N, self.end_N)
        return LeafMass(*(x.to(device, non_blocking=True) for x in arrays))


def leaf_ranges(trie: Trie) -> tuple[Tensor, Tensor]:
    """``first_N, end_N``: the leaves below node n are ``first_N[n] .. end_N[n] - 1``.

    Nodes are numbered breadth first and leaves in trie order, so every leaf hands its number up:
    one minimum and one count per level of the trie.
    """
    first_N = torch.full((trie.n_nodes,), trie.n_leaves, device=trie.device)
    count_N = torch.zeros_like(first_N)
    leaf_L = torch.arange(trie.n_leaves, device=trie.device)
    node_L = trie.node_of_leaf_L.long()
    while True:
        first_N.scatter_reduce_(0, node_L, leaf_L, "amin")
        count_N.scatter_add_(0, node_L, torch.ones_like(node_L))
        below_L = node_L != ROOT
        if not bool(below_L.any()):
            return first_N, first_N + count_N
        node_L, leaf_L = trie.parent_N[node_L[below_L]].long(), leaf_L[below_L]


def leaf_mass(probability_AF: Tensor, ranges: tuple[Tensor, Tensor]) -> LeafMass:
    """Lay leaf probabilities over the trie.

    Args:
        probability_AF: non-negative, in leaf order; rows need not sum to 1.
        ranges: from ``leaf_ranges`` of the same trie, on the same device.
    """
    cumulative_AF = probability_AF.double().cumsum(1)
    return LeafMass(torch.nn.functional.pad(cumulative_AF, (1, 0)), *ranges)
