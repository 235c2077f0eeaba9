"""Forward passes: a policy and its method's loss as one module, and equally many on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmrec_cli.engine.batches import Limits
from llmrec_cli.engine.collate import MicroBatch
from llmrec_cli.engine.job import Job
from llmrec_cli.engine.rows import AnyRow
from llmrec_cli.methods.contract import Forward, State

Sums = dict[str, Tensor]
"""``total``, ``count`` and the method's statistics: float64 scalars, detached."""


class PolicyLoss(nn.Module):
    """A policy with its loss in its forward pass.

    Wrappers (data parallel, sharded) see every use of a weight that happens inside a forward pass;
    the output head, which the loss applies to chosen rows and columns, must be among them.

    Returns:
        total (a scalar with gradient), and its ``count`` and statistics by name.
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.policy = job.policy
        self._method, self._options = job.method, job.options
        self._layers = job.supply.layers

    def forward(self, micro: MicroBatch, state: State) -> tuple[Tensor, dict[str, Any]]:
        hidden_XPD = self.policy(
            micro.input_ids_BT, micro.take_P, tree=micro.tree, layers=self._layers
        )
        layers_LPD = hidden_XPD[1:] if self._layers else None
        forward = Forward(hidden_XPD[0], self.policy.head(), layers_LPD)
        losses = self._method.loss(forward, micro.batch, self._options, state)
        return losses.total, {"count": losses.count, **losses.stats}


def equally_many(
    job: Job, passes: Sequence[list[AnyRow]], spare: list[AnyRow]
) -> Iterator[tuple[list[AnyRow], bool, bool]]:
    """(rows, whether they count, whether it is the last one) of each forward pass.

    With a limit on tokens the ranks need different numbers of passes, but gradients are exchanged
    in the last one of all: a rank with fewer repeats one for nothing.

    Args:
        spare: rows for a rank that has none of its own.
    """
    number = len(passes) if job.limits == Limits() else job.ranks.most(len(passes))
    number = max(number, 1)
    for at in range(number):
        counts = at < len(passes)
        yield (passes[at] if counts else [*passes, spare][-1]), counts, at == number - 1


def add_sums(sums: Sums, total: Tensor, further: Mapping[str, Any], *, counts: bool = True) -> None:
    """Add one pass's figures to those of the passes before it.

    Args:
        counts: without, their names alone: every rank must have the same ones.
    """
    for name, value in {"total": total.detach(), **further}.items():
        added = torch.as_tensor(value if counts else 0.0, dtype=torch.float64, device=total.device)
        sums[name] = sums[name] + added if name in sums else added
