"""Entries of a comparison over random lists, for the tests of figures and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmrec_cli.data.catalog import gather_entries
from llmrec_cli.evaluation.comparison import (
    Comparison,
    ComparisonConfig,
    Entry,
    EvaluatedData,
    Evaluation,
    Kind,
    build_comparability_keys,
    build_comparison,
)
from llmrec_cli.evaluation.entries import UNKNOWN
from llmrec_cli.evaluation.predictions import Protocol, build_report

N_ITEMS = 12
LEAVES = gather_entries(pd.DataFrame({"count": range(N_ITEMS)}), [*range(N_ITEMS - 1), 0])
FILES = ("items", "train", "valid", "test")
TRAIN = {"select": "ndcg", "validate_rows": 300}


def predictions_of(
    seed: int, n_rows: int = 40, n_users: int = 15, hit: float = 0.0
) -> pd.DataFrame:
    """Random lists over the whole catalogue; with probability ``hit`` the target comes first."""
    same, own = np.random.default_rng(0), np.random.default_rng(seed)
    targets = same.integers(0, N_ITEMS, n_rows)
    histories = [same.permutation(N_ITEMS)[:3] for _ in range(n_rows)]
    users = [f"u{user:04d}" for user in same.integers(0, n_users, n_rows)]
    ranked = [own.permutation(N_ITEMS) for _ in range(n_rows)]
    ranked = [
        np.r_[t, r] if own.random() < hit else r for t, r in zip(targets, ranked, strict=True)
    ]
    columns = {
        "row": range(n_rows),
        "user_id": users,
        "history": histories,
        "target": targets,
        "ranked": ranked,
        "scores": [-np.arange(len(r), dtype=np.float32) for r in ranked],
    }
    return pd.DataFrame(columns)


def protocol(seen: Any = "keep", **changes: Any) -> Protocol:
    values: dict[str, Any] = {
        "split": "test",
        "seen": seen,
        "cutoffs": (1, 5),
        "candidates": "whole catalogue",
        "decoder": {"search": "exact", "mask": "before", "temperature": 1.0},
        "hashes": {"data": "abc"},
    }
    return Protocol(**{**values, **changes})


def evaluated_data(frame: pd.DataFrame, **hashes: str) -> EvaluatedData:
    """Prepared data whose files have the SHA-256 given, or their name in its place."""
    files = {f"{name}.parquet": {"sha256": hashes.get(name, name), "rows": 500} for name in FILES}
    rows = frame[["row", "user_id", "history", "target"]]
    items = pd.DataFrame({"item_id": [f"i{at}" for at in range(N_ITEMS)]})
    return EvaluatedData(Path("prepared"), {"files": files}, "test", items, rows, LEAVES)


def entry_of(
    name: str,
    *seeds: int,
    hit: float = 0.0,
    rows: int = 40,
    kind: Kind = "language model",
    train: dict[str, Any] | None = None,
    hashes: dict[str, str] | None = None,
    validations: int | None = None,
    **changes: Any,
) -> Entry:
    """An entry whose runs rank at random, by seed.

    Args:
        seeds: of its runs.
        validations: of the training of each run.
        changes: of the protocol.
    """
    how, runs = protocol(**changes), []
    for seed in seeds or (1,):
        frame = predictions_of(seed, rows, hit=hit)
        report = build_report({"keep": frame, "remove": frame}, LEAVES, how, 100)
        settings = {"stage": {"train": train or TRAIN}, "eval": {"cutoffs": [1, 5]}}
        manifest = {"settings": settings | {"seed": seed}}
        runs.append(
            Evaluation(f"e/{name}", name, None, seed, manifest, report, frame, None, validations)
        )
    frame = predictions_of(1, rows)
    place = evaluated_data(frame, **(hashes or {}))
    return Entry(
        name, kind, place, tuple(runs), build_comparability_keys(runs[0], place, kind), UNKNOWN
    )


def question(**changes: Any) -> ComparisonConfig:
    values: dict[str, Any] = {
        "split": "test",
        "policies": ("keep", "remove"),
        "headline": "keep",
        "cutoffs": (1, 5),
        "compared": "ndcg@5",
        "baseline": None,
        "resamples": 200,
        "seed": 0,
    }
    return ComparisonConfig(**{**values, **changes})


def compared(*entries: Entry, **changes: Any) -> Comparison:
    return build_comparison(entries, question(**changes))
