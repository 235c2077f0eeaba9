"""What an audit's counts mean: a verdict per check, in words that say why it matters.

Pure: the figures come from a prepared folder's manifest (``data/audit.py``), and further ones,
where they were measured, from ``data/leakage.py`` and from whoever scored Pop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrec_cli.data.columns import CUT_ROWS
from llmrec_cli.data.leakage import Measured
from llmrec_cli.data.verdicts.identity import items_without_a_name, shared_identity
from llmrec_cli.data.verdicts.popularity import PopScores, concentration, score_of_pop
from llmrec_cli.data.verdicts.rows import (
    cut_histories,
    rows_in_two_splits,
    rows_left_out,
    targets_in_history,
    trained_pairs,
    unseen_targets,
    users_on_both_sides,
)
from llmrec_cli.data.verdicts.times import later_training, ties
from llmrec_cli.data.verdicts.verdict import Level, Verdict, raised

__all__ = ["Level", "PopScores", "Verdict", "raised", "verdicts"]


def verdicts(
    manifest: Mapping[str, Any], measured: Measured | None = None, pop: PopScores | None = None
) -> tuple[Verdict, ...]:
    """A verdict per check, in a fixed order; one that cannot be made says so.

    Args:
        manifest: of a prepared folder, with its ``audit`` whole (``leakage.recorded``).
        measured: what the split files tell beyond it; None: without those sentences.
        pop: scores of the Pop baseline; None: without that verdict.
    """
    audit, data = manifest["audit"], manifest["data"]
    found = [
        items_without_a_name(manifest["catalogue"], data),
        shared_identity(audit, data, measured),
        targets_in_history(audit["targets in their own history"]),
        unseen_targets(audit["test targets never seen in training"], data, measured),
        users_on_both_sides(audit["users in several splits"], data),
        rows_in_two_splits(audit["rows that stand in two splits"]),
        ties(audit["interactions that tie in time"], data, measured),
        later_training(audit["training rows later than the earliest test row"], data, measured),
        concentration(audit["popularity in training"]),
    ]
    if data["split"] == "given":
        found.append(rows_left_out(manifest["cleaning"], data))
    if all(CUT_ROWS in counts for counts in manifest["splits"].values()):  # older ones lack it
        found.append(cut_histories(manifest["splits"], data))
    if "test pairs that are trained on" in audit:
        found.append(trained_pairs(audit["test pairs that are trained on"]))
    if pop is not None:
        found.append(score_of_pop(pop, audit["items that share a title or tokens"]))
    return tuple(found)
