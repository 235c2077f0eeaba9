"""The interface of a conventional model: a value that training, eval and recommend use.

A file of this folder defines one module-level ``BASELINE = Baseline(...)``; the file name is the
model's.  Options are parsed without torch and numpy, so a file imports both inside its functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmrec_cli.methods.contract import Options

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrec_cli.data.catalog import CatalogueEntries
    from llmrec_cli.models.base import Ranker
    from llmrec_cli.models.sequential import Sequential

Arrays = Mapping[str, "NDArray[Any]"]
"""What a counted model stores, by name."""

Count = Callable[[Any, Sequence[Sequence[int]], int], Arrays]
"""(options, leaves of each user's training items, n_leaves) -> what is stored."""


@dataclass(frozen=True)
class Baseline:
    """One conventional model: counted (``load``), or trained by the training loop (``build``).

    ``count(options, users, n_leaves)`` counts over the leaves of each user's training items, and
    gives arrays to store.  ``load(options, arrays, leaves)`` makes a Ranker of them; without
    ``count`` nothing is stored, and the arrays are empty.
    ``build(options, n_leaves, longest)`` gives a model with random weights, which reads sequences
    of at most ``longest`` places, the beginning included.
    """

    summary: str  # one line, with the paper
    options: type[Options]
    load: Callable[[Any, Arrays, CatalogueEntries], Ranker] | None = None
    count: Count | None = None
    build: Callable[[Any, int, int], Sequential] | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    """How it trains where that differs from all trained ones (``config.training.OWN_TRAIN``)."""

    def __post_init__(self) -> None:
        if (self.load is None) == (self.build is None):
            raise ValueError(f"{self.summary}: expected one of load and build")

    @property
    def is_trained(self) -> bool:
        """Whether the training loop trains it; else it is counted, or there is nothing to do."""
        return self.build is not None
