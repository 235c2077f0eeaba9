"""``manifest.json`` of a run, read: files of other people may hold anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmrec_cli.errors import ArtefactError
from llmrec_cli.files import read_json

_TABLES = ("settings", "facts", "outcome", "cost")


def read_run_manifest(path: Path, needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """A run's manifest; less may stand in it, of an older run, but not something else.

    Args:
        needed: tables that must be there; settings have a stage.

    Raises:
        ArtefactError: missing, damaged, or not the manifest of a run.
    """
    found = read_json(path)
    if isinstance(found, dict) and found.keys() >= set(needed):
        stage = _table(found.get("settings", {})).get("stage", {})
        tables = [*(found.get(key, {}) for key in _TABLES), stage, _table(stage).get("train", {})]
        complete = "settings" not in needed or "stage" in found["settings"]
        if complete and all(isinstance(table, dict) for table in tables):
            return found
    raise ArtefactError(f"{path}: not the manifest of a run")


def _table(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}
