"""Legal-token logits against dense masks over the vocabulary, in float64 and plain loops."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llmrec_cli.tensors.legal_softmax import LegalLogits, legal_logits
from llmrec_cli.tensors.trie import Trie, build_trie, edges_of, paths

V, D, EOS = 40, 8, 2


@dataclass(frozen=True)
class Weights:
    weight_VD: Tensor
    bias_V: Tensor | None = None


def random_catalogue(seed: int, n_items: int = 30) -> list[list[int]]:
    """Prefixes of each other, duplicates, single tokens, an empty title, long forced tails."""
    draw = random.Random(seed)
    items = [[draw.randrange(3, 9) for _ in range(draw.randrange(1, 5))] for _ in range(n_items)]
    items += [items[0], items[0][:1], [30], []]
    items += [[31, *(draw.randrange(10, 30) for _ in range(6))]]
    return [[*item, EOS] for item in items]


def positions(trie: Trie, leaves: Tensor) -> tuple[Tensor, Tensor]:
    """Trie node and target of every response position of the given leaves."""
    node_BT, token_BT, _ = paths(trie, leaves)
    return node_BT[node_BT >= 0], token_BT[node_BT >= 0]


def draw_problem(
    seed: int, *, bias: bool = False, dtype: torch.dtype = torch.float64, width: int = D
) -> tuple[Trie, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    torch.manual_seed(seed)
    trie = build_trie(random_catalogue(seed))
    node_P, target_P = positions(trie, torch.randint(trie.n_leaves, (6,)))
    hidden_PD = torch.randn(len(node_P), width, dtype=dtype, requires_grad=True)
    weight_VD = torch.randn(V, width, dtype=dtype, requires_grad=True)
    bias_V = torch.randn(V, dtype=dtype, requires_grad=True) if bias else None
    return trie, node_P, target_P, hidden_PD, weight_VD, bias_V


def legal_tokens(trie: Trie, node: int) -> list[int]:
    edges, _ = edges_of(trie, torch.tensor([node]))
    return [int(token) for token in trie.edge_token_E[edges]]


def dense_nll(
    trie: Trie,
    node_P: Tensor,
    target_P: Tensor,
    hidden_PD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    tau: float,
) -> Tensor:
    """The obvious way: all logits of a position, -inf at illegal tokens, log-softmax."""
    losses = []
    for p in range(len(node_P)):
        logits = weight_VD.double() @ hidden_PD[p].double()
        if bias_V is not None:
            logits = logits + bias_V.double()
        mask = torch.full((V,), -math.inf, dtype=torch.float64)
        mask[legal_tokens(trie, int(node_P[p]))] = 0
        losses.append(-torch.log_softmax(logits / tau + mask, 0)[target_P[p]])
    return torch.stack(losses)


def removed_nll(
    trie: Trie, node_P: Tensor, target_P: Tensor, hidden_PD: Tensor, weight_VD: Tensor, tau: float
) -> Tensor:
    """Illegal columns are taken out of the head before anything is computed."""
    losses = []
    for p in range(len(node_P)):
        legal = legal_tokens(trie, int(node_P[p]))
        logits = weight_VD.double()[legal] @ hidden_PD[p].double() / tau
        losses.append(logits.logsumexp(0) - logits[legal.index(int(target_P[p]))])
    return torch.stack(losses)


def relative(a: Tensor | None, b: Tensor | None) -> float:
    assert a is not None
    assert b is not None
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dense_head", [False, True])
@pytest.mark.parametrize("tau", [1.0, 4.5, 0.3])
def test_loss_and_gradients_equal_the_dense_reference(
    bias: bool, dense_head: bool, tau: float
) -> None:
    for seed in range(3):
        trie, node_P, target_P, hidden, weight, b = draw_problem(
            seed, bias=bias, dtype=torch.float32
        )
        leaves = [hidden, weight] + ([b] if b is not None else [])
        expected = dense_nll(trie, node_P, target_P, hidden, weight, b, tau)
        wanted = torch.autograd.grad(expected.sum(), leaves)
        legal = legal_logits(
            hidden, Weights(weight, b), trie, node_P, target_P, dense_head=dense_head
        )
        nll_A = legal.nll(tau)
        assert nll_A.dtype == torch.float32
        assert (nll_A - expected[legal.active_A]).abs().max() < 1e-5
        assert relative(nll_A.detach().sum(), expected.detach().sum()) < 1e-6
        nll_A.sum().backward()
        for leaf, gradient in zip(leaves, wanted, strict=True):
            assert relative(leaf.grad, gradient) < 1e-5


def test_forced_positions_lose_nothing_and_are_not_computed() -> None:
    trie, node_P, target_P, hidden, weight, _ = draw_problem(0)
    legal = legal_logits(hidden, Weights(weight), trie, node_P, target_P)
    forced = torch.ones(len(node_P), dtype=torch.bool)
    forced[legal.active_A] = False
    assert forced.any()
    assert torch.equal(forced, trie.fan_out(node_P) == 1)
    expected = dense_nll(trie, node_P, target_P, hidden, weight, None, 1.0)
    assert expected[forced].abs().max() == 0


def test_masked_equals_removed() -> None:
    trie, node_P, target_P, hidden, weight, _ = draw_problem(1)
    legal = legal_logits(hidden, Weights(weight), trie, node_P, target_P)
    removed = removed_nll(trie, node_P, target_P, hidden, weight, 1.7)
    torch.testing.assert_close(legal.nll(1.7), removed[legal.active_A], rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad(removed.sum(), [hidden, weight])
    legal.nll(1.7).sum().backward()
    assert relative(hidden.grad, wanted[0]) < 1e-12
    assert relative(weight.grad, wanted[1]) < 1e-12


def test_columns_are_the_union_of_legal_tokens_and_no_more() -> None:
    trie, node_P, target_P, hidden, weight, _ = draw_problem(2)
    legal = legal_logits(hidden, Weights(weight), trie, node_P, target_P)
    union = {t for node in legal.node_A.tolist() for t in legal_tokens(trie, node)}
    assert legal.columns_U.tolist() == sorted(union)
    assert len(legal.legal_NU) == len(set(legal.node_A.tolist()))
    for row, node in zip(legal.legal_AU(), legal.node_A.tolist(), strict=True):
        assert legal.columns_U[row].tolist() == legal_tokens(trie, node)


def test_log_probs_are_normalised_over_legal_tokens() -> None:
    trie, node_P, target_P, hidden, weight, _ = draw_problem(3)
    legal = legal_logits(hidden, Weights(weight), trie, node_P, target_P)
    log_probs_AU = legal.log_probs(2.0)
    assert torch.equal(log_probs_AU == -math.inf, ~legal.legal_AU())
    torch.testing.assert_close(log_probs_AU.exp().sum(1), torch.ones(len(legal.active_A)).double())
    chosen = log_probs_AU.gather(1, legal.target_A[:, None]).squeeze(1)
    torch.testing.assert_close(chosen, -legal.nll(2.0))


def test_leading_layer_dimensions_are_one_stacked_product() -> None:
    trie, node_P, target_P, _, weight, _ = draw_problem(4)
    hidden_LPD = torch.randn(3, len(node_P), D, dtype=torch.float64)
    stacked = legal_logits(hidden_LPD, Weights(weight), trie, node_P, target_P)
    for layer in range(3):
        one = legal_logits(hidden_LPD[layer], Weights(weight), trie, node_P, target_P)
        torch.testing.assert_close(stacked.logits_AU[layer], one.logits_AU)
        torch.testing.assert_close(stacked.nll(1.3)[layer], one.nll(1.3))
        torch.testing.assert_close(stacked.target_logits()[layer], one.target_logits())


@pytest.mark.parametrize("dense_head", [False, True])
def test_gradcheck(dense_head: bool) -> None:
    trie, node_P, target_P, hidden, weight, bias = draw_problem(5, bias=True, width=2)

    def total(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return legal_logits(h, Weights(w, b), trie, node_P, target_P, dense_head=dense_head).nll(
            1.5
        )

    assert bias is not None
    inputs = (hidden, weight, bias)
    assert torch.autograd.gradcheck(total, inputs)
    if dense_head:
        assert torch.autograd.gradgradcheck(total, inputs, fast_mode=True)


def test_a_loss_beyond_the_range_of_exp_is_finite() -> None:
    trie, node_P, target_P, hidden, weight, _ = draw_problem(6, dtype=torch.float32)
    large = hidden.detach().mul(200).requires_grad_()
    legal = legal_logits(large, Weights(weight), trie, node_P, target_P)
    naive = torch.log((legal.logits_AU.exp() * legal.legal_AU()).sum(1))
    assert not naive.isfinite().all()  # what the shift inside logsumexp is for
    expected = dense_nll(trie, node_P, target_P, large, weight, None, 1.0)[legal.active_A]
    torch.testing.assert_close(legal.nll().double(), expected, rtol=1e-5, atol=1e-3)
    legal.nll().sum().backward()
    assert large.grad is not None
    assert weight.grad is not None
    assert large.grad.isfinite().all()
    assert weight.grad.isfinite().all()


# The gradient of a trained head, however its .grad is filled


@pytest.mark.parametrize("start", ["none", "zeros"])
@pytest.mark.parametrize("tied", [False, True])
def test_gradients_accumulate_over_micro_batches(start: str, tied: bool) -> None:
    torch.manual_seed(0)
    trie = build_trie(random_catalogue(0))
    weight = nn.Parameter(torch.randn(V, D, dtype=torch.float64))
    copy = weight.detach().clone().requires_grad_()
    if start == "zeros":
        weight.grad = torch.zeros_like(weight)
    for _ in range(3):
        node_P, target_P = positions(trie, torch.randint(trie.n_leaves, (4,)))
        hidden = torch.randn(len(node_P), D, dtype=torch.float64)
        ours, reference = (
            hidden + nn.functional.embedding(target_P.roll(1), w) if tied else hidden
            for w in (weight, copy)
        )
        legal_logits(ours, Weights(weight), trie, node_P, target_P).nll().sum().backward()
        dense_nll(trie, node_P, target_P, reference, copy, None, 1.0).sum().backward()
        assert weight.grad is not None
        assert weight.grad.layout == torch.strided
        assert relative(weight.grad, copy.grad) < 1e-12


def test_two_losses_in_one_backward_pass_add_up() -> None:
    trie, node_P, target_P, hidden, weight, _ = draw_problem(7)
    (wanted,) = torch.autograd.grad(
        dense_nll(trie, node_P, target_P, hidden, weight, None, 1.0).sum() * 3, weight
    )
    for _ in range(2):  # with .grad None, then present
        first = legal_logits(hidden, Weights(weight), trie, node_P, target_P).nll().sum()
        second = legal_logits(hidden, Weights(weight), trie, node_P, target_P).nll().sum()
        before = 0 if weight.grad is None else weight.grad.clone()
        (first + 2 * second).backward()
        assert weight.grad is not None
        assert relative(weight.grad - before, wanted) < 1e-12


def test_an_existing_gradient_is_added_to_in_place_row_by_row() -> None:
    trie, node_P, target_P, hidden, weight, _ = draw_problem(8)
    weight.grad = torch.zeros_like(weight)
    layouts: list[torch.layout] = []
    weight.register_hook(lambda gradient: layouts.append(gradient.layout))
    storage = weight.grad.data_ptr()
    legal = legal_logits(hidden, Weights(weight), trie, node_P, target_P)
    legal.nll().sum().backward()
    assert weight.grad.data_ptr() == storage
    assert layouts == [torch.sparse_coo]  # no second V x D tensor was built
    untouched = torch.ones(V, dtype=torch.bool)
    untouched[legal.columns_U] = False
    assert weight.grad[untouched].abs().max() == 0


def test_hooks_on_the_parameter_see_the_gradient() -> None:
    trie, node_P, target_P, hidden, weight, _ = draw_problem(9)
    seen: list[Tensor] = []
    weight.register_hook(lambda gradient: seen.append(gradient.to_dense()))
    for _ in range(2):
        weight_grad = weight.grad.clone() if weight.grad is not None else torch.zeros_like(weight)
        legal_logits(hidden, Weights(weight), trie, node_P, target_P).nll().sum().backward()
        assert weight.grad is not None
        torch.testing.assert_close(seen[-1], weight.grad - weight_grad)
    assert len(seen) == 2


@pytest.mark.parametrize("view", [False, True])
def test_data_parallelism_sees_the_gradient_of_a_tied_head(tmp_path: Path, view: bool) -> None:
    """Its reducer waits for every parameter's own accumulation; one process shows that it fires."""
    trie = build_trie(random_catalogue(0))
    torch.manual_seed(0)
    model = nn.Embedding(V, D, dtype=torch.float64)
    copy = model.weight.detach().clone().requires_grad_()
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=view)
        for _ in range(3):
            node_P, target_P = positions(trie, torch.randint(trie.n_leaves, (4,)))
            hidden_PD = parallel(target_P.roll(1))
            head = Weights(model.weight)
            legal_logits(hidden_PD, head, trie, node_P, target_P).nll().sum().backward()
            same_PD = nn.functional.embedding(target_P.roll(1), copy)
            dense_nll(trie, node_P, target_P, same_PD, copy, None, 1.0).sum().backward()
            assert relative(model.weight.grad, copy.grad) < 1e-12
        del parallel  # or its reducer ends the group later, and may wait for ever for the GIL
    finally:
        torch.distributed.destroy_process_group()


def test_a_frozen_head_gets_no_gradient() -> None:
    trie, node_P, target_P, hidden, weight, _ = draw_problem(10)
    frozen = weight.detach()
    expected = dense_nll(trie, node_P, target_P, hidden, frozen, None, 1.0).sum()
    (wanted,) = torch.autograd.grad(expected, hidden)
    legal_logits(hidden, Weights(frozen), trie, node_P, target_P).nll().sum().backward()
    assert frozen.grad is None
    assert relative(hidden.grad, wanted) < 1e-12


def test_a_computed_head_passes_its_gradient_on() -> None:
    """A LoRA-merged head is no leaf: its gradient belongs to what it was computed from."""
    trie, node_P, target_P, hidden, base, _ = draw_problem(11)
    low = torch.randn(V, 2, dtype=torch.float64, requires_grad=True)
    rank = torch.randn(2, D, dtype=torch.float64, requires_grad=True)
    merged = base.detach() + low @ rank
    expected = dense_nll(trie, node_P, target_P, hidden, merged, None, 1.0).sum()
    wanted = torch.autograd.grad(expected, [low, rank])
    again = base.detach() + low @ rank
    legal_logits(hidden, Weights(again), trie, node_P, target_P).nll().sum().backward()
    assert relative(low.grad, wanted[0]) < 1e-12
    assert relative(rank.grad, wanted[1]) < 1e-12


def test_bf16_hidden_states_and_weights_give_an_fp32_loss() -> None:
    trie, node_P, target_P, hidden, weight, _ = draw_problem(12, dtype=torch.float32)
    exact = dense_nll(trie, node_P, target_P, hidden, weight, None, 1.0).sum()
    half, master = hidden.detach().bfloat16().requires_grad_(), weight.detach().clone()
    for head in (master.requires_grad_(), master.detach().bfloat16().requires_grad_()):
        nll_A = legal_logits(half, Weights(head), trie, node_P, target_P).nll()
        nll_A.sum().backward()
        assert nll_A.dtype == torch.float32
        assert head.grad is not None
        assert head.grad.dtype == head.dtype
        torch.testing.assert_close(nll_A.sum().double(), exact, rtol=0.02, atol=0)


def test_autocast_multiplies_in_half_precision() -> None:
    trie, node_P, target_P, hidden, weight, _ = draw_problem(13, dtype=torch.float32)
    exact = dense_nll(trie, node_P, target_P, hidden, weight, None, 1.0).sum()
    with torch.autocast("cpu", torch.bfloat16):
        nll_A = legal_logits(hidden, Weights(weight), trie, node_P, target_P).nll()
    nll_A.sum().backward()
    assert nll_A.dtype == torch.float32
    torch.testing.assert_close(nll_A.sum().double(), exact, rtol=0.02, atol=0)


@pytest.mark.parametrize("case", ["all forced", "empty"])
@pytest.mark.parametrize("dense_head", [False, True])
def test_nothing_to_choose_gives_a_connected_zero(case: str, dense_head: bool) -> None:
    trie = build_trie([[5, 6, 7, EOS]])
    node_P, target_P = positions(trie, torch.tensor([0] if case == "all forced" else []).long())
    hidden = torch.randn(len(node_P), D, requires_grad=True)
    weight = nn.Parameter(torch.randn(V, D))
    legal = legal_logits(hidden, Weights(weight), trie, node_P, target_P, dense_head=dense_head)
    assert legal.logits_AU.shape == (0, 0)
    assert legal.log_probs().shape == (0, 0)
    total = legal.nll().sum()
    total.backward()
    assert float(total.detach()) == 0
    for leaf in (hidden, weight):
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_an_illegal_target_is_named() -> None:
    trie = build_trie([[5, 7, EOS], [6, 8, EOS], [6, 9, EOS]])
    node_P, target_P = positions(trie, torch.tensor([1]))
    hidden, head = torch.randn(3, D), Weights(torch.randn(V, D))
    for wrong in (7, 39, 0):  # legal elsewhere, above and below all legal tokens
        bad = target_P.clone()
        bad[1] = wrong
        with pytest.raises(ValueError, match=f"position 1: token {wrong} is not legal at trie nod"):
            legal_logits(hidden, head, trie, node_P, bad)


# The catalogue's distribution


@pytest.mark.parametrize("seed", range(4))
def test_with_tau_1_the_probabilities_of_all_items_sum_to_1(seed: int) -> None:
    """Random logits at every node; the catalogue has prefixes, duplicates and single tokens."""
    torch.manual_seed(seed)
    trie = build_trie(random_catalogue(seed))
    node_BT, token_BT, length_B = paths(trie, torch.arange(trie.n_leaves))
    hidden_ND = 3 * torch.randn(trie.n_nodes, D, dtype=torch.float64)  # one prompt: state by prefix
    head = Weights(torch.randn(V, D, dtype=torch.float64))
    inside = node_BT >= 0
    node_P, target_P = node_BT[inside], token_BT[inside]

    def total_probability(tau: float, legal: LegalLogits) -> float:
        leaf_P = torch.repeat_interleave(length_B)
        log_p = torch.zeros(trie.n_leaves, dtype=torch.float64)
        return float(log_p.index_add(0, leaf_P[legal.active_A], -legal.nll(tau)).exp().sum())

    legal = legal_logits(hidden_ND[node_P], head, trie, node_P, target_P)
    assert total_probability(1.0, legal) == pytest.approx(1, abs=1e-12)
    assert total_probability(2.0, legal) == pytest.approx(1, abs=1e-12)  # normalised at each node


@given(st.integers(0, 2**16), st.floats(0.2, 5), st.floats(-30, 30))
@settings(max_examples=25, deadline=None)
def test_drawn_catalogues_equal_the_dense_mask_and_know_no_shift(
    seed: int, tau: float, shift: float
) -> None:
    trie, node_P, target_P, hidden, weight, bias = draw_problem(seed, bias=True)
    assert bias is not None
    legal = legal_logits(hidden, Weights(weight, bias), trie, node_P, target_P)
    expected = dense_nll(trie, node_P, target_P, hidden, weight, bias, tau)
    torch.testing.assert_close(legal.nll(tau), expected[legal.active_A], rtol=1e-9, atol=1e-9)
    beside = legal_logits(hidden, Weights(weight, bias + shift), trie, node_P, target_P)
    torch.testing.assert_close(beside.nll(tau), legal.nll(tau), rtol=1e-9, atol=1e-9)
    half = len(node_P) // 2
    parts = [
        legal_logits(hidden[at], Weights(weight, bias), trie, node_P[at], target_P[at]).nll(tau)
        for at in (slice(half), slice(half, None))
    ]
    torch.testing.assert_close(sum(part.sum() for part in parts), legal.nll(tau).sum())
