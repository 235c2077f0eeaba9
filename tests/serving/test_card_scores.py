"""The figures of a model card come from a report that may be damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmrec_cli.errors import ArtefactError
from llmrec_cli.serving.card import read_scores

FIGURE = {"mean": 0.5, "low": 0.25, "high": 0.75}
REPORT: dict[str, Any] = {
    "rows": 3,
    "users": 2,
    "protocol": {"split": "test", "candidates": "whole catalogue", "seen": "keep"},
    "keep": {"metrics": {"hr@10": FIGURE}},
    "remove": {"metrics": {"hr@10": FIGURE}},
}


def test_a_report_gives_its_figures(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    found = read_scores(tmp_path, {})
    assert found.rows == [("HR@10", "0.5000 [0.2500, 0.7500]", "0.5000 [0.2500, 0.7500]")]


@pytest.mark.parametrize(
    "changes",
    [
        {"remove": {"metrics": {}}},
        {"keep": {"metrics": {"hr@x": FIGURE}}},
        {"keep": None},
        {"protocol": 3},
        {"rows": "many"},
    ],
)
def test_one_that_lacks_a_figure_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / "report.json").write_text(json.dumps(REPORT | changes))
    with pytest.raises(ArtefactError, match=r"report\.json: not a report of llmrec eval"):
        read_scores(tmp_path, {})
