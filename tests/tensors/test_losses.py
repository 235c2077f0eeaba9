"""Vocabulary losses against float64 loops; the adaptive temperature against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llmrec_cli.tensors.legal_softmax import LegalLogits
from llmrec_cli.tensors.losses import adaptive_temperature, choice_stats, vocab_nll

P, V, D = 11, 30, 6


def draw(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(P, D, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, dtype=dtype, requires_grad=True)
    bias = torch.randn(V, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(V, (P,)), bias


def reference(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> Tensor:
    losses = []
    for p in range(len(target)):
        logits = weight.double() @ hidden[p].double() + (0 if bias is None else bias.double())
        losses.append(-torch.log_softmax(logits, 0)[target[p]])
    return torch.stack(losses)


def relative(a: Tensor | None, b: Tensor) -> float:
    assert a is not None
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("rows", [1, 3, P, 100])
@pytest.mark.parametrize("with_bias", [False, True])
def test_vocab_nll_equals_the_reference_at_any_chunk(rows: int, with_bias: bool) -> None:
    hidden, weight, target, b = draw()
    bias = b if with_bias else None
    leaves = [hidden, weight, *([b] if with_bias else [])]
    expected = reference(hidden, weight, target, bias)
    scale = torch.linspace(0.5, 2, P)  # a gradient of its own for each position
    wanted = torch.autograd.grad((expected * scale).sum(), leaves)
    nll = vocab_nll(hidden, weight, target, bias, chunk=rows * V)
    (nll * scale).sum().backward()
    assert nll.dtype == torch.float32
    assert relative(nll.detach(), expected.detach()) < 1e-6
    for leaf, gradient in zip(leaves, wanted, strict=True):
        assert relative(leaf.grad, gradient) < 1e-5
    hidden.grad = None
    frozen = vocab_nll(
        hidden, weight.detach(), target, b.detach() if with_bias else None, chunk=rows * V
    )
    (frozen * scale).sum().backward()
    assert relative(frozen.detach(), expected.detach()) < 1e-6
    assert relative(hidden.grad, wanted[0]) < 1e-5


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_vocab_nll_gradcheck(rows: int) -> None:
    torch.manual_seed(0)
    target = torch.tensor([4, 0, 3, 3, 1])
    inputs = [torch.randn(size, dtype=torch.float64) for size in ((5, 3), (6, 3), (6,))]

    def nll(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return vocab_nll(h, w, target, b, chunk=rows * 6)

    hidden, *head = inputs
    assert torch.autograd.gradcheck(lambda h: nll(h, *head), [hidden.requires_grad_()])  # frozen
    assert torch.autograd.gradcheck(nll, [x.requires_grad_() for x in inputs])


def test_vocab_nll_never_keeps_more_than_a_chunk() -> None:
    hidden, weight, target, _ = draw()
    kept: list[int] = []

    def pack(saved: Tensor) -> Tensor:
        kept.append(0 if saved.shape == weight.shape else saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        vocab_nll(hidden, weight, target, chunk=2 * V)
        assert max(kept) <= 2 * V
        kept.clear()
        vocab_nll(hidden, weight, target, chunk=P * V)
        assert max(kept) == P * V  # the control: one chunk is kept, not computed again
        kept.clear()
        vocab_nll(hidden, weight.detach(), target, chunk=P * V)
        assert max(kept) == hidden.numel()  # a frozen head keeps no logits at all


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("rows", [2, 100])
def test_a_narrow_head_takes_wide_hidden_states(trained: bool, rows: int) -> None:
    """The product in the weights' dtype, the softmax in fp32, the gradient in the states' own."""
    hidden, weight, target, _ = draw()
    narrow = weight.detach().bfloat16().requires_grad_(trained)
    logits = (hidden.bfloat16() @ narrow.T).float()
    expected = nn.functional.cross_entropy(logits, target, reduction="none")
    (wanted,) = torch.autograd.grad(expected.sum(), hidden)
    nll = vocab_nll(hidden, narrow, target, chunk=rows * V)
    nll.sum().backward()
    assert nll.dtype == torch.float32
    assert relative(nll.detach(), expected.detach()) < 1e-6
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32
    assert relative(hidden.grad, wanted) < 1e-2


def test_vocab_nll_of_a_frozen_head_and_of_nothing() -> None:
    hidden, weight, target, _ = draw()
    frozen = weight.detach()
    vocab_nll(hidden, frozen, target, chunk=4 * V).sum().backward()
    (wanted,) = torch.autograd.grad(reference(hidden, frozen, target, None).sum(), hidden)
    assert relative(hidden.grad, wanted) < 1e-5
    empty = torch.randn(0, D, requires_grad=True)
    for head in (nn.Parameter(frozen), frozen):
        empty.grad = None
        total = vocab_nll(empty, head, target[:0]).sum()
        total.backward()
        assert float(total.detach()) == 0
        assert empty.grad is not None


def test_vocab_nll_is_finite_at_extreme_logits_and_in_bf16() -> None:
    hidden, weight, target, _ = draw()
    nll = vocab_nll(hidden * 1e4, weight, target, chunk=3 * V)
    nll.sum().backward()
    assert nll.isfinite().all()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()
    half = vocab_nll(hidden.bfloat16(), weight.bfloat16(), target)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, vocab_nll(hidden, weight, target), rtol=0.05, atol=0.1)


# First-token statistics and the adaptive temperature


def legal_of(logits_AU: Tensor, legal_AU: Tensor, target_A: Tensor) -> LegalLogits:
    rows = torch.arange(len(target_A))
    columns = torch.arange(logits_AU.shape[1])
    return LegalLogits(rows, rows, logits_AU, legal_AU, rows, target_A, columns)


def draw_legal(rows: int, columns: int) -> tuple[LegalLogits, Tensor]:
    torch.manual_seed(1)
    legal_AU = torch.rand(rows, columns) < 0.7
    target_A = torch.randint(columns, (rows,))
    legal_AU[torch.arange(rows), target_A] = True
    logits_AU = (20 + 3 * torch.randn(rows, columns)).requires_grad_()
    return legal_of(logits_AU, legal_AU, target_A), torch.rand(rows) < 0.5


def test_statistics_equal_plain_loops() -> None:
    legal, choice_A = draw_legal(12, 9)
    chosen, everyone = [], []
    for a in torch.nonzero(choice_A).squeeze(1).tolist():
        row = legal.logits_AU[a].tolist()
        chosen.append(row[int(legal.target_A[a])])
        everyone += [x for x, ok in zip(row, legal.legal_NU[a].tolist(), strict=True) if ok]
    stats = choice_stats(legal, choice_A)
    assert not any(value.requires_grad for value in stats.values())
    assert {value.dtype for value in stats.values()} == {torch.float64}
    assert {name: pytest.approx(float(value), rel=1e-12) for name, value in stats.items()} == {
        "choice_rows": len(chosen),
        "choice_target_sum": sum(chosen),
        "choice_legal": len(everyone),
        "choice_legal_sum": sum(everyone),
        "choice_legal_squares": sum(x * x for x in everyone),
    }


@pytest.mark.parametrize("parts", [[12], [1, 11], [5, 4, 3], [1] * 12])
def test_statistics_add_up_over_any_split(parts: list[int]) -> None:
    legal, choice_A = draw_legal(12, 9)
    whole = choice_stats(legal, choice_A)
    total = dict.fromkeys(whole, 0.0)
    start = 0
    for size in parts:
        at = slice(start, start + size)
        part = legal_of(legal.logits_AU[at], legal.legal_NU[at], legal.target_A[at])
        for name, value in choice_stats(part, choice_A[at]).items():
            total[name] += float(value)
        start += size
    assert total == {name: pytest.approx(float(v), rel=1e-14) for name, v in whole.items()}
    assert adaptive_temperature(total, 2000, 0.25) == pytest.approx(
        adaptive_temperature(whole, 2000, 0.25), rel=1e-12
    )


def sums(target: list[float], legal: list[float]) -> dict[str, float]:
    return {
        "choice_rows": len(target),
        "choice_target_sum": sum(target),
        "choice_legal": len(legal),
        "choice_legal_sum": sum(legal),
        "choice_legal_squares": sum(x * x for x in legal),
    }


def test_worked_example() -> None:
    """N = 4000, d = 14, s2 = 6 gives 1.783 (docs/methods/msl.md)."""
    legal = [5 - math.sqrt(6), 5.0, 5 + math.sqrt(6)]  # mean 5, unbiased variance 6
    stats = sums([19.0, 19.0], legal)
    assert adaptive_temperature(stats, 4000, 0.25) == pytest.approx(1.783, abs=5e-4)


def test_a_small_fan_out_has_a_temperature_too() -> None:
    """C = log 1.5 < 1; one target of 2, legal logits 0 and 2: d = 1, s2 = 2, no real root."""
    values = (1, 2, 2, 2, 4)
    names = ("rows", "target_sum", "legal", "legal_sum", "legal_squares")
    stats = {f"choice_{name}": float(value) for name, value in zip(names, values, strict=True)}
    assert adaptive_temperature(stats, 2, 0.75) == pytest.approx(1 / (2 * math.log(1.5)))


def test_negative_discriminant_counts_as_zero_and_nothing_is_clamped() -> None:
    wide = sums([3.0], [-10.0, 0.0, 10.0])
    assert adaptive_temperature(wide, 4000, 0.25) == pytest.approx(3 / (2 * math.log(1000)))
    below = sums([-3.0], [-10.0, 0.0, 10.0])
    assert adaptive_temperature(below, 4000, 0.25) < 0


def test_variance_survives_a_large_mean() -> None:
    torch.manual_seed(2)
    logits = (1e4 + torch.randn(50, 400)).double()
    legal = legal_of(logits, torch.ones_like(logits, dtype=torch.bool), torch.zeros(50).long())
    stats = {k: float(v) for k, v in choice_stats(legal, torch.ones(50).bool()).items()}
    n, mean = stats["choice_legal"], stats["choice_legal_sum"] / stats["choice_legal"]
    variance = (stats["choice_legal_squares"] - n * mean**2) / (n - 1)
    assert variance == pytest.approx(float(logits.var()), rel=1e-6)


@pytest.mark.parametrize(("fan_out", "eta"), [(4, 0.25), (2, 0.25), (1, 0.9)])
def test_too_small_a_fan_out_is_refused(fan_out: int, eta: float) -> None:
    with pytest.raises(ValueError, match=r"N \* eta > 1"):
        adaptive_temperature(sums([1.0], [0.0, 1.0]), fan_out, eta)


def test_statistics_of_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="0 rows"):
        adaptive_temperature(sums([], []), 4000, 0.25)


@pytest.mark.parametrize("eta", [0.1, 0.25])
@pytest.mark.parametrize(("gap", "variance"), [(14.0, 6.0), (12.0, 3.0)])
def test_gaussian_negatives_give_the_target_the_wanted_probability(
    eta: float, gap: float, variance: float
) -> None:
    """``p ~= exp(d/tau - s2/(2 tau^2)) / N`` where the target is d above the mean of N negatives.

    The estimate leaves the target itself out of the partition sum: ``z_target / (N E[exp])``.
    """
    torch.manual_seed(3)
    fan_out, rows = 4000, 400
    logits = math.sqrt(variance) * torch.randn(rows, fan_out, dtype=torch.float64)
    logits[:, 0] = gap
    legal = legal_of(logits, torch.ones_like(logits, dtype=torch.bool), torch.zeros(rows).long())
    tau = adaptive_temperature(choice_stats(legal, torch.ones(rows).bool()), fan_out, eta)
    odds = (gap / tau - (logits[:, 1:] / tau).logsumexp(1)).exp().mean()
    assert float(odds) == pytest.approx(eta, rel=0.05)


sizes = st.tuples(st.integers(1, 7), st.integers(2, 12), st.integers(1, 5), st.integers(0, 2**16))


def drawn(size: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions, vocabulary, width and seed as hidden, weight, target and bias, in float64."""
    positions, vocabulary, width, seed = size
    draw = torch.Generator().manual_seed(seed)
    shapes = ((positions, width), (vocabulary, width), (vocabulary,))
    hidden, weight, bias = (
        3 * torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes
    )
    return hidden, weight, torch.randint(vocabulary, (positions,), generator=draw), bias


@given(sizes, st.integers(1, 40), st.floats(-50, 50))
@settings(max_examples=60, deadline=None)
def test_vocab_nll_of_any_shape(size: tuple[int, int, int, int], chunk: int, shift: float) -> None:
    """The definition; a constant beside every logit changes nothing; the words may be renamed."""
    hidden, weight, target, bias = drawn(size)
    nll = vocab_nll(hidden, weight, target, bias, chunk=chunk)
    torch.testing.assert_close(nll.double(), reference(hidden, weight, target, bias))
    torch.testing.assert_close(vocab_nll(hidden, weight, target, bias + shift, chunk=chunk), nll)
    order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(size[3]))
    renamed = vocab_nll(hidden, weight[order], order.argsort()[target], bias[order], chunk=chunk)
    torch.testing.assert_close(renamed, nll)


@given(sizes, st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_statistics_do_not_know_the_order_of_rows_or_columns(
    size: tuple[int, int, int, int], share: float
) -> None:
    rows, columns, _, seed = size
    draw = torch.Generator().manual_seed(seed)
    logits_AU = torch.randn(rows, columns, generator=draw, dtype=torch.float64)
    target_A = torch.randint(columns, (rows,), generator=draw)
    legal_AU = torch.rand(rows, columns, generator=draw) < share
    legal_AU[torch.arange(rows), target_A] = True
    choice_A = torch.rand(rows, generator=draw) < share
    whole = choice_stats(legal_of(logits_AU, legal_AU, target_A), choice_A)
    by_row, by_column = (torch.randperm(n, generator=draw) for n in (rows, columns))
    mixed = legal_of(
        logits_AU[by_row][:, by_column],
        legal_AU[by_row][:, by_column],
        by_column.argsort()[target_A[by_row]],
    )
    for name, value in choice_stats(mixed, choice_A[by_row]).items():
        torch.testing.assert_close(value, whole[name])
