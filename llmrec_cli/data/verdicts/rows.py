"""Verdicts on rows: what their targets are, and whose they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrec_cli.data.audit import Finding
from llmrec_cli.data.leakage import Measured
from llmrec_cli.data.verdicts.verdict import (
    Verdict,
    examples_of,
    level_of,
    part,
    percent,
    share,
)


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
        ends = f", and its HR ends at about {percent(1 - share(test))}"
        sentences = [
            f"{part(test)} test targets occur in no training row: a model that knows items by "
            f"number has nothing to go by{'' if data['format'] == 'rank-pairs' else ends}; a "
            "language model has their titles."
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
    by_user = data["split"] == "few-shot" or data["format"] == "rank-pairs"
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
