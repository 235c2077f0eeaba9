"""Verdicts on rows: what their targets are, and whose they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrec_cli.data.audit import Finding
from llmrec_cli.data.columns import AS_READ, CUT_ITEMS, CUT_ROWS, NO_TARGET, SHORT_HISTORY
from llmrec_cli.data.leakage import Measured
from llmrec_cli.data.verdicts.verdict import (
    Level,
    Verdict,
    examples_of,
    level_of,
    part,
    percent,
    share,
)
from llmrec_cli.recipe.data import format_of


def targets_in_history(found: Mapping[str, Finding]) -> Verdict:
    """Args:
    found: by split.
    """
    check, test = "targets in their own history", found["test"]
    where = [f"{part(rows)} in {name}" for name, rows in found.items() if rows["count"]]
    if not where:
        return Verdict(check, "ok", 0, test["of"], "No target stands in its own history.")
    text = (
        f"Bought again: {', '.join(where)}. A model that copies its prompt finds these; with "
        'seen = "remove" the target is the one item of the history that stays a candidate.'
    )
    some = next(rows["examples"] for rows in (test, *found.values()) if rows["count"])
    level = level_of(test, least="note")
    return Verdict(check, level, test["count"], test["of"], text, examples_of(some))


def unseen_targets(test: Finding, data: Mapping[str, Any], measured: Measured | None) -> Verdict:
    """Test targets (and validation's) that nothing in training shows.

    Args:
        data: the manifest's.
    """
    check, count, of = "test targets never seen in training", test["count"], test["of"]
    sentences = [f"All {of:,} test targets occur in training."]
    if count:
        # About: an item that is never seen may share its entry with one that is.
        pairs = format_of(data["format"]).brings_rejected  # which have no HR
        ends = "" if pairs else f", and its HR ends at about {percent(1 - share(test))}"
        sentences = [
            f"{part(test)} test targets occur in no training row: a model that knows items by "
            f"number has nothing to go by{ends}; a language model has their titles."
        ]
    figures = {"test": share(test)}
    if measured:
        valid, unheard = measured.unseen_valid, measured.unheard
        figures |= {"test, validation counted as seen": share(unheard), "valid": share(valid)}
        if count:
            sentences.append(f"{part(unheard)} occur in no validation row either.")
        sentences.append(f"Of the validation targets, {part(valid)} are unseen.")
    text, examples = " ".join(sentences), examples_of(test["examples"])
    return Verdict(check, level_of(test), count, of, text, examples, figures)


def users_on_both_sides(found: Mapping[str, int], data: Mapping[str, Any]) -> Verdict:
    """Users in several splits, which only a split by user forbids: few-shot, and given pairs.

    The other protocols part a user's sequence, or time.

    Args:
        found: by pair of splits.
        data: the manifest's.
    """
    check = "users in several splits"
    by_user = data["split"] == "few-shot" or format_of(data["format"]).brings_rejected
    sides = {pair: n for pair, n in found.items() if pair != "train and preference"}
    counts = ", ".join(f"{n:,} in {pair}" for pair, n in sides.items() if n)
    most = max(sides.values())
    if not by_user:
        text = f'split = "{data["split"]}" does not part users ({counts or "none is in two"}).'
        return Verdict(check, "ok", most, None, text, figures=sides)
    if not most:
        return Verdict(check, "ok", 0, None, "The split is by user, and nobody is in two splits.")
    text = (
        f"The split is by user, and some are on both sides: {counts}. What training shows of them "
        "makes their rows easier than a new user's."
    )
    return Verdict(check, "warning", most, None, text, figures=sides)


def rows_in_two_splits(found: Mapping[str, Finding]) -> Verdict:
    """Rows that are trained on and measured on: a leak, whatever the protocol.

    Args:
        found: by pair of splits, in order; counted in the later split.
    """
    check, test = "rows that stand in two splits", found["train and test"]
    where = [
        f"{part(rows)} {pair.split()[-1]} rows stand in {pair.split()[0]}"
        for pair, rows in found.items()
        if rows["count"]
    ]
    count = sum(rows["count"] for rows in found.values())
    if not count:
        return Verdict(check, "ok", 0, test["of"], "No row stands in two splits.")
    text = (
        f"The same user, target and history (or time): {'; '.join(where)}. A model has learnt "
        "these answers, so the figures are too good. Expected splits without a row in common."
    )
    trained = [rows for pair, rows in found.items() if pair.startswith("train")]
    levels = [level_of(rows) for rows in found.values()]
    level: Level = "warning" if "warning" in levels else "note"
    worst = max(trained, key=share)
    worst = worst if worst["count"] else found["valid and test"]
    figures = {f"{pair}: rows": float(rows["count"]) for pair, rows in found.items()}
    examples = examples_of(worst["examples"])
    return Verdict(check, level, worst["count"], worst["of"], text, examples, figures)


def rows_left_out(cleaning: Mapping[str, Mapping[str, int]], data: Mapping[str, Any]) -> Verdict:
    """Rows of a source that comes split that stand in no split now.

    Args:
        cleaning, data: of the manifest.
    """
    check = "rows of the source that are left out"
    lost: dict[str, Finding] = {
        name: {
            "count": counts[NO_TARGET] + counts[SHORT_HISTORY],
            "of": counts[AS_READ],
            "examples": [],
        }
        for name, counts in cleaning.items()
    }
    test = lost["test"]
    where = [
        f"{part(found)} {name} rows ({_reasons(cleaning[name], data)})"
        for name, found in lost.items()
        if found["count"]
    ]
    if not where:
        return Verdict(check, "ok", 0, test["of"], "Every row of the source is kept.")
    text = f"Left out: {'; '.join(where)}. All figures are about the others."
    figures = {f"{name} rows": float(found["count"]) for name, found in lost.items()}
    return Verdict(check, level_of(test, "note"), test["count"], test["of"], text, figures=figures)


def _reasons(counts: Mapping[str, int], data: Mapping[str, Any]) -> str:
    reasons = {
        f"{counts[SHORT_HISTORY]:,} have a history below {data['min_history']}": SHORT_HISTORY,
        f"{counts[NO_TARGET]:,} have a target without a title": NO_TARGET,
    }
    return ", ".join(text for text, key in reasons.items() if counts[key])


def cut_histories(splits: Mapping[str, Mapping[str, int]], data: Mapping[str, Any]) -> Verdict:
    """Rows whose history is longer than ``data.history``, which keeps the newest items.

    Args:
        splits, data: of the manifest.
    """
    check, longest = "histories cut to data.history", data["history"]
    lost: dict[str, Finding] = {
        name: {"count": counts[CUT_ROWS], "of": counts["rows"], "examples": []}
        for name, counts in splits.items()
    }
    test = lost["test"]
    where = [f"{part(found)} {name} rows" for name, found in lost.items() if found["count"]]
    if not where:
        text = f"No history is longer than {longest} items."
        return Verdict(check, "ok", 0, test["of"], text)
    items = sum(counts[CUT_ITEMS] for counts in splits.values())
    text = (
        f"The last {longest} items are kept of {', '.join(where)}; {items:,} older ones are left "
        "out, for every model alike."
    )
    level: Level = "note" if level_of(test) == "warning" else "ok"  # a choice, to be known
    return Verdict(check, level, test["count"], test["of"], text)


def trained_pairs(found: Finding) -> Verdict:
    """Test pairs that training shows: same history, same candidates."""
    check, count, of = "test pairs that are trained on", found["count"], found["of"]
    if not count:
        return Verdict(check, "ok", 0, of, "Training shows no test pair.")
    text = (
        f"{part(found)} test pairs are pairs of training, history and candidates alike: a leak. "
        "Reports give the figures of new users, too."
    )
    return Verdict(check, "warning", count, of, text, examples_of(found["examples"]))
