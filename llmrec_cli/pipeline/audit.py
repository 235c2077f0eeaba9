"""``llmrec audit``: properties of prepared data that affect a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from llmrec_cli.config.data import find_format
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.recipe import PREPARED_FOLDERS, TOKENS_FOLDER
from llmrec_cli.data.audit import (
    CUTOFF,
    HR,
    NDCG,
    Level,
    PopScores,
    Verdict,
    judge_all,
    measure_prepared,
    with_audit,
)
from llmrec_cli.data.catalog import CatalogueEntries, gather_entries, leaf_of_equal_titles
from llmrec_cli.data.index import read_index, require_same_items
from llmrec_cli.data.prepared import (
    Manifest,
    Prepared,
    load_prepared,
    read_manifest,
    require_same_data,
    translate_read_errors,
)
from llmrec_cli.data.schema import HISTORY, ITEMS_FILE
from llmrec_cli.errors import ArtefactError, RecipeError
from llmrec_cli.evaluation.metrics import Seen, score_rows, seen_leaves
from llmrec_cli.evaluation.predictions import list_predictions
from llmrec_cli.models.baselines.pop import PopRanker
from llmrec_cli.runs.run import Experiment, run_at
from llmrec_cli.tokens.quality import COLLAPSED
from llmrec_cli.utils.files import REPORT_FILE, read_json
from llmrec_cli.utils.progress import Progress

# ``llmrec audit``: counts and verdicts about prepared data.
#
# prepared folder -> the manifest's counts, counts of the split files, Pop's score -> verdicts


POP_ROWS = 20_000  # of a split that Pop is scored on; more are drawn from
POLICIES: Final[tuple[Seen, ...]] = ("keep", "remove")


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found about one prepared folder."""

    folder: Path
    manifest: Manifest
    verdicts: tuple[Verdict, ...]


def audit(word: str, overrides: Sequence[str], progress: Progress) -> list[Audit]:
    """Audit the prepared data of a recipe, an experiment or a run; of two domains, both.

    Args:
        word: a recipe's path or name, or a folder: prepared data, a run, an experiment.
        overrides: ``key=value`` for a recipe.

    Raises:
        RecipeError: no such recipe, or overrides without one.
        ArtefactError: nothing prepared, or damaged; a folder that is none of these.
    """
    found = []
    for folder in _find_prepared(word, overrides):
        progress.say(f"auditing {folder}")
        found.append(audit_folder(folder))
    return found


def audit_folder(folder: Path) -> Audit:
    """Audit one prepared folder.

    Raises:
        ArtefactError: it is no prepared folder, or it is damaged.
    """
    prepared = load_prepared(folder)
    with translate_read_errors(folder):
        manifest = with_audit(prepared)
        pop = None if find_format(manifest["data"]["format"]).pairs else score_pop(prepared)
        verdicts = judge_all(manifest, measure_prepared(prepared), pop)
        return Audit(folder, manifest, (*verdicts, *judge_tokens(prepared)))


def judge_tokens(prepared: Prepared) -> Iterator[Verdict]:
    """The quality of the semantic IDs that lie beside prepared data, where there are some.

    Raises:
        ArtefactError: they are damaged.
    """
    folder, check = prepared.folder.parent / TOKENS_FOLDER, "semantic IDs"
    if not folder.is_dir() or prepared.folder.name != PREPARED_FOLDERS[0]:
        return
    index = read_index(folder)
    try:
        require_same_items(index, prepared.manifest)
    except ArtefactError as error:
        yield Verdict(check, "warning", None, None, f"{str(error).partition(': ')[2]}.")
        return
    quality = read_json(folder / REPORT_FILE)["quality"]
    levels, near = quality["levels"], quality["neighbourhood"]
    collapsed = [n for n, level in enumerate(levels, start=1) if level["entropy"] < COLLAPSED]
    entropies = ", ".join(f"{level['entropy']:.2f}" for level in levels)
    text = (
        f"{quality['colliding']:,} of {quality['items']:,} items share their codes with another "
        f"one. Entropy of the levels: {entropies} of 1."
    )
    if collapsed:
        text += (
            f" Level {collapsed[0]} is nearly the same for all items: use fewer codes or levels."
        )
    figures: dict[str, float] = {
        f"entropy of level {n}": level["entropy"] for n, level in enumerate(levels, start=1)
    }
    for one in near:
        text += (
            f" Neighbours in training histories begin with the same {one['depth']} token(s) in "
            f"{one['share']:.1%} of cases, by chance in {one['chance']:.1%}."
        )
        figures |= {f"neighbours, {one['depth']}": one["share"]}
        figures |= {f"by chance, {one['depth']}": one["chance"]}
    found: Level = "warning" if collapsed else "ok"
    yield Verdict(check, found, quality["colliding"], quality["items"], text, figures=figures)


def to_json(audited: Audit) -> dict[str, Any]:
    """An audit as plain values."""
    splits = audited.manifest["splits"]
    return {
        "folder": str(audited.folder),
        "rows": {name: counts["rows"] for name, counts in splits.items()},
        "verdicts": [verdict.to_json() for verdict in audited.verdicts],
    }


def score_pop(prepared: Prepared) -> PopScores:
    """HR and NDCG of Pop on test and validation, over ``POP_ROWS`` rows at most.

    Items of equal titles (or tokens) are one entry, as where no tokenizer is at hand.
    """
    leaves = gather_entries(prepared.items, leaf_of_equal_titles(prepared.items))
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for split in ("test", "valid"):
        predictions = _rank_by_popularity(_draw_rows(prepared.split(split)), leaves)
        scored = {p: score_rows(predictions, leaves, [CUTOFF], p) for p in POLICIES}
        scores[split] = {
            policy: {metric: float(rows[metric].mean()) for metric in (HR, NDCG)}
            for policy, rows in scored.items()
        }
    return scores


def _rank_by_popularity(rows: pd.DataFrame, leaves: CatalogueEntries) -> pd.DataFrame:
    """Pop's lists, deep enough for both policies."""
    seen = seen_leaves(rows, leaves.leaf_of_item_I)
    found = PopRanker(leaves).rank(rows[HISTORY].tolist(), CUTOFF, seen)
    return list_predictions(rows, found, leaves)


def _draw_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """``POP_ROWS`` rows, always the same ones; all where there are no more."""
    if len(rows) <= POP_ROWS:
        return rows
    chosen = np.random.default_rng(0).choice(len(rows), POP_ROWS, replace=False)
    return rows.iloc[np.sort(chosen)]


def _find_prepared(word: str, overrides: Sequence[str]) -> list[Path]:
    folder = Path(word)
    if not folder.is_dir():
        recipe = read_recipe(word, overrides)
        sections = {recipe.prepared_folder: recipe.data}
        if recipe.eval.data is not None:
            sections[recipe.prepared_for_eval] = recipe.eval.data
        for made, section in sections.items():
            require_same_data(made, read_manifest(made), section)
        return list(sections)
    if overrides:
        raise RecipeError(f"{overrides[0]}: overrides a recipe's key, and {folder} is a folder")
    if (folder / ITEMS_FILE).is_file():
        return [folder]
    home = folder.resolve().parent if run_at(folder).exists else folder
    beside = [path for path in Experiment(home, ()).prepared_folders if path.is_dir()]
    if not beside:
        raise ArtefactError(
            f"{folder}: neither prepared data nor a run or experiment that has some; expected a "
            "recipe or such a folder"
        )
    return beside
