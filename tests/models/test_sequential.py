"""SASRec, GRU4Rec and Caser: causal, one pass for all prefixes, full softmax over the catalogue."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from llmrec_cli.errors import DataError
from llmrec_cli.methods import find_method
from llmrec_cli.methods.contract import Forward, Options
from llmrec_cli.models.baselines.caser import CaserOptions
from llmrec_cli.models.baselines.gru4rec import Gru4recOptions
from llmrec_cli.models.baselines.sasrec import SasrecOptions
from llmrec_cli.models.sequential import Convolutional, Sequential, build_sequential
from llmrec_cli.tensors.trie import build_trie
from llmrec_cli.training.collator import Collator
from llmrec_cli.training.rows import Row, as_windows

N_LEAVES, LONGEST = 30, 9
OPTIONS: dict[str, Options] = {
    "sasrec": SasrecOptions(hidden=16, layers=2, heads=2, dropout=0.3),
    "gru4rec": Gru4recOptions(hidden=16, layers=2, dropout=0.3),
    "caser": CaserOptions(hidden=16, window=4, filters=3, dropout=0.3),
}
EVERY_MODEL = pytest.mark.parametrize("name", sorted(OPTIONS))


def model(name: str) -> Sequential:
    return build_sequential(name, OPTIONS[name], N_LEAVES, LONGEST, seed=1).eval()


def sequences(n: int = 4, length: int = LONGEST, seed: int = 0) -> Tensor:
    """Leaf numbers behind the one that begins a sequence."""
    leaf_BT = torch.randint(0, N_LEAVES, (n, length), generator=torch.Generator().manual_seed(seed))
    leaf_BT[:, 0] = N_LEAVES
    return leaf_BT


def states(of: Sequential, leaf_BT: Tensor) -> Tensor:
    """Hidden state at every place: [B, T, D]."""
    with torch.no_grad():
        hidden_XPD: Tensor = of(leaf_BT, torch.arange(leaf_BT.numel()))
    return hidden_XPD[0].view(*leaf_BT.shape, -1)


@EVERY_MODEL
@pytest.mark.parametrize("at", [1, 4, LONGEST - 1])
def test_a_place_sees_what_stands_before_it_and_nothing_after(name: str, at: int) -> None:
    before = sequences()
    after = before.clone()
    after[:, at] = (after[:, at] + 1) % N_LEAVES
    one, other = states(model(name), before), states(model(name), after)
    assert torch.equal(one[:, :at], other[:, :at])
    assert (one[:, at] != other[:, at]).any(1).all()
    if at + 1 < LONGEST:
        assert (one[:, at + 1] != other[:, at + 1]).any(1).all()


@EVERY_MODEL
def test_one_pass_over_a_sequence_equals_a_pass_for_each_prefix(name: str) -> None:
    leaf_BT = sequences()
    whole = states(model(name), leaf_BT)
    for length in range(1, LONGEST + 1):
        prefix = states(model(name), leaf_BT[:, :length])[:, -1]
        torch.testing.assert_close(prefix, whole[:, length - 1], atol=1e-6, rtol=1e-5)


@EVERY_MODEL
def test_padding_on_the_right_changes_nothing(name: str) -> None:
    leaf_BT = sequences(length=5)
    padded = torch.nn.functional.pad(leaf_BT, (0, 3))
    got = states(model(name), padded)[:, :5]
    torch.testing.assert_close(got, states(model(name), leaf_BT), atol=1e-6, rtol=1e-5)


def trained_loss(name: str, rows: list[Row], leaf_of_item: list[int]) -> tuple[float, int]:
    """What the training loop computes: the summed loss, and what it is divided by."""
    trie = build_trie([[leaf] for leaf in leaf_of_item])
    assert trie.leaf_of_item_I.tolist() == leaf_of_item
    micro = Collator(trie, cut_forced=False)(rows)
    trained, lml = model(name), find_method("lml")
    hidden_PD = trained(micro.input_ids_BT, micro.take_P)[0]
    sums = lml.loss(Forward(hidden_PD, trained.head()), micro.batch, lml.options(), {})
    return float(sums.total.detach()), int(sums.count)


@EVERY_MODEL
def test_the_loss_is_full_softmax_cross_entropy_over_the_catalogue(name: str) -> None:
    """The training loop's own path, against float64 logits of every entry after every window."""
    leaf_of_item = [*range(N_LEAVES), 3, 7]  # two further items share an entry
    rows = [Row(np.array([N_LEAVES, 4, 2], np.int32), (5, 31, 8)), Row(np.array([N_LEAVES]), (30,))]
    windows = [([4, 2], 5), ([4, 2, 5], 7), ([4, 2, 5, 7], 8), ([], 3)]
    total, count = trained_loss(name, rows, leaf_of_item)
    double = model(name).double()
    expected = 0.0
    for history, target in windows:
        state_D = states(double, torch.tensor([[N_LEAVES, *history]]))[0, -1]
        logit_F = double.embedding.weight[:N_LEAVES].detach() @ state_D
        expected -= float(logit_F[target] - logit_F.exp().sum().log())
    assert count == len(windows)
    assert total == pytest.approx(expected, rel=1e-5)


@EVERY_MODEL
def test_a_sequence_row_equals_its_windows_in_loss(name: str) -> None:
    leaf_of_item = [*range(N_LEAVES), 3, 7]
    row = Row(np.array([N_LEAVES, 4, 2], np.int32), (5, 31, 8, 5), (4, 2))
    windows = as_windows(row, [[leaf] for leaf in leaf_of_item])
    assert [len(window.prompt) for window in windows] == [3, 4, 5, 6]
    whole, parts = (trained_loss(name, rows, leaf_of_item) for rows in ([row], windows))
    assert (whole[1], parts[1]) == (4, 4)
    assert whole[0] == pytest.approx(parts[0], rel=1e-6)


@EVERY_MODEL
def test_the_loss_trains_every_parameter(name: str) -> None:
    trained = model(name)
    hidden_PD = trained(sequences(), torch.arange(4 * LONGEST))[0]
    logits = hidden_PD @ trained.head().weight_VD.T
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(4 * LONGEST) % N_LEAVES)
    torch.autograd.backward(loss)
    for label, parameter in trained.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.abs().sum() > 0, label


@EVERY_MODEL
def test_weights_are_drawn_from_the_seed_alone(name: str) -> None:
    torch.manual_seed(5)
    first, draw = build_sequential(name, OPTIONS[name], N_LEAVES, LONGEST, seed=2), torch.rand(1)
    torch.manual_seed(5)
    other = build_sequential(name, OPTIONS[name], N_LEAVES, LONGEST, seed=3)
    torch.manual_seed(6)
    again = build_sequential(name, OPTIONS[name], N_LEAVES, LONGEST, seed=2)
    torch.manual_seed(5)
    assert draw == torch.rand(1), "the caller's generator was used"
    weights, same = first.state_dict(), again.state_dict()
    assert all(torch.equal(weights[key], same[key]) for key in weights)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


@EVERY_MODEL
def test_what_only_a_language_model_has_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="layers"):
        model(name)(sequences(), torch.arange(3), layers=1)


def test_sasrec_names_a_sequence_that_is_too_long_for_it() -> None:
    with pytest.raises(DataError, match=r"10 items.*9 positions"):
        states(model("sasrec"), sequences(length=LONGEST + 1))


def test_caser_equals_its_filters_written_out() -> None:
    """Horizontal filters: the strongest response inside the window; vertical: weighted places."""
    options = OPTIONS["caser"]
    assert isinstance(options, CaserOptions)
    torch.manual_seed(0)
    caser = Convolutional(options).double().eval()
    hidden_TD = torch.randn(6, options.hidden, dtype=torch.float64)
    got_TD = caser(hidden_TD[None])[0]
    for place in range(6):
        zeros = torch.zeros(options.window, options.hidden, dtype=torch.float64)
        window_WD = torch.cat([zeros, hidden_TD[: place + 1]])[-options.window :]
        pooled = []
        for convolution in caser.horizontal:
            weight_KDH, bias_K = (p.detach() for p in convolution.parameters())
            height = weight_KDH.shape[2]
            responses = [
                torch.einsum("kdh,hd->k", weight_KDH, window_WD[at : at + height]) + bias_K
                for at in range(options.window - height + 1)
            ]
            pooled.append(torch.stack(responses).relu().max(0).values)
        vertical_DK = window_WD.T @ caser.vertical.weight.T
        expected = caser.project(torch.cat([*pooled, vertical_DK.flatten()]))
        torch.testing.assert_close(got_TD[place], expected)
