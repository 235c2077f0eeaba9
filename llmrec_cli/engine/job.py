"""What one training run works on, and where it stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec

from llmrec_cli.engine.batches import Limits
from llmrec_cli.engine.collate import Collator, Masses
from llmrec_cli.engine.ranks import Ranks
from llmrec_cli.engine.rows import AnyRow
from llmrec_cli.engine.supply import Supply
from llmrec_cli.engine.trackers import Trackers
from llmrec_cli.errors import ArtefactError
from llmrec_cli.methods.contract import Method
from llmrec_cli.progress import Progress
from llmrec_cli.recipe.train import TrainSection
from llmrec_cli.tensors.trie import Trie

Validate = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class Job:
    """Everything that one training run needs."""

    policy: Any  # called like models.policy.Policy, with a head() of its own
    method: Method
    options: Any
    trie: Trie
    train_rows: Sequence[AnyRow]
    valid_rows: Sequence[AnyRow]
    rank_valid: Validate  # ranking metrics on validation rows, e.g. {"ndcg@10": ...}
    section: TrainSection
    seed: int
    folder: Path
    ranks: Ranks
    progress: Progress
    label: str = "train"
    supply: Supply = field(default_factory=Supply)  # what the method needs besides rows
    trackers: Trackers = field(default_factory=Trackers)  # get the rows of metrics.jsonl too

    @property
    def steps(self) -> int:
        """Number of updates of the whole run."""
        return updates(len(self.train_rows), self.section)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.train_rows) // self.section.batch)

    @property
    def limits(self) -> Limits:
        """What one forward pass holds at most."""
        return limits_of(self.section)

    def collator(self, masses: Masses | None) -> Collator:
        """Rows to micro-batches, as the method needs them."""
        return Collator(
            self.trie,
            cut_forced=self.method.legal_only(self.options),
            dense_head=self.ranks.count > 1,
            masses=masses,
            rejected=self.supply.preferences,
        )


def updates(n_rows: int, section: TrainSection) -> int:
    """Number of updates of a whole run over ``n_rows`` training rows."""
    wanted = math.ceil(section.epochs * -(-n_rows // section.batch))
    return min(wanted, section.max_steps or wanted)


def limits_of(section: TrainSection) -> Limits:
    """What one forward pass of a stage holds at most."""
    return Limits(section.micro_batch, section.micro_tokens)


@dataclass
class Position:
    """Where a run stands; written into every checkpoint."""

    step: int = 0  # updates done
    method: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    best_score: float | None = None  # higher is better
    worse: int = 0  # validations since the best one
    stopped: bool = False  # by patience
    warned_at: int | None = None  # first update whose metrics the method warned about
    skipped: int = 0  # updates whose loss or gradient was not finite

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


def position_in(checkpoint: Path, state: Mapping[str, Any]) -> Position:
    """The position that a checkpoint holds; one of an older llmrec holds less.

    Raises:
        ArtefactError: it holds something else.
    """
    try:
        unknown = sorted(set(state) - {known.name for known in fields(Position)})
        if unknown:
            problem = f"{unknown[0]} is unknown"
        else:
            position = msgspec.convert(state, Position)
            if checkpoint.name == f"step-{position.step}":
                return position
            problem = f"it has step {position.step}"
    except (msgspec.ValidationError, TypeError) as error:
        problem = str(error)
    raise ArtefactError(f"{checkpoint}: no position of a run: {problem}")
