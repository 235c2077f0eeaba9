"""Verdicts on popularity: how unequal items are, and what popularity alone reaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from llmrec_cli.data.audit import Finding
from llmrec_cli.data.verdicts.verdict import Level, Verdict, percent

PopScores: TypeAlias = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Split -> ``keep`` or ``remove`` -> ``HR`` or ``NDCG`` -> mean over rows."""

CUTOFF: Final = 10
HR, NDCG = f"hr@{CUTOFF}", f"ndcg@{CUTOFF}"
HEAVY_HEAD = 0.2  # share of the training interactions: a head to know about


def concentration(found: Mapping[str, float]) -> Verdict:
    """How training interactions spread over items."""
    gini, top = found["gini"], found["share of the top 1 % of items"]
    text = (
        f"The most popular 1 % of the items hold {percent(top)} of the training interactions "
        f"(Gini {gini:.2f}; 0: all alike)."
    )
    level: Level = "note" if top >= HEAVY_HEAD else "ok"
    if level == "note":
        text += " Hits on them are cheap: look at coverage and long-tail share beside HR."
    figures = {"gini": gini, "share of the top 1 % of items": top}
    return Verdict("popularity in training", level, None, None, text, figures=figures)


def score_of_pop(pop: PopScores, shared: Finding) -> Verdict:
    """Pop, the line that every model must beat, beside entries drawn at random.

    Args:
        pop: of the splits that were scored, test among them.
        shared: the audit's items that share a title or tokens, for the number of entries.
    """
    entries = shared["of"] - shared["count"] + shared["groups"]
    chance = min(1.0, CUTOFF / entries)
    told = "; ".join(f"{name}: {_scores(scores)}" for name, scores in pop.items())
    text = f"Pop reaches {told}. {CUTOFF} entries drawn at random: HR {chance:.4f}."
    weak = min(scores[HR] for scores in pop["test"].values()) < chance
    text += (
        " Less than chance: what is popular in training is not what is tested, and to beat Pop "
        "says little here."
        if weak
        else " A model that does not beat Pop has learnt nothing about its users."
    )
    figures = {
        f"{split}, {policy}: {metric}": value
        for split, by_policy in pop.items()
        for policy, scores in by_policy.items()
        for metric, value in scores.items()
    } | {f"{HR} at random": chance}
    return Verdict("score of Pop", "note" if weak else "ok", None, None, text, figures=figures)


def _scores(by_policy: Mapping[str, Mapping[str, float]]) -> str:
    words = {"keep": "with the history", "remove": "without"}
    return ", ".join(
        f"HR@{CUTOFF} {s[HR]:.4f} and NDCG@{CUTOFF} {s[NDCG]:.4f} {words[policy]}"
        for policy, s in by_policy.items()
    )
