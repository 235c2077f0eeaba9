"""Verdicts on time: whether training sees what comes after, and what order rests on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrec_cli.data.audit import Finding
from llmrec_cli.data.leakage import Ahead, Measured, has_times
from llmrec_cli.data.verdicts.verdict import Verdict, examples_of, part, percent


def ties(found: Finding | None, data: Mapping[str, Any], measured: Measured | None) -> Verdict:
    """Users with interactions at one time, whose order is the input's.

    Args:
        found: None: not counted, as of a source that comes split.
        data: the manifest's.
    """
    check = "interactions that tie in time"
    if found is None:
        why = "the source comes split" if data["split"] == "given" else "it was not counted"
        text = f"Whether interactions of a user tie cannot be told: {why}."
        return Verdict(check, "ok", None, None, text)
    if not has_times(data):
        return Verdict(check, "ok", None, None, "The source has an order and no times.")
    if not found["count"]:
        return Verdict(check, "ok", 0, found["of"], "No user has two interactions at one time.")
    text = (
        f"{part(found)} users have interactions at one and the same time "
        f"({found['interactions']:,} interactions): input order decides which comes first."
    )
    figures = {"interactions": float(found["interactions"])}
    if measured and measured.undecided:
        text += (
            f" {part(measured.undecided)} test targets tie with their user's validation target: "
            "which of the two is tested is the file's choice."
        )
        figures["test targets that tie with validation's"] = measured.undecided["count"]
    examples = examples_of(found["examples"])
    return Verdict(check, "note", found["count"], found["of"], text, examples, figures)


def later_training(
    found: Finding | None, data: Mapping[str, Any], measured: Measured | None
) -> Verdict:
    """Training rows later than test rows: what only a split by time forbids.

    Args:
        found: None: times do not compare across users.
        data: the manifest's.
    """
    check = "training later than test"
    if found is None or not has_times(data):
        text = "Times do not compare across users: whether training looks ahead cannot be told."
        return Verdict(check, "ok", None, None, text)
    count, of = found["count"], found["of"]
    if not count:
        return Verdict(check, "ok", 0, of, "No training row is later than any test row.")
    ahead = measured.ahead if measured else {}
    sentences = [f"{part(found)} training rows are later than the earliest test row."]
    sentences += [_how_far(name, of_split) for name, of_split in ahead.items()]
    forbidden = data["split"] == "global-time"
    sentences.append(
        "A split by time forbids that: prepare again."
        if forbidden
        else f'split = "{data["split"]}" allows it, and figures are better for it than a model '
        'could be on the day, most of all about what became popular later; split = "global-time" '
        "does not look ahead."
    )
    text, figures = " ".join(sentences), _figures(ahead)
    return Verdict(check, "warning" if forbidden else "note", count, of, text, figures=figures)


def _how_far(split: str, ahead: Ahead) -> str:
    return (
        f"At the time of a {split} row, {percent(ahead.mean)} of the training rows are still to "
        f"come (median {percent(ahead.median)}), over {ahead.days:,.0f} days (median)."
    )


def _figures(ahead: Mapping[str, Ahead]) -> dict[str, float]:
    return {
        f"{name}: {what}": figure
        for name, of_split in ahead.items()
        for what, figure in (
            ("share of training that is later, mean", of_split.mean),
            ("share of training that is later, median", of_split.median),
            ("days to the end of training, median", of_split.days),
        )
    }
