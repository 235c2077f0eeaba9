"""``report.json``: one run's figures, with the protocol that they hold for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import pandas as pd

from llmrec_cli.data.columns import BEAM_DIFFERS
from llmrec_cli.data.leaves import Leaves
from llmrec_cli.report.lists import Seen, repeats
from llmrec_cli.report.metrics import Short, beyond_accuracy, metric_names, score_rows
from llmrec_cli.report.statistics import bootstrap_means, n_users

SEEN: Final[tuple[Seen, ...]] = ("keep", "remove")

DEFINITIONS: Final = {
    "rank": "place of the target among the list's distinct catalogue entries, from 1",
    "hr@K": "1 if rank <= K",
    "ndcg@K": "1 / log2(rank + 1) if rank <= K",
    "mrr@K": "1 / rank if rank <= K, K the largest cut-off",
    "low, high": "95 % percentile bootstrap over users (a user with all of his or her rows)",
    "seen": "keep: the row's history stays among the candidates; remove: it is dropped, except "
    "for the target's own entry",
    "repeats": "rows whose target's entry stands in their own history; `remove` keeps it a "
    "candidate and drops its rivals, so these rows get easier",
    "coverage": "share of catalogue entries in at least one list of the largest K",
    "gini": "inequality of how often each catalogue entry is recommended, 0 equal .. 1",
    "popularity": "mean training interactions of a recommended entry",
    "long_tail": "share of recommendations outside the most popular 20 % of entries",
    "short": "lists with fewer than the largest K entries although candidates were left",
}


@dataclass(frozen=True, slots=True)
class Protocol:
    """What a figure depends on; two runs compare only where all but the decoder agree."""

    split: str  # "valid" or "test"
    seen: Seen  # the headline
    cutoffs: tuple[int, ...]
    candidates: str  # e.g. "whole catalogue"
    decoder: Mapping[str, Any]  # search, mask, temperature, ...
    hashes: Mapping[str, str]  # "data" (compared between runs), "model", "catalogue", ...


def build_report(
    predictions: Mapping[Seen, pd.DataFrame],
    leaves: Leaves,
    protocol: Protocol,
    resamples: int = 2000,
    seed: int = 0,
    short: Short = "refuse",
) -> dict[str, Any]:
    """Figures with history kept and with history removed, ready for ``json.dump``.

    Args:
        predictions: the frame to score under each policy.  One frame may serve both if its lists
            are deep enough (``models.base.Ranker.rank``); a beam that searched without the history
            gives its own frame for ``remove``.
        leaves: the catalogue's distinct entries.
        protocol: stored as it is; its cut-offs are scored.
        resamples, seed: of the bootstrap.
        short: see ``score_rows``.

    Returns:
        ``rows, users, repeats, items, entries, protocol, keep, remove, bootstrap, definitions``;
        ``keep`` and ``remove`` hold ``metrics`` (mean, low, high; null: unknown) and ``lists``.

    Raises:
        ArtefactError: see ``score_rows``.
    """
    report: dict[str, Any] = {
        "rows": len(predictions[protocol.seen]),
        "users": n_users(predictions[protocol.seen]),
        "repeats": int(repeats(predictions[protocol.seen], leaves).sum()),
        "items": leaves.n_items,
        "entries": leaves.n_leaves,
        "protocol": asdict(protocol),
        "bootstrap": {"resamples": resamples, "seed": seed},
    }
    for seen in SEEN:
        frame, depth = predictions[seen], max(protocol.cutoffs)
        rows = score_rows(frame, leaves, protocol.cutoffs, seen, short)
        intervals = bootstrap_means(rows, metric_names(protocol.cutoffs), resamples, seed)
        report[seen] = {
            "metrics": {name: asdict(interval) for name, interval in intervals.items()},
            "lists": asdict(beyond_accuracy(frame, leaves, depth, seen)),
        }
        if BEAM_DIFFERS in frame.columns:
            differs = int(frame[BEAM_DIFFERS].sum())
            report[seen]["beam_error"] = {"rows": differs, "share": differs / len(frame)}
    plain: dict[str, Any] = jsonable({**report, "definitions": dict(DEFINITIONS)})
    return plain


def jsonable(value: Any) -> Any:
    """Nested values as JSON knows them: lists for tuples, null for NaN and infinity.

    Keys stay strings; anything else that JSON lacks is left for ``json.dump`` to refuse.
    """
    if isinstance(value, Mapping):
        return {key: jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
