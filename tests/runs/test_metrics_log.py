"""``metrics.jsonl``, read: whatever is no row is left out."""

from __future__ import annotations

from pathlib import Path

from llmrec_cli.runs.tracking import MetricsLog


def test_a_line_that_is_no_row_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    odd = ["{", "null", "7", "[1]", "{}", '{"step": "2"}', '{"step": true}', "[" * 5000, "\xff"]
    path.write_text("\n".join(['{"step": 1}', *odd, '{"step": 2, "loss": 0.5}', '{"st']))
    assert MetricsLog(path).rows() == [{"step": 1}, {"step": 2, "loss": 0.5}]
