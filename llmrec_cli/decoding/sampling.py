"""Draws without replacement from a language model's distribution over the catalogue.

Gumbel top k (arXiv:1903.06059): add independent Gumbel noise to the log-probability of every leaf.
The k leaves with the highest sums are k draws without replacement, in the order drawn.  The noise
is drawn top down: a node's sum is the highest one of the leaves below it, and its children's are
drawn given that the highest of them is their parent's.  So sums only fall on the way down, and
best-first search finds the k highest leaves without a look at most of the others.

The noise of a node depends on a user's key and the node's number alone: the draw is the same in
any batch and any order of the search, up to the last bits of the model's log-probabilities.

Shape suffixes: B users, X prefixes, F children of a prefix (padded), C = X x F candidates, M
leaves and branching nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmrec_cli.decoding.guide import lay_out_nodes
from llmrec_cli.tensors.beam_search import NONE
from llmrec_cli.tensors.trie import Trie

_STEP = 0x9E3779B97F4A7C15 - 2**64  # splitmix64's constants, as signed numbers
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


class GumbelNoise:
    """The noise of a batch of users, and the log-probabilities of the nodes that were reached.

    Args:
        keys: of each user's draw, 0 <= key < 2**63.
    """

    def __init__(self, trie: Trie, keys: Sequence[int]) -> None:
        layout = lay_out_nodes(trie)
        self._place_N = layout.place_N  # a forced chain's nodes share one place
        self._key_B = torch.tensor(list(keys), dtype=torch.int64, device=trie.device)
        n_places = trie.n_leaves + layout.n_branching
        self._log_prob_BM = torch.zeros((len(keys), n_places), device=trie.device)

    def draw(self, row_B: Tensor, node_BX: Tensor) -> Tensor:
        """Independent standard Gumbel variables, float64, one for each user and node."""
        return draw_gumbels(self._key_B[row_B][:, None], node_BX)

    def find_log_probs(self, row_B: Tensor, node_BX: Tensor) -> Tensor:
        """Log-probabilities of nodes that ``perturb`` was given; 0 at the start of a search."""
        place_BX = self._place_N[node_BX.clamp_min(0)].long()
        return self._log_prob_BM[row_B[:, None], place_BX]

    def perturb(
        self, row_B: Tensor, node_BC: Tensor, log_prob_BC: Tensor, parent_BX: Tensor
    ) -> Tensor:
        """The sums of all children, given those of their parents.

        Args:
            row_B: which user of the batch each row is.
            node_BC: the children, NONE at padding.
            log_prob_BC: theirs, nats; they are remembered.
            parent_BX: sums of the X parents, whose children follow each other.

        Returns:
            score_BC, fp32, at most the parent's; -inf at padding.
        """
        place_BC = self._place_N[node_BC.clamp_min(0)].long()
        real_BC = node_BC != NONE
        at_BC = row_B[:, None].expand_as(place_BC)
        self._log_prob_BM[at_BC[real_BC], place_BC[real_BC]] = log_prob_BC[real_BC]
        shape = (*parent_BX.shape, -1)
        free_BXF = log_prob_BC.double().view(shape) + self.draw(row_B, node_BC).view(shape)
        free_BXF = free_BXF.masked_fill(~real_BC.view(shape), -torch.inf)
        # In float64, and rounded to the parents' type: no child is lifted above its parent.
        score_BC = condition_on_maximum(free_BXF, parent_BX.double()).flatten(1).float()
        return score_BC.masked_fill(~real_BC | ~log_prob_BC.isfinite(), -torch.inf)


def condition_on_maximum(free: Tensor, maximum: Tensor) -> Tensor:
    """Independent Gumbel variables, changed so that the highest of each group is ``maximum``.

    Given the maximum, they are distributed as they would be if it had come about by chance
    (arXiv:1903.06059, appendix B.3).

    Args:
        free: [..., F], float64, -inf at padding.
        maximum: [...].
    """
    highest = free.amax(-1, keepdim=True)
    maximum = maximum.unsqueeze(-1)
    v = maximum - free + torch.log1p(-(free - highest).exp())
    found: Tensor = maximum - v.clamp_min(0) - torch.log1p((-v.abs()).exp())
    return found


def draw_gumbels(key: Tensor, number: Tensor) -> Tensor:
    """A standard Gumbel variable, float64, that depends on ``key`` and ``number`` alone.

    Args:
        key, number: int64, of shapes that go together.
    """
    mixed = _mix(_mix(key) + number * _STEP)
    uniform = (_shift(mixed, 11).double() + 0.5) * 2.0**-53  # in (0, 1)
    return -(-uniform.log()).log()


def _mix(number: Tensor) -> Tensor:
    """splitmix64: every bit of the result depends on every bit of ``number``."""
    z = number + _STEP
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def _shift(number: Tensor, bits: int) -> Tensor:
    """Shift to the right, zeros coming in."""
    return (number >> bits) & ((1 << (64 - bits)) - 1)
