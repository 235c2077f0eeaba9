"""What a method is: a value that the training loop can run, the same for SFT and every alignment.

A method file defines one module-level ``METHOD = Method(...)``; the file name is the ``--method``
name.  Options are parsed without importing torch, so a method imports ``llmrec_cli.tensors`` inside
its functions.

Shape suffixes: P response positions of the whole micro-batch, R rows, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor

    from llmrec_cli.tensors.trie import Trie

State = Mapping[str, float]
"""What a method remembers between steps (e.g. a temperature): plain numbers, so that a checkpoint
is JSON and every rank holds the same values."""

Need = Literal["reference", "negatives", "hidden_states", "item_scores"]
"""What the engine must supply in the batch or the forward pass besides the policy's own output."""


class Options(BaseModel):
    """Base of every method's options: frozen, unknown keys refused, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Head:
    """The language-model head, as weights: it is applied to chosen rows and columns only."""

    weight_VD: Tensor
    bias_V: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Response positions of one micro-batch, flattened over its rows in row order.

    For a method that looks at legal tokens only, positions after the last branching one of a row
    are left out: they have one legal token, hence no loss.  ``positions`` counts them all the same.
    """

    trie: Trie
    target_P: Tensor  # int64 token id to be predicted
    node_P: Tensor  # int64 trie node at which it is chosen; its children are the legal tokens
    row_P: Tensor  # int64, 0..rows-1: the training row a position belongs to
    rows: int
    positions: int  # response positions of the whole rows, >= P
    dense_head: bool = False  # the head's gradient must go through autograd (DDP, sharded heads)


@dataclass(frozen=True)
class Forward:
    """What the policy computed at the response positions of a batch."""

    hidden_PD: Tensor  # last hidden state after the final norm, at the position before each target
    head: Head


@dataclass(frozen=True)
class LossSums:
    """A loss as a sum and a count; the loop divides once, by the global batch's count."""

    total: Tensor  # scalar with gradient, fp32
    count: int  # what the method divides by: positions, pairs or sequences
    stats: Mapping[str, Tensor | float] = field(default_factory=dict)
    """Further sums over the micro-batch (detached); the loop adds them over micro-batches and ranks
    before logging and before ``update_state``."""


@dataclass(frozen=True)
class Method:
    """One way to train: options, needs, a loss, and optionally a state.

    ``loss(forward, batch, options, state)`` is pure.  ``init_state(options, trie)`` gives the state
    before the first step (and raises ``UserError`` where the options cannot work on this
    catalogue); ``update_state(state, stats, options, trie)`` gives the next one from the statistics
    of a whole global batch, so that it is identical on every rank.
    ``metrics(stats, count)`` turns a global batch's statistics into what is logged.
    """

    summary: str  # one line for --help, with the paper
    options: type[Options]
    loss: Callable[[Forward, Batch, Any, State], LossSums]
    needs: frozenset[Need] = frozenset()
    legal_only: Callable[[Any], bool] = lambda options: False  # no loss at forced positions
    init_state: Callable[[Any, Trie], State] = lambda options, trie: {}
    update_state: Callable[[State, Mapping[str, float], Any, Trie], State] = (
        lambda state, stats, options, trie: state
    )
    metrics: Callable[[Mapping[str, float], float], dict[str, float]] = lambda stats, count: {}
