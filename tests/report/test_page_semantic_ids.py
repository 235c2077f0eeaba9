"""The part of the page on semantic IDs: curves, pairs, and the figures behind them."""

from __future__ import annotations

import pytest

from llmrec_cli.report.page.blocks import Panels
from llmrec_cli.report.page.data import IdUse
from llmrec_cli.report.page.semantic_ids import _accumulate, build_semantic_ids

USE = IdUse("toys", 8, ((5, 3, 2), (9, 1)), ((1, 0.4, 0.1), (2, 0.25, 0.01)))


def panels(*uses: IdUse) -> list[Panels]:
    blocks = build_semantic_ids(uses).blocks
    return [block.value for block in blocks if block.macro == "panels"]


def test_without_ids_there_is_no_section() -> None:
    assert build_semantic_ids([]).blocks == ()


def test_a_curve_sums_items_over_tokens_and_unused_codes() -> None:
    xs, ys = _accumulate((5, 3, 2), 8)
    assert xs == pytest.approx([0, 1 / 8, 2 / 8, 3 / 8, 1])
    assert ys == pytest.approx([0, 0.5, 0.8, 1, 1])
    xs, ys = _accumulate((3, 3, 3), 2)  # a counter has more tokens than a level has codes
    assert xs == pytest.approx(ys)


def test_a_long_curve_keeps_its_ends_and_rises() -> None:
    xs, ys = _accumulate(tuple(range(5000, 0, -1)), 65536)
    assert (xs[0], ys[0], xs[-1], ys[-1]) == (0, 0, 1, 1)
    assert len(xs) <= 101
    assert xs == sorted(xs)
    assert ys == sorted(ys)


def test_what_pictures_show_stands_in_words_and_figures() -> None:
    (found,) = panels(USE)
    shares, pairs = found.pictures
    assert "token 1: 3 tokens in use, the commonest has 5 items" in shares.alt
    assert "same first 2 tokens: 25.0% of neighbours, 1.0% by chance" in pairs.alt
    rows = [[cell[0] for cell in row] for row in found.data.sheet.rows]
    assert rows[1] == ["token 2", "2 in use, most on one 9"]
    assert [name for _, name in found.legend] == ["token 1", "token 2"]


def test_data_without_pairs_have_one_picture() -> None:
    (found,) = panels(IdUse("toys", 8, USE.levels, ()))
    assert len(found.pictures) == 1


def test_several_data_are_told_apart() -> None:
    assert [one.caption for one in panels(USE, IdUse("b", 8, USE.levels, ()))] == [
        "Semantic IDs of toys",
        "Semantic IDs of b",
    ]
