"""The pure steps of the searches: order, bounds, Hugging Face's bookkeeping."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmrec_cli.tensors.beam_search import (
    NONE,
    FinishedBeams,
    Open,
    add_finished,
    add_open,
    beam_step,
    chain_nodes,
    cut_after_kth,
    forced_chains,
    keep_best,
    kth_score,
    no_finished,
    no_open,
)
from llmrec_cli.tensors.trie import Trie, build_trie
from tests.tensors.trie_walk import walk

CPU = torch.device("cpu")
INF = torch.inf


@pytest.fixture
def trie() -> Trie:
    """Root - 2 - 3 - (4 - 1 | 5 - 6 - 1); everything down to 3 is forced."""
    return build_trie([[2, 3, 4, 1], [2, 3, 5, 6, 1]])


def test_chains_are_made_once_per_catalogue() -> None:
    trie, other = (build_trie([[5, 6, 2], [5, 7, 2]]) for _ in range(2))
    assert forced_chains(trie) is forced_chains(trie.to("cpu"))
    assert forced_chains(other) is not forced_chains(trie)


def test_forced_chains_end_at_a_choice_or_a_leaf_and_start_below_one(trie: Trie) -> None:
    chains = forced_chains(trie)
    at = {path: walk(trie, path) for path in [(), (2,), (2, 3), (2, 3, 4), (2, 3, 5), (2, 3, 5, 6)]}
    leaf_4, leaf_6 = walk(trie, [2, 3, 4, 1]), walk(trie, [2, 3, 5, 6, 1])
    ends = {path: int(chains.end_N[node]) for path, node in at.items()}
    choice = at[2, 3]
    assert ends == {
        (): choice,
        (2,): choice,
        (2, 3): choice,
        (2, 3, 4): leaf_4,
        (2, 3, 5): leaf_6,
        (2, 3, 5, 6): leaf_6,
    }
    assert int(chains.head_N[choice]) == at[(2,)]
    assert int(chains.head_N[leaf_6]) == at[2, 3, 5]
    assert int(chains.head_N[leaf_4]) == at[2, 3, 4]
    lengths = {path: int(chains.length_N[node]) for path, node in at.items()}
    assert lengths == {(): 3, (2,): 2, (2, 3): 1, (2, 3, 4): 2, (2, 3, 5): 3, (2, 3, 5, 6): 2}


def test_chain_nodes_are_padded_behind_short_and_missing_chains(trie: Trie) -> None:
    first = torch.tensor([[walk(trie, [2, 3, 5]), walk(trie, [2, 3, 4]), NONE]])
    last = torch.tensor([[walk(trie, [2, 3, 5, 6]), walk(trie, [2, 3, 4]), NONE]])
    nodes = chain_nodes(trie, first, last)
    assert nodes.tolist() == [
        [[int(first[0, 0]), int(last[0, 0])], [int(first[0, 1]), -1], [-1, -1]]
    ]


def test_best_breaks_ties_by_leaf_index_also_at_its_edge() -> None:
    score = torch.tensor([[1.0, 3.0, 1.0, 1.0, -INF, 1.0]])
    leaf = torch.tensor([[9, 4, 2, 7, 0, 3]])
    scores, leaves = keep_best(score, leaf, 3)
    assert leaves.tolist() == [[4, 2, 3]]
    assert scores.tolist() == [[3.0, 1.0, 1.0]]


def test_best_equals_a_sorted_list_on_random_ties() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        score = torch.randint(-3, 0, (4, 30), generator=draw).float()
        score[torch.rand(4, 30, generator=draw) < 0.4] = -INF
        leaf = torch.stack([torch.randperm(100, generator=draw)[:30] for _ in range(4)])
        scores, leaves = keep_best(score, leaf, 7)
        for row in range(4):
            pairs = sorted(zip((-score[row]).tolist(), leaf[row].tolist(), strict=True))
            expected = [pair for pair in pairs if pair[0] < INF][:7]
            n_real = len(expected)
            assert leaves[row].tolist() == [x for _, x in expected] + [NONE] * (7 - n_real)
            assert scores[row, n_real:].isneginf().all()


def finished(scores: list[float], leaves: list[int]) -> FinishedBeams:
    return FinishedBeams(torch.tensor([scores]), torch.tensor([leaves]))


def test_the_kth_score_counts_only_leaves_that_are_not_excluded() -> None:
    listed = finished([-1.0, -2.0, -3.0, -4.0, -INF], [8, 5, 6, 1, NONE])
    none = torch.empty((1, 0), dtype=torch.int64)
    assert kth_score(listed, none, 2).item() == -2
    assert kth_score(listed, torch.tensor([[5, 8, -2]]), 2).item() == -4
    assert kth_score(listed, torch.tensor([[5, 8, -2]]), 3).item() == -INF
    assert kth_score(listed, none, 5).item() == -INF


def test_a_list_is_cut_after_the_kth_leaf_that_counts() -> None:
    listed = finished([-1.0, -2.0, -3.0, -4.0], [8, 5, 6, 1])
    cut = cut_after_kth(listed, torch.tensor([[8, 6]]), 1)
    assert cut.leaf_BK.tolist() == [[8, 5, NONE, NONE]]
    assert cut.score_BK.tolist() == [[-1.0, -2.0, -INF, -INF]]


def test_finished_lists_merge_and_keep_their_width() -> None:
    merged = add_finished(
        no_finished(1, 2, CPU), torch.tensor([[-3.0, -INF]]), torch.tensor([[4, 9]])
    )
    assert merged.leaf_BK.tolist() == [[4, NONE]]
    merged = add_finished(merged, torch.tensor([[-1.0, -3.0]]), torch.tensor([[5, 2]]))
    assert merged.leaf_BK.tolist() == [[5, 2]]


def prefixes(scores: list[list[float]]) -> Open:
    score = torch.tensor(scores)
    node = torch.arange(1, score.shape[1] + 1).expand(score.shape).clone()
    return Open(score, node, node + 10)


def test_open_prefixes_below_the_bound_are_dropped_and_equal_ones_kept() -> None:
    new = prefixes([[-5.0, -2.0, -3.0, -INF], [-1.0, -INF, -INF, -INF]])
    open_ = add_open(no_open(2, CPU), new, torch.tensor([-3.0, -INF]))
    assert open_.score_BM.tolist() == [[-2.0, -3.0], [-1.0, -INF]]
    assert open_.node_BM.tolist() == [[2, 3], [1, NONE]]
    assert open_.slot_BM.tolist() == [[12, 13], [11, NONE]]
    nothing = add_open(open_, prefixes([[-9.0], [-9.0]]), torch.tensor([0.0, 0.0]))
    assert nothing.score_BM.numel() == 0


def test_a_budget_of_tokens_pays_for_the_best_prefixes() -> None:
    found = prefixes([[-1.0, -2.0, -3.0], [-1.0, -2.0, -INF]])
    open_ = add_open(no_open(2, CPU), found, torch.tensor([-INF, -INF]))
    cost_BM = torch.tensor([[2, 3, 1], [1, 1, 0]])
    first, rest = open_.split(cost_BM, 2)
    assert first.node_BM.tolist() == [[1, NONE], [1, 2]]
    assert first.slot_BM.tolist() == [[11, NONE], [11, 12]]
    assert first.score_BM.tolist() == [[-1.0, -INF], [-1.0, -2.0]]
    assert rest.node_BM.tolist() == [[NONE, 2, 3], [NONE, NONE, NONE]]
    assert rest.score_BM.tolist() == [[-INF, -2.0, -3.0], [-INF, -INF, -INF]]


def test_where_a_best_prefix_is_beyond_the_budget_all_users_may_spend_as_much() -> None:
    open_ = prefixes([[-1.0, -2.0], [-1.0, -2.0]])
    first, rest = open_.split(torch.tensor([[4, 1], [1, 3]]), 2)
    assert first.node_BM.tolist() == [[1, NONE], [1, 2]]
    assert rest.node_BM.tolist() == [[NONE, 2], [NONE, NONE]]


def step(scores: list[float], leaves: list[int], n_beams: int, **how: float) -> tuple[Tensor, ...]:
    made = beam_step(
        no_finished(1, n_beams, CPU),
        prefixes([scores]),
        torch.tensor([leaves]),
        int(how.get("length", 1)),
        how.get("length_penalty", 0.0),
    )
    return made.running.node_BM, made.finished.leaf_BK, made.lost_B, made.done_B


def test_a_leaf_counts_only_among_the_first_k_of_the_2k_candidates() -> None:
    running, listed, lost, done = step([-1.0, -2.0, -3.0, -4.0, -5.0], [NONE, 7, 8, NONE, NONE], 2)
    assert running.tolist() == [[1, 4]]
    assert listed.tolist() == [[7, NONE]]
    assert lost.item() == -3.0  # leaf 8 was third: given up, like Hugging Face does
    assert not done.item()


def test_a_user_is_done_when_no_running_beam_beats_the_worst_of_a_full_list() -> None:
    *_, done = step([-1.0, -2.0, -2.0, -3.0], [6, 7, NONE, NONE], 2)
    assert done.item()
    *_, done = step([-1.0, -2.0, -1.5, -3.0], [6, 7, NONE, NONE], 2)
    assert not done.item()  # leaf 7 is third here: the list is not full


def test_length_divides_finished_scores_and_the_stopping_rule() -> None:
    full = finished([-0.5, -0.8], [1, 2])
    made = beam_step(full, prefixes([[-3.5, -9.0]]), torch.tensor([[NONE, NONE]]), 4, 1.0)
    assert made.done_B.item()  # -3.5 / 4 = -0.875 < -0.8
    made = beam_step(full, prefixes([[-3.0, -9.0]]), torch.tensor([[NONE, NONE]]), 4, 1.0)
    assert not made.done_B.item()
    made = beam_step(full, prefixes([[-3.0, -9.0]]), torch.tensor([[5, NONE]]), 4, 1.0)
    assert made.finished.leaf_BK.tolist() == [[1, 5]]
    assert made.finished.score_BK.tolist() == [[-0.5, -0.75]]
