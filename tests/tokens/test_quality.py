"""Collisions, quality and vectors, by hand-computed values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from llmrec_cli.errors import DataError
from llmrec_cli.tokens.collisions import count_in_buckets, move_to_nearest, share_ids
from llmrec_cli.tokens.quality import find_neighbours, measure_neighbourhood, measure_quality
from llmrec_cli.tokens.vectors import (
    describe_repeats,
    draw_vectors,
    join_blocks,
    render_texts,
    require_finite,
)


def refuse(places: Sequence[int]) -> NDArray[np.float32]:
    raise AssertionError("no distance is needed")


def test_a_counter_counts_within_equal_codes_and_goes_on_behind_older_ids() -> None:
    codes = [(1, 2), (1, 3), (1, 2), (1, 2)]
    assert count_in_buckets(codes, refuse, []) == [(1, 2, 0), (1, 3, 0), (1, 2, 1), (1, 2, 2)]
    later = count_in_buckets([(1, 2), (5, 5)], refuse, [(1, 2, 0), (1, 2, 3)])
    assert later == [(1, 2, 4), (5, 5, 0)]


def test_of_equal_codes_the_best_fitting_item_keeps_its_own() -> None:
    distance_IC = np.array([[0.5, 0.9, 7.0], [0.1, 2.0, 3.0]], dtype=np.float32)
    found = move_to_nearest([(4, 0), (4, 0)], lambda places: distance_IC[list(places)], [])
    assert found == [(4, 1), (4, 0)]


def test_a_code_that_an_older_item_has_is_not_free() -> None:
    distance_IC = np.array([[0.0, 1.0, 2.0]], dtype=np.float32)
    found = move_to_nearest([(4, 0)], lambda places: distance_IC[list(places)], [(4, 0), (4, 1)])
    assert found == [(4, 2)]


def test_codes_without_collisions_stay_and_measure_nothing() -> None:
    codes = [(4, 0), (4, 1), (5, 0)]
    assert move_to_nearest(codes, refuse, [(6, 0)]) == codes


def test_more_equal_beginnings_than_codes_are_refused() -> None:
    distances = np.zeros((3, 2), dtype=np.float32)
    with pytest.raises(DataError, match="3 items share all tokens but the last one, which has 2"):
        move_to_nearest([(4, 0), (4, 0), (4, 1)], lambda places: distances[list(places)], [])


def test_shared_ids_stay_equal() -> None:
    assert share_ids([(1, 2), (1, 2)], refuse, []) == [(1, 2), (1, 2)]


def make_train(rows: list[tuple[list[int], int]]) -> pd.DataFrame:
    return pd.DataFrame({"history": [r[0] for r in rows], "target": [r[1] for r in rows]})


def test_neighbours_are_the_last_item_and_the_target() -> None:
    train = make_train([([3, 0], 1), ([], 2), ([1], 1), ([2], 0)])
    left_P, right_P = find_neighbours(train)
    assert left_P.tolist() == [0, 2]
    assert right_P.tolist() == [1, 0]


def test_neighbourhood_and_chance_by_hand() -> None:
    """Pairs 0-1, 2-3, 0-3 of two groups {0, 1} and {2, 3}."""
    begin_IL = np.array([[0], [0], [7], [7]])
    left_P, right_P = np.array([0, 2, 0]), np.array([1, 3, 3])
    found = measure_neighbourhood(begin_IL, left_P, right_P)
    assert found.share == pytest.approx(2 / 3)
    # Drawn apart: P(left in group 0) = 2/3, P(right in group 0) = 1/3; no item is on both sides.
    assert found.chance == pytest.approx(2 / 3 * 1 / 3 + 1 / 3 * 2 / 3)


def test_chance_leaves_out_an_item_beside_itself() -> None:
    """Every pair of three items, each a group of its own: never alike, by chance neither."""
    left_P, right_P = np.array([0, 1, 2]), np.array([1, 2, 0])
    found = measure_neighbourhood(np.array([[0], [1], [2]]), left_P, right_P)
    assert found.share == 0
    assert found.chance == pytest.approx(0)


def test_quality_by_hand() -> None:
    code_IL = np.array([[0, 0], [0, 0], [0, 1], [1, 1]])
    found = measure_quality(code_IL, 2, [0.5, 0.25], make_train([([0], 1), ([2], 3)]))
    assert (found.items, found.distinct, found.colliding, found.largest) == (4, 3, 2, 2)
    quarter = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert [one.used for one in found.levels] == [2, 2]
    assert [one.entropy for one in found.levels] == pytest.approx([quarter, 1])
    assert [one.lost for one in found.levels] == [0.5, 0.25]
    assert [one.depth for one in found.neighbourhood] == [1, 2]
    assert found.list_warnings(2) == []


def test_a_level_that_collapses_is_told() -> None:
    code_IL = np.zeros((40, 2), dtype=np.int64)
    code_IL[:, 0] = np.arange(40) % 8
    code_IL[0, 1] = 3
    (line,) = measure_quality(code_IL, 8, None, make_train([])).list_warnings(8)
    assert "level 2 has collapsed" in line
    assert "2 of 8 codes in use" in line


ITEMS = pd.DataFrame(
    {
        "item_id": ["x", "y", "z"],
        "title": ["A {b}", "C", "C"],
        "brand": ["Acme", None, None],
    }
)


def test_texts_leave_out_pieces_whose_fields_are_missing() -> None:
    texts = render_texts(["{title}", "by {brand}"], ITEMS)
    assert texts == ["A {b} by Acme", "C", "C"]
    assert describe_repeats(texts[:2]) is None
    line = describe_repeats(texts)
    assert line is not None
    assert line.startswith("2 items have a text that another item has too, such as 'C'")


def test_an_item_without_any_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"item 'y' has nothing that it shows \(2 such items\)"):
        render_texts(["by {brand}"], ITEMS)


def test_blocks_weigh_alike_side_by_side() -> None:
    generator = torch.Generator().manual_seed(0)
    wide, narrow = torch.randn(50, 40, generator=generator) * 9 + 5, torch.rand(50, 3)
    joined = join_blocks([wide, narrow])
    for block in (joined[:, :40], joined[:, 40:]):
        torch.testing.assert_close(
            block.mean(dim=0), torch.zeros(block.shape[1]), atol=1e-5, rtol=0
        )
        assert float((block**2).sum(dim=1).mean()) == pytest.approx(1, abs=1e-4)
    assert join_blocks([wide]) is wide


def test_random_vectors_depend_on_id_and_seed_alone() -> None:
    both, one = draw_vectors(["x", "y"], 3), draw_vectors(["y"], 3)
    assert torch.equal(both[1], one[0])
    assert not torch.equal(draw_vectors(["y"], 4)[0], one[0])


def test_vectors_with_nan_name_the_first_item() -> None:
    bad = torch.zeros(3, 2)
    bad[1, 1] = float("nan")
    with pytest.raises(DataError, match="somewhere: the vectors of 1 of 3 items, such as 'y'"):
        require_finite(bad, ["x", "y", "z"], "somewhere")
