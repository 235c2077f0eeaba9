"""One battery over every Ranker: lists, exclusion, ties, empty histories, order, neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from llmrec_cli.config.model import ScratchModel
from llmrec_cli.data.catalog import CatalogueEntries, gather_entries
from llmrec_cli.decoding.guide import log_probabilities
from llmrec_cli.decoding.ranker import GuidedRanker, LanguageModelRanker
from llmrec_cli.decoding.search import DecodeOptions, score_all
from llmrec_cli.errors import DataError, NumbersError, RecipeError
from llmrec_cli.models.base import (
    NO_LEAF,
    ROWS_AT_ONCE,
    FullScoreRanker,
    Histories,
    RankedLists,
    Ranker,
    ScoredBy,
    batches_by_length,
    rank_scores,
)
from llmrec_cli.models.baselines import baseline_names, find_baseline
from llmrec_cli.models.loading import build_scratch
from llmrec_cli.models.sequential import build_sequential, make_sequential_ranker
from llmrec_cli.tensors.trie import build_trie

# 14 items, 12 entries: items 12 and 13 are entries 3 and 5 once more.
CATALOGUE = [[a, b, c, 1] for a in (10, 11) for b in (20, 21, 22) for c in (30, 31)]
CATALOGUE += [CATALOGUE[3], CATALOGUE[5]]
TRIE = build_trie(CATALOGUE)
COUNTS = [5, 9, 2, 2, 7, 0, 5, 5, 1, 3, 8, 4, 1, 1]
LEAVES = gather_entries(pd.DataFrame({"count": COUNTS}), TRIE.leaf_of_item_I.numpy())
HISTORIES = [[0, 3, 5], [], [11, 11, 12], [2], [7, 1], [4, 9, 10, 3, 0, 6], [12], [13, 3]]
USERS = [[0, 1, 3], [3, 5, 6], [0, 3], [2, 11, 4], [9, 10, 8], [7, 1, 4]]
SIZES = ScratchModel(hidden=32, layers=2, heads=2, feed_forward=48, dropout=0.0, vocabulary=300)
LONGEST = 5  # items of a history that a sequential model reads


def language_model(**options: Any) -> LanguageModelRanker:
    model, _ = build_scratch(SIZES, ["a title"], (), seed=3)

    def encode(histories: Histories) -> list[NDArray[np.int32]]:
        shown = [[CATALOGUE[item] for item in history] for history in histories]
        return [
            np.array([0, *(t for tokens in items for t in tokens)], np.int32) for items in shown
        ]

    return LanguageModelRanker(model, TRIE, encode, DecodeOptions(k=1, **options))


def conventional(name: str) -> Ranker:
    found = find_baseline(name)
    options = found.options.model_validate({"hidden": 16} if found.is_trained else {})
    if found.is_trained:
        model = build_sequential(name, options, LEAVES.n_leaves, LONGEST + 1, seed=1)
        return make_sequential_ranker(model, LEAVES, LONGEST)
    assert found.load is not None
    arrays = found.count(options, USERS, LEAVES.n_leaves) if found.count is not None else {}
    return found.load(options, arrays, LEAVES)


def guided(guide: Ranker, weight: float = 0.7, **options: Any) -> GuidedRanker:
    return GuidedRanker(language_model(**options), guide, weight)


MAKERS: dict[str, Callable[[], Ranker]] = {
    "exact": language_model,
    "after": lambda: language_model(mask="after"),
    "beam": lambda: language_model(search="beam", beams=12),
    "all": lambda: language_model(search="all"),
    "penalised": lambda: language_model(search="all", length_penalty=0.5),
    **{name: lambda name=name: conventional(name) for name in baseline_names()},  # type: ignore[misc] # bound now
    "guided by itemknn": lambda: guided(conventional("itemknn")),
    "guided by pop": lambda: guided(conventional("pop"), mask="after"),
    "guided by sasrec": lambda: guided(conventional("sasrec"), search="all"),
    "guided by a language model": lambda: guided(language_model(temperature=3.0), weight=2.0),
}
EVERY = pytest.mark.parametrize("made", MAKERS)


@pytest.fixture(scope="module")
def rankers() -> dict[str, Ranker]:
    return {name: make() for name, make in MAKERS.items()}


def leaves_of(found: RankedLists) -> list[list[int]]:
    return [leaf_K[leaf_K != NO_LEAF].tolist() for leaf_K in found.leaf_BK]


@EVERY
def test_a_list_of_everything_holds_each_entry_once_best_first(
    made: str, rankers: dict[str, Ranker]
) -> None:
    found = rankers[made].rank(HISTORIES, LEAVES.n_leaves)
    assert found.leaf_BK.dtype == np.int64
    assert found.score_BK.dtype == np.float32
    assert np.sort(found.leaf_BK).tolist() == [list(range(LEAVES.n_leaves))] * len(HISTORIES)
    assert (np.diff(found.score_BK) <= 0).all()
    assert np.isfinite(found.score_BK).all()


@EVERY
@pytest.mark.parametrize("k", [1, 3, 50])
def test_k_entries_are_the_first_of_all(made: str, k: int, rankers: dict[str, Ranker]) -> None:
    whole = leaves_of(rankers[made].rank(HISTORIES, LEAVES.n_leaves))
    found = rankers[made].rank(HISTORIES, k)
    assert leaves_of(found) == [leaves[:k] for leaves in whole]


@EVERY
def test_excluded_entries_keep_their_places_and_do_not_count(
    made: str, rankers: dict[str, Ranker]
) -> None:
    """With it and without it from one list; behind a list's end is padding."""
    whole = leaves_of(rankers[made].rank(HISTORIES, LEAVES.n_leaves))
    exclude = [leaves[:n] for leaves, n in zip(whole, (0, 1, 2, 3, 0, 12, 11, 2), strict=True)]
    exclude[2] = [*exclude[2], exclude[2][0]]  # named twice, left out once
    found = rankers[made].rank(HISTORIES, 2, exclude)
    for row, (leaves, gone) in enumerate(zip(whole, exclude, strict=True)):
        held = found.leaf_BK[row][found.leaf_BK[row] != NO_LEAF].tolist()
        assert held == leaves[: len(held)]
        assert len(held) <= 2 + len(set(gone))
        outside = [leaf for leaf in leaves if leaf not in gone][:2]
        assert found.leaf_BK[row, found.places_outside(exclude, 2)[row]].tolist() == outside
        behind = found.leaf_BK[row] == NO_LEAF
        assert (found.score_BK[row] == -np.inf).tolist() == behind.tolist()
    plain = rankers[made].rank(HISTORIES, 2)
    assert [len(p) for p in plain.places_outside((), 1)] == [1] * len(HISTORIES)


@EVERY
def test_neighbours_and_order_change_no_list(made: str, rankers: dict[str, Ranker]) -> None:
    """Neither the padding that a longer neighbour brings, nor a place in the batch."""
    together = rankers[made].rank(HISTORIES, 4)
    alone = [rankers[made].rank([history], 4) for history in HISTORIES]
    backwards = rankers[made].rank(HISTORIES[::-1], 4)
    for row, one in enumerate(alone):
        np.testing.assert_allclose(one.score_BK[0], together.score_BK[row], atol=1e-5)
    assert [leaves_of(one)[0] for one in alone] == leaves_of(together)
    assert leaves_of(backwards)[::-1] == leaves_of(together)


@EVERY
def test_nothing_asked_is_nothing_found(made: str, rankers: dict[str, Ranker]) -> None:
    assert rankers[made].rank([], 3).leaf_BK.shape[0] == 0
    assert rankers[made].score([], np.empty((0, 2), np.int64)).shape == (0, 2)


@EVERY
def test_progress_counts_every_history_once(made: str, rankers: dict[str, Ranker]) -> None:
    done: list[int] = []
    rankers[made].rank(HISTORIES, 2, (), done.append)
    assert sum(done) == len(HISTORIES)


@EVERY
def test_scores_of_items_are_those_of_the_lists(made: str, rankers: dict[str, Ranker]) -> None:
    """Of one candidate and of many; two items of an entry have one score; no penalty."""
    items = np.array([[item, 3, 12] for item in range(len(HISTORIES))])
    scored = rankers[made].score(HISTORIES, items)
    assert scored.dtype == np.float64
    np.testing.assert_allclose(scored[:, 1], scored[:, 2], rtol=1e-6)
    np.testing.assert_allclose(
        rankers[made].score(HISTORIES, items[:, :1]), scored[:, :1], rtol=1e-5
    )
    found = rankers[made].rank(HISTORIES, LEAVES.n_leaves)
    penalty = 4**0.5 if rankers[made].scored_by is ScoredBy.PENALISED else 1.0
    for row, wanted in enumerate(LEAVES.leaf_of_item_I[items]):
        at = [found.leaf_BK[row].tolist().index(leaf) for leaf in wanted]
        expected = found.score_BK[row, at] * penalty
        np.testing.assert_allclose(scored[row], expected, rtol=1e-4, atol=1e-6)


@EVERY
def test_scores_of_all_entries_are_those_of_the_lists(
    made: str, rankers: dict[str, Ranker]
) -> None:
    score_BL = np.asarray(rankers[made].score_all(HISTORIES))
    found = rankers[made].rank(HISTORIES, LEAVES.n_leaves)
    assert score_BL.shape == (len(HISTORIES), LEAVES.n_leaves)
    listed = np.take_along_axis(score_BL, found.leaf_BK, axis=1)
    np.testing.assert_allclose(listed, found.score_BK, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["pop", "itemknn", "sasrec"])
def test_a_guided_list_is_the_sorted_sum(name: str) -> None:
    ranker = guided(conventional(name), weight=1.5)
    log_prob_BL = log_probabilities(ranker.guide.score_all(HISTORIES), ranker.guide.scored_by)
    joined_BL = ranker.language.score_all(HISTORIES) + 1.5 * log_prob_BL.numpy()
    found = ranker.rank(HISTORIES, 5)
    assert found.leaf_BK.tolist() == np.argsort(-joined_BL, axis=1, kind="stable")[:, :5].tolist()
    assert leaves_of(found) != leaves_of(ranker.language.rank(HISTORIES, 5))
    unguided = guided(conventional(name), weight=0.0).rank(HISTORIES, 5)
    alone = ranker.language.rank(HISTORIES, 5)
    assert (unguided.leaf_BK == alone.leaf_BK).all()
    assert (unguided.score_BK == alone.score_BK).all()


@EVERY
def test_log_probabilities_are_of_one_distribution(made: str, rankers: dict[str, Ranker]) -> None:
    """Over the whole catalogue, where a Ranker says so and illegal tokens leave before."""
    found = rankers[made].rank(HISTORIES, LEAVES.n_leaves)
    total = np.exp(found.score_BK.astype(np.float64)).sum(1)
    if rankers[made].scored_by is ScoredBy.LOG_PROBABILITY and made != "after":
        np.testing.assert_allclose(total, 1, rtol=1e-4)
    else:
        assert not np.allclose(total, 1, rtol=1e-4)


@EVERY
def test_lists_of_the_whole_order_are_proven(made: str, rankers: dict[str, Ranker]) -> None:
    found = rankers[made].rank(HISTORIES, 3)
    assert found.proven_B.shape == (len(HISTORIES),)
    if made != "beam":
        assert found.proven_B.all()


@pytest.mark.parametrize("name", baseline_names())
def test_a_conventional_model_that_knows_nothing_ranks_as_pop(
    name: str,
) -> None:
    """Equal scores go to the more popular entry."""
    ranker = conventional(name)
    if isinstance(ranker, FullScoreRanker):
        score_all = ranker.score_all
        ranker = FullScoreRanker(lambda h: 0 * score_all(h), LEAVES, ranker.scored_by)
    pop = conventional("pop").rank(HISTORIES, 7)
    assert leaves_of(ranker.rank(HISTORIES, 7)) == leaves_of(pop)
    assert leaves_of(pop)[0] == LEAVES.by_popularity_L[:7].tolist()


@pytest.mark.parametrize("search", ["exact", "beam", "all"])
def test_a_language_model_that_knows_nothing_ranks_by_leaf(search: Any) -> None:
    """Every entry has two, three and two legal tokens on its way: all are equally likely."""
    ranker = language_model(search=search, beams=12)
    with torch.no_grad():
        ranker.model.get_output_embeddings().weight.zero_()
    found = ranker.rank(HISTORIES[:2], 5)
    assert leaves_of(found) == [[0, 1, 2, 3, 4]] * 2
    assert np.ptp(found.score_BK) == 0


def test_a_language_models_lists_are_its_sorted_scores() -> None:
    ranker = language_model()
    prompts = [prompt.tolist() for prompt in ranker.encode(HISTORIES)]
    score_BL = score_all(ranker.model, TRIE, prompts, ranker.options).numpy()
    found = ranker.rank(HISTORIES, 5)
    assert found.leaf_BK.tolist() == np.argsort(-score_BL, axis=1)[:, :5].tolist()
    assert leaves_of(ranker.searching("beam").rank(HISTORIES, 5)) == leaves_of(found)


def test_what_cannot_be_ranked_is_said() -> None:
    ranker = language_model()
    with pytest.raises(DataError, match="exclude row 1: leaf 99"):
        ranker.rank([[1], [2]], 2, [[0], [99]])
    with pytest.raises(DataError, match="exclude has 1 rows"):
        ranker.rank([[1], [2]], 2, [[0]])
    for name in ("pop", "itemknn", "sasrec"):
        with pytest.raises(DataError, match="exclude row 1: leaf 99"):
            conventional(name).rank([[1], [2]], 2, [[0], [99]])
        with pytest.raises(DataError, match="exclude has 1 rows"):
            conventional(name).rank([[1], [2]], 2, [[0]])
    with pytest.raises(RecipeError, match="length_penalty"):
        language_model(search="beam", length_penalty=0.5).searching("exact")
    with pytest.raises(NumbersError, match="NaN"):
        rank_scores(np.array([[0.0, np.nan]]), np.array([1, 0]), 1)


def test_more_histories_than_are_scored_at_once() -> None:
    ranker = conventional("itemknn")
    many = [HISTORIES[n % len(HISTORIES)] for n in range(2 * ROWS_AT_ONCE + 3)]
    found, few = leaves_of(ranker.rank(many, 3)), leaves_of(ranker.rank(HISTORIES, 3))
    assert found == [few[n % len(few)] for n in range(len(many))]
    items = np.arange(len(many))[:, None] % len(CATALOGUE)
    assert ranker.score(many, items)[-1] == ranker.score(many[-1:], items[-1:])[0]


def test_rank_scores_by_hand() -> None:
    """Order of ties 2, 0, 1, 3; the best two of each row."""
    scores = np.array([[1.0, 3.0, 1.0, 0.0], [2.0, 2.0, 2.0, 5.0]])
    leaf_BK, score_BK = rank_scores(scores, np.array([2, 0, 1, 3]), 2)
    assert leaf_BK.tolist() == [[1, 2], [3, 2]]
    assert score_BK.tolist() == [[3, 1], [5, 2]]


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_batches_are_of_like_length_and_hold_every_row_once(size: int) -> None:
    lengths = [4, 1, 4, 2, 1, 9, 2]
    batches = list(batches_by_length(lengths, size))
    assert [row for batch in batches for row in batch] == [1, 4, 3, 6, 0, 2, 5]
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert list(batches_by_length([], size)) == []


def test_leaves_of_the_catalogue_are_the_tries() -> None:
    """What the battery stands on: two items share an entry with another."""
    assert (LEAVES.n_items, LEAVES.n_leaves) == (14, TRIE.n_leaves)
    assert isinstance(LEAVES, CatalogueEntries)
