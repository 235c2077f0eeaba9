"""ItemKNN: a hand-computed case, ties, decay, and a slow reference on random data."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmrec_cli.models.baselines.itemknn import fit_itemknn, score_itemknn, similarities

# Entry 0: users 0, 1, 2; entry 1: users 0, 1; entry 2: users 2, 3; entry 3: nobody.
USERS = [[0, 1], [1, 0, 0], [0, 2], [2]]


def test_similarities_by_hand() -> None:
    similar = similarities(fit_itemknn(USERS, 4, neighbours=3, shrink=1.0)).toarray()
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = 2 / (math.sqrt(3 * 2) + 1)
    expected[0, 2] = expected[2, 0] = 1 / (math.sqrt(3 * 2) + 1)
    np.testing.assert_allclose(similar, expected, rtol=1e-6)


def test_only_the_strongest_neighbours_stay_and_ties_go_to_the_lower_leaf() -> None:
    one = similarities(fit_itemknn(USERS, 4, neighbours=1, shrink=1.0)).toarray()
    assert (one > 0).astype(int).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0] * 4]
    tied = similarities(fit_itemknn([[0, 1, 2]], 3, neighbours=1, shrink=0.0)).toarray()
    assert tied.tolist() == [[0, 1, 0], [1, 0, 0], [1, 0, 0]]


def test_a_history_adds_its_similarities_the_latest_counting_most() -> None:
    similar = similarities(fit_itemknn(USERS, 4, neighbours=3, shrink=0.0))
    s01, s02 = 2 / math.sqrt(6), 1 / math.sqrt(6)
    got = score_itemknn(similar, [[1, 2], [2, 1], [], [3], [2, 2]], decay=0.5)
    expected = np.zeros((5, 4))
    expected[:, 0] = [0.5 * s01 + s02, 0.5 * s02 + s01, 0, 0, 1.5 * s02]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert got.dtype == np.float32


@pytest.mark.parametrize(("neighbours", "shrink", "decay"), [(3, 0.0, 1.0), (100, 5.0, 0.7)])
def test_equals_loops_over_sets(neighbours: int, shrink: float, decay: float) -> None:
    rng = np.random.default_rng(0)
    n_leaves = 12
    users = [rng.integers(0, n_leaves, rng.integers(1, 8)).tolist() for _ in range(30)]
    histories = [rng.integers(0, n_leaves, rng.integers(0, 6)).tolist() for _ in range(20)]
    of = [{u for u, items in enumerate(users) if leaf in items} for leaf in range(n_leaves)]

    def near(leaf: int) -> dict[int, float]:
        found = {
            other: len(of[leaf] & of[other]) / (math.sqrt(len(of[leaf]) * len(of[other])) + shrink)
            for other in range(n_leaves)
            if other != leaf and of[leaf] & of[other]
        }
        best = sorted(found, key=lambda other: (-np.float32(found[other]), other))[:neighbours]
        return {other: found[other] for other in best}

    expected = np.zeros((len(histories), n_leaves))
    for row, history in enumerate(histories):
        for leaf in range(n_leaves):
            for age, taken in enumerate(reversed(history)):
                expected[row, leaf] += decay**age * near(leaf).get(taken, 0.0)
    similar = similarities(fit_itemknn(users, n_leaves, neighbours=neighbours, shrink=shrink))
    got = score_itemknn(similar, histories, decay=decay)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)
