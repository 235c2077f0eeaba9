"""What a method needs besides its rows, served to the training loop.

    rows of an update -> negatives (drawn, or mined from the model) -> reference log-probabilities

``Supply()`` adds nothing; ``make_supply`` builds what a method's ``Needs`` ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llmrec_cli.engine.collate import Masses, MicroBatch
from llmrec_cli.engine.mining import Miner
from llmrec_cli.engine.negatives import NegativeSampler
from llmrec_cli.engine.reference import Reference, with_reference
from llmrec_cli.engine.rows import AnyRow, Row

Serve = Callable[[Sequence[AnyRow], int], list[AnyRow]]


def _as_they_are(rows: Sequence[AnyRow], step: int) -> list[AnyRow]:
    return list(rows)


@dataclass(frozen=True)
class Supply:
    """Serves the needs of a method.

    ``train(rows, step)`` and ``valid(rows, step)`` complete the rows of an update; ``layers`` are
    the hidden states wanted before the last.
    """

    train: Serve = _as_they_are
    valid: Serve = _as_they_are
    train_masses: Masses | None = None
    valid_masses: Masses | None = None
    reference: Reference | None = None
    layers: int = 0
    preferences: bool = False

    def complete(self, micro: MicroBatch) -> MicroBatch:
        """Add the reference's log-probabilities where the rows did not bring them along."""
        preferences = micro.batch.preferences
        if self.reference is None or preferences is None or preferences.reference_A is not None:
            return micro
        return with_reference(micro, self.reference.log_probs(micro))


@dataclass(frozen=True)
class Pairs:
    """The rank-pair task: training and validation rows become pair rows."""

    train: Serve
    valid: Serve


@dataclass(frozen=True)
class DrawnNegatives:
    """Completes catalogue rows with negatives: a pure function of rows, step and what is mined."""

    sampler: NegativeSampler
    miner: Miner | None
    rows_at: Callable[[int], Sequence[Row]]  # the global batch of an update
    steps_per_epoch: int

    def __call__(self, rows: Sequence[AnyRow], step: int) -> list[AnyRow]:
        catalogue_rows = [row for row in rows if isinstance(row, Row)]
        mined = self.miner.lists(catalogue_rows, step) if self.miner else {}
        others = self._targets(step) if self.sampler.wanted.draw == "in-batch" else {}
        completed: list[AnyRow] = []
        for row in catalogue_rows:
            negatives = self.sampler(
                row,
                step // self.steps_per_epoch,
                others=[
                    leaf for number, own in others.items() if number != row.number for leaf in own
                ],
                mined=mined.get(row.number, ()),
            )
            completed.append(replace(row, negatives=negatives))
        return completed

    def _targets(self, step: int) -> dict[int, list[int]]:
        """Target leaves of every row of the global batch."""
        leaf_of_item_I = self.sampler.leaves.leaf_of_item_I
        return {
            row.number: [int(leaf_of_item_I[item]) for item in row.targets]
            for row in self.rows_at(step)
        }
