"""The leaderboard of a sweep."""

from __future__ import annotations

import pytest

from llmrec_cli.config.training import Selection
from llmrec_cli.sweep.board import Board, Tried, board_json, board_sheet


@pytest.mark.parametrize(
    ("select", "order"), [("loss", ["1", "2", "3"]), ("ndcg", ["3", "2", "1"])]
)
def test_the_best_point_has_the_lowest_loss_or_the_highest_figure(
    select: str, order: list[str]
) -> None:
    tried = [Tried({"x": str(n)}, "complete", (float(n),)) for n in (2, 3, 1)]
    board = Board("sft", select, (0,), (*tried, Tried({"x": "4"}, "failed")), 4, Selection(select))
    assert [row.point["x"] for row in board.rank_tried()] == [*order, "4"]
    assert board.best is not None
    assert board.best.point["x"] == order[0]
    assert board_json(board, "best.toml")["best"]["value"] == float(order[0])
    assert board_sheet(board).rows[0][2] == (f"{order[0]}.0000",)
