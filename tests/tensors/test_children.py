"""Children's log-probabilities against a dense float64 softmax."""

from __future__ import annotations

import pytest
import torch

from llmrec_cli.tensors import trie as children
from llmrec_cli.tensors.trie import (
    NONE,
    Scorer,
    build_trie,
    child_log_probs,
    edges_of,
    forced_log_probs,
)

VOCAB, WIDTH = 50, 16


def scorer(over_vocab: bool, bias: bool, temperature: float, dtype: torch.dtype) -> Scorer:
    draw = torch.Generator().manual_seed(0)
    items = torch.randint(2, VOCAB, (60, 3), generator=draw).tolist()
    return Scorer(
        build_trie([[*item, 1] for item in items]),
        torch.randn(VOCAB, WIDTH, generator=draw).to(dtype),
        torch.randn(VOCAB, generator=draw).to(dtype) if bias else None,
        temperature,
        over_vocab,
    )


@pytest.mark.slow
@pytest.mark.parametrize("over_vocab", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gather_cost", [0, 10**9])  # always edge by edge, always one gemm
@pytest.mark.parametrize("at_once", [1 << 24, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_child_log_probs_equal_a_dense_softmax(
    monkeypatch: pytest.MonkeyPatch,
    over_vocab: bool,
    bias: bool,
    gather_cost: int,
    at_once: int,
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr(children, "_GATHER_COST", gather_cost)
    monkeypatch.setattr(children, "_LOGITS_AT_ONCE", at_once)
    made = scorer(over_vocab, bias, 0.7, dtype)
    trie = made.trie
    inner = torch.arange(trie.n_nodes)[trie.leaf_of_node_N < 0].repeat(2)
    hidden = torch.randn(len(inner), WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    log_prob_PF, child_PF = child_log_probs(made, hidden, inner)

    logits = hidden.double() @ made.weight_VD.double().T
    if made.bias_V is not None:
        logits = logits + made.bias_V.double()
    for row, node in enumerate(inner):
        edges, _ = edges_of(trie, node[None])
        legal = trie.edge_token_E[edges].long()
        among = logits[row] if over_vocab else logits[row, legal]
        expected = logits[row, legal] / 0.7 - (among / 0.7).logsumexp(0)
        n = len(edges)
        assert torch.equal(child_PF[row, :n], edges + 1)
        assert (child_PF[row, n:] == NONE).all()
        torch.testing.assert_close(log_prob_PF[row, :n], expected.float(), atol=1e-5, rtol=1e-5)
        assert log_prob_PF[row, n:].isneginf().all()
    assert (log_prob_PF <= 0).all()


def test_forced_log_probs_are_the_only_childs() -> None:
    made = scorer(True, True, 2.0, torch.float32)
    node = torch.arange(made.trie.n_nodes)
    node = node[made.trie.fan_out(node) == 1]
    hidden = torch.randn(len(node), WIDTH)
    expected, _ = child_log_probs(made, hidden, node)
    torch.testing.assert_close(forced_log_probs(made, hidden, node), expected[:, 0])


def test_nothing_to_score_is_no_children() -> None:
    made = scorer(False, False, 1.0, torch.float32)
    log_prob, child = child_log_probs(
        made, torch.empty(0, WIDTH), torch.empty(0, dtype=torch.int64)
    )
    assert log_prob.numel() == child.numel() == 0


def test_large_logits_at_a_low_temperature_do_not_overflow() -> None:
    made = scorer(True, False, 1e-3, torch.float32)
    log_prob, _ = child_log_probs(made, torch.full((1, WIDTH), 9.0), torch.tensor([0]))
    assert not log_prob.isnan().any()


def test_scores_only_fall_even_where_rounding_would_lift_them() -> None:
    made = scorer(True, False, 0.05, torch.float32)  # nearly all mass on one token
    nodes = torch.zeros(4000, dtype=torch.int64)
    hidden = 5 * torch.randn(4000, WIDTH, generator=torch.Generator().manual_seed(3))
    log_prob, _ = child_log_probs(made, hidden, nodes)
    assert (log_prob <= 0).all()
    assert (log_prob == 0).any()
    node = torch.arange(made.trie.n_nodes)[made.trie.fan_out(torch.arange(made.trie.n_nodes)) == 1]
    forced = forced_log_probs(made, hidden[: len(node)], node)
    assert (forced <= 0).all()
