"""``python -m benchmarks.rows RECIPE [key=value ...]``: the kinds of training rows on real data.

The same (history, target) pairs of some users as one row per window, as user rows and, where the
template allows it, as sequences: forward and backward of MSL over all of them with the recipe's
backbone, in the recipe's micro-batches, timed in turn.  Windows and user rows must agree in loss
and gradient; sequences of users with more items than ``data.history`` see other stretches of the
history, so only their count of targets is checked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.table import median_seconds
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.methods import find_method
from llmrec_cli.methods.contract import Forward
from llmrec_cli.models.language_model import Policy
from llmrec_cli.pipeline.loading import load_policy
from llmrec_cli.pipeline.setup import CatalogueContext, open_context
from llmrec_cli.training.collator import Collator, Limits
from llmrec_cli.training.rows import Row, sequence_rows, user_rows, window_rows
from llmrec_cli.utils.progress import Lines

USERS, REPEATS = 500, 3
MSL = find_method("msl")


class Pass:
    """Forward and backward over all rows of one kind."""

    def __init__(self, context: CatalogueContext, policy: Policy, rows: Sequence[Row]) -> None:
        collate = Collator(context.trie, cut_forced=True)
        limits = Limits.of_section(context.recipe.sft.train)
        self.policy = policy
        self.targets = sum(len(row.targets) for row in rows)
        self.rows = len(rows)
        self.batches = [collate(part) for part in collate.split(rows, limits)]
        self.tokens = sum(micro.tokens for micro in self.batches)

    def __call__(self) -> torch.Tensor:
        """The summed loss and the gradient of the first layer's query weights, as one vector."""
        self.policy.zero_grad()
        total = torch.zeros(())
        for micro in self.batches:
            hidden_XPD = self.policy(micro.input_ids_BT, micro.take_P, tree=micro.tree)
            forward = Forward(hidden_XPD[0], self.policy.head())
            loss = MSL.loss(forward, micro.batch, MSL.options(), {}).total
            torch.autograd.backward(loss)
            total += loss.detach()
        weight = self.policy.model.model.layers[0].self_attn.q_proj.weight
        return torch.cat([total[None], weight.grad.flatten()])


def main(arguments: Sequence[str]) -> int:
    """Measure and print; returns 1 where windows and user rows disagree."""
    recipe = read_recipe(arguments[0], arguments[1:])
    context = open_context(recipe, Lines())
    frame = context.prepared.split("train")
    users = frame["user"].drop_duplicates()
    chosen = users.sample(min(USERS, len(users)), random_state=0)
    part = frame[frame["user"].isin(set(chosen))].reset_index(drop=True)
    policy = Policy(load_policy(context, None, train=True, dropout=False))
    kinds = {"window": window_rows(part, context.encoder), "user": user_rows(part, context.encoder)}
    if recipe.prompt.template == "sequence":
        kinds["sequence"] = sequence_rows(part, context.encoder, recipe.data.history)
    passes = {kind: Pass(context, policy, rows) for kind, rows in kinds.items()}
    windows, ours = passes["window"](), passes["user"]()
    agrees = bool((windows - ours).norm() <= 1e-4 * windows.norm())
    agrees &= len({each.targets for each in passes.values()}) == 1
    seconds = median_seconds(passes, REPEATS)
    table = Table(title=f"{recipe.name}: {len(chosen)} users, {len(part)} targets")
    for name in ("rows", "rows made", "tokens", "times fewer", "seconds", "times faster"):
        table.add_column(name)
    for kind, each in passes.items():
        fewer = passes["window"].tokens / each.tokens
        faster = seconds["window"] / seconds[kind]
        figures = (f"{each.rows:,}", f"{each.tokens:,}", f"{fewer:.2f}", f"{seconds[kind]:.2f}")
        table.add_row(kind, *figures, f"{faster:.2f}")
    Console().print(table)
    print("losses and gradients of windows and user rows", "agree" if agrees else "DIFFER")
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
