"""The interface of a method: a value that the training loop runs, for SFT and alignments.

A method file defines one module-level ``METHOD = Method(...)``; the file name is the ``--method``
name.  Options are parsed without importing torch, so a method imports ``llmrec_cli.tensors`` inside
its functions.  The number of an equation is its paper's; *steps* are ours, those of docs/methods.

Shape suffixes: P response positions of the whole micro-batch, A answers, G groups of answers, K
rejected answers or rollouts of a group, R rows, D model width, V vocabulary, L layers, N trie
nodes, F leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor

    from llmrec_cli.tensors.trie import LeafMass, Trie

State = Mapping[str, float]
"""What a method remembers between steps (e.g. a temperature): plain numbers, so that a checkpoint
is JSON and every rank holds the same values."""

Spell = Callable[[Sequence[int]], str]
"""Token ids as text."""


@dataclass(frozen=True)
class Negatives:
    """How many rejected answers every target gets, and where they come from.

    None is ever the target's own entry, or an entry of the user's history.
    """

    k: int  # rejected answers of each target, >= 1
    draw: Literal["uniform", "popularity", "in-batch", "disliked", "model"]
    pool: int = 20  # model: drawn from its first ``pool`` wrong entries
    refresh: int = 0  # model: updates after which the policy itself is asked again; 0: the parent
    below: float = 4.0  # disliked: targets rated under this, where the data record no dislikes
    short: Literal["error", "drop"] = "error"  # a target with fewer than k possible negatives


@dataclass(frozen=True)
class Rollouts:
    """Entries that the policy itself names for every target, anew at every update.

    ``top``: its first k in order; ``sampled``: k drawn without replacement from its distribution
    over the catalogue, in the order drawn.  They take the target's place among the answers.
    """

    k: int  # of each target, >= 1
    draw: Literal["top", "sampled"]
    support: Literal["vocab", "legal"] = "legal"  # softmax that ranks them; sampled: legal
    seen: Literal["keep", "remove"] = "keep"  # whether history entries may be named


@dataclass(frozen=True)
class ItemScores:
    """Catalogue probabilities of a finished conventional model, for every target's own history."""

    model: str  # name of the ``[baseline.NAME]`` run
    history: Literal["keep", "zero"] = "keep"  # whether entries of the history keep their mass


@dataclass(frozen=True)
class ReferenceModel:
    """The model whose log-probabilities are ``Batch.reference``.

    It begins as the parent.  ``moves = n``: before every update that n divides, it takes the
    weights that the policy has then.  Validation compares with the parent all the same, so that its
    loss measures one thing throughout a run.
    """

    computed: Literal["precompute", "online"] = "online"  # once, before training; at every update
    moves: int = 0  # updates between two moves; 0: it stays the parent

    def __post_init__(self) -> None:
        if self.moves and self.computed == "precompute":
            raise ValueError("a reference that moves cannot be precomputed")


@dataclass(frozen=True)
class Needs:
    """What the engine must supply besides the policy's last hidden states."""

    reference: ReferenceModel | None = None  # log pi_ref: ``Batch.reference``
    negatives: Negatives | None = None  # ``Batch.preferences``
    rollouts: Rollouts | None = None  # ``Batch.rollouts``; no negatives; a reference stays, online
    hidden_states: int = 0  # how many layers before the last: ``Forward.layers_LPD``
    item_scores: ItemScores | None = None

    @property
    def answers(self) -> int:
        """Answers that are laid out for each target."""
        if self.rollouts is not None:
            return self.rollouts.k
        return 1 if self.negatives is None else 1 + self.negatives.k

    @property
    def packs(self) -> bool:
        """Whether several answers follow one prompt."""
        return self.negatives is not None or self.rollouts is not None


class Options(BaseModel):
    """Base of every method's options: frozen, unknown keys refused, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Head:
    """The language-model head, as weights: it is applied to chosen rows and columns only."""

    weight_VD: Tensor
    bias_V: Tensor | None = None


@dataclass(frozen=True)
class Preferences:
    """Which answers are preferred over which; answers are numbered as in ``Batch.answer_P``.

    With C = 1 all rejected answers of a group share one chosen answer (they follow one prompt);
    with C = K each has its own (the rank-pair task: every negative has its own prompt).
    """

    chosen_GC: Tensor  # int64 answer numbers
    rejected_GK: Tensor  # int64 answer numbers


@dataclass(frozen=True)
class RolloutGroups:
    """The policy's own answers to each prompt, numbered as in ``Batch.answer_P``."""

    answer_GK: Tensor  # int64 answer numbers, best first, or in the order drawn
    hit_GK: Tensor  # bool: the target's entry, at most one of a group


@dataclass(frozen=True)
class Batch:
    """Response positions of one micro-batch, flattened over its answers in row order.

    An answer is one item's tokens after one prompt.  For a method that looks at legal tokens only,
    positions after the last branching one of an answer are left out: they have one legal token,
    hence no loss.  ``positions`` and ``length_A`` count them all the same.
    """

    trie: Trie
    target_P: Tensor  # int64 token id to be predicted
    node_P: Tensor  # int64 trie node at which it is chosen; its children are the legal tokens
    answer_P: Tensor  # int64, 0..answers-1, never falling: the answer a position belongs to
    final_P: Tensor  # bool: the answer's last token (EOS) is predicted here
    length_A: Tensor  # int64: tokens of each whole answer, EOS included
    answers: int
    positions: int  # response positions of the whole answers, >= P
    dense_head: bool = False  # the head's gradient must go through autograd (DDP, sharded heads)
    preferences: Preferences | None = None  # with ``Needs.negatives``
    rollouts: RolloutGroups | None = None  # with ``Needs.rollouts``
    reference: Tensor | None = None  # ``Method.log_probs`` of the reference; ``Needs.reference``
    mass: LeafMass | None = None  # with ``Needs.item_scores``: one row per answer


@dataclass(frozen=True)
class Forward:
    """What the policy computed at the response positions of a batch."""

    hidden_PD: Tensor  # last hidden state after the final norm, at the position before each target
    head: Head
    layers_LPD: Tensor | None = None  # final norm of the n layers before the last, nearest first


@dataclass(frozen=True)
class LossSums:
    """A loss as a sum and a count; the loop divides once, by the global batch's count.

    The loop adds counts over micro-batches and ranks in float64, as it adds the sums.  So a mean
    with weights is exact however the batch is split: the sum of the weights is its count.
    """

    total: Tensor  # scalar with gradient, fp32
    count: int | Tensor  # what the method divides by, >= 0: positions, preference groups, or the
    # sum of weights (a detached float64 scalar); 0 only where there is no loss
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
    ``metrics(stats, count, options, trie)`` turns a global batch's statistics into what is logged
    beside the state, and ``warning(logged, options)`` says what in both is a reason to worry.
    ``describe(options, trie, spell)`` says in one line what the options mean on this catalogue.
    """

    summary: str  # one line for --help, with the paper
    options: type[Options]
    loss: Callable[[Forward, Batch, Any, State], LossSums]
    needs: Callable[[Any], Needs] = lambda options: Needs()
    legal_only: Callable[[Any], bool] = lambda options: False  # no loss at forced positions
    idle: Callable[[Any], Mapping[str, str]] = lambda options: {}
    """Options that play no part, given the others: field name -> why."""
    log_probs: Callable[[Forward, Batch, Any], Tensor] | None = None
    """``log pi``, nats: of each answer, [A], or of each position, [P].

    With ``Needs.reference`` the engine calls it on the reference model (``Batch.reference``), and
    ``loss`` on the policy."""
    measures: Callable[[Any], bool] = lambda options: True
    """Whether a lower validation loss is a better model, so that it may choose a checkpoint."""
    init_state: Callable[[Any, Trie], State] = lambda options, trie: {}
    update_state: Callable[[State, Mapping[str, float], Any, Trie], State] = (
        lambda state, stats, options, trie: state
    )
    metrics: Callable[[Mapping[str, float], float, Any, Trie], dict[str, float]] = (
        lambda stats, count, options, trie: {}
    )
    warning: Callable[[Mapping[str, float], Any], str | None] = lambda logged, options: None
    describe: Callable[[Any, Trie, Spell], str | None] = lambda options, trie, spell: None
