"""What has to agree before two entries' figures may be set against each other.

Same data, rows, catalogue, candidates, decoder and choice of a checkpoint; what an entry does not
have (a conventional model decodes nothing, another tool's training is unknown) agrees with any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from llmrec_cli.data.columns import ITEMS_FILE, ROW, SPLITS, split_file
from llmrec_cli.report.comparison import Kind, Policy
from llmrec_cli.report.entries import Entry, Evaluation, Ground, Trait
from llmrec_cli.report.pairs import OTHER
from llmrec_cli.tasks import find_reported_task

ROWS_OF = {"train": "training rows", "valid": "validation rows", "test": "test rows"}
WHOLE = "whole catalogue"
EXACT = ("exact", "all")  # ways of searching that give one list, the model's own first K


def traits_of(evaluation: Evaluation, ground: Ground, kind: Kind) -> dict[str, Trait]:
    """All that has to agree, by what it is of.

    Args:
        evaluation: its report is one that ``evaluated.open_run`` has checked, or empty.
    """
    protocol = evaluation.report.get("protocol", {})
    task = find_reported_task(protocol)
    traits = {"task": _plain(protocol.get("task", task.name))}
    traits |= _of_data(ground, known=SPLITS if evaluation.report else (ground.split,))
    traits["evaluated"] = _rows(evaluation, len(ground.rows))
    traits["catalogue"] = _plain(f"{ground.leaves.n_leaves:,} entries")
    traits["candidates"] = _plain(task.candidates.format(protocol.get("candidates", WHOLE)))
    if "template" in protocol:
        traits["template"] = _plain(protocol["template"])
    if "decoder" in protocol:
        traits |= _of_decoder(protocol["decoder"], kind)
    return traits | _of_selection(evaluation.manifest, ground)


def why_not(entry: Entry, base: Entry, policy: Policy) -> str | None:
    """What differs between an entry and the baseline, in words; None where everything agrees."""
    differ = {
        what: (ours, base.traits[what])
        for what, ours in entry.traits.items()
        if what in base.traits and ours.key != base.traits[what].key
    }
    hashed = [what for what, (ours, _) in differ.items() if not ours.words]
    reasons = [f"other {_listed(hashed)}"] if hashed else []
    for what, (ours, theirs) in differ.items():
        if ours.words and not (hashed and what in ("evaluated", "catalogue")):
            reasons.append(_told(what, ours.words, theirs.words))
    if policy == "keep" and entry.without_history != base.without_history:
        whose = "its" if entry.without_history else "the baseline's"
        reasons.append(f"{whose} lists leave the history out: compare with --seen remove")
    return "; ".join(reasons) or None


def _told(what: str, ours: str, theirs: str) -> str:
    if ours == theirs:
        return f"{what}: {ours}, but not the baseline's"
    return f"{what}: {ours}, baseline {theirs}"


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _plain(words: str) -> Trait:
    return Trait(words, words)


def _of_data(ground: Ground, known: tuple[str, ...]) -> dict[str, Trait]:
    """The content of the prepared files; the manifest's own hash would differ with the seed."""
    files = ground.manifest["files"]
    names = {"items": ITEMS_FILE, **{ROWS_OF[split]: split_file(split) for split in known}}
    return {what: Trait(files[name]["sha256"], "") for what, name in names.items()}


def _rows(evaluation: Evaluation, n_rows: int) -> Trait:
    if evaluation.predictions is not None:
        row_R = np.sort(evaluation.predictions[ROW].to_numpy(np.int64))
        return Trait(fingerprint(row_R), f"{len(row_R):,} of {n_rows:,} rows")
    pairs = evaluation.pairs if evaluation.pairs is not None else pd.DataFrame({ROW: [], OTHER: []})
    return Trait(fingerprint(pairs[[ROW, OTHER]].to_numpy(np.int64)), f"{len(pairs):,} pairs")


def fingerprint(values: np.ndarray[Any, np.dtype[np.int64]]) -> str:
    """SHA-256 of whole numbers in their order."""
    return hashlib.sha256(values.astype("<i8").tobytes()).hexdigest()


def _of_decoder(decoder: Mapping[str, Any], kind: Kind) -> dict[str, Trait]:
    search = decoder.get("search", "all")
    words = "exact" if search in EXACT else f"{search} of {decoder.get('beams', '?')}"
    if kind != "language model":  # scores of its own: nothing to mask or to divide
        return {"search": _plain(words)}
    scores = (
        f'mask "{decoder.get("mask", "before")}", temperature {decoder.get("temperature", 1):g}'
    )
    penalty = decoder.get("length_penalty", 0)
    scores += f", length penalty {penalty:g}" if penalty else ""
    return {"search": _plain(words), "decoding": _plain(scores)}


def _of_selection(manifest: Mapping[str, Any], ground: Ground) -> dict[str, Trait]:
    """How the checkpoint was chosen; nothing for what was counted, or trained elsewhere."""
    settings = manifest.get("settings", {})
    train = settings.get("stage", {}).get("train", {})
    select, n_rows = train.get("select"), train.get("validate_rows")
    if select is None or n_rows is None:
        return {}
    n_rows = min(n_rows, ground.manifest["files"][split_file("valid")]["rows"])
    cutoffs = settings.get("eval", {}).get("cutoffs")
    at = f"@{max(cutoffs)}" if cutoffs and select == "ndcg" else ""
    return {"checkpoint": _plain(f"best {select}{at} on {n_rows:,} validation rows")}
