"""What a comparison asks of its entries."""

from __future__ import annotations

from dataclasses import dataclass

from llmrec_cli.report.comparison import Policy
from llmrec_cli.report.metrics import metric_names
from llmrec_cli.report.pairs import METRICS, POOLED


@dataclass(frozen=True)
class Question:
    """What is asked of entries of one task on one split."""

    split: str
    policies: tuple[Policy, ...]
    headline: Policy
    cutoffs: tuple[int, ...]  # of metrics per row; empty: the rank-pair task
    compared: str  # metric whose contrast tables show
    baseline: str | None  # name of an entry; None: no contrasts, the first one sets the protocol
    resamples: int
    seed: int

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics, in order."""
        return tuple(metric_names(self.cutoffs)) if self.cutoffs else METRICS

    @property
    def averaged(self) -> tuple[str, ...]:
        """The metrics that are a mean over rows or users."""
        return tuple(name for name in self.metrics if name != POOLED)
