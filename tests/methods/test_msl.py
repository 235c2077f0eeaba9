"""MSL and its adaptive temperature: what is summed, what it is divided by, how tau moves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from llmrec_cli.errors import RecipeError
from llmrec_cli.methods.contract import Batch, Forward
from llmrec_cli.methods.msl import METHOD, MslOptions
from llmrec_cli.tensors.losses import adaptive_temperature
from llmrec_cli.tensors.trie import Trie, build_trie, edges_of
from tests.methods.random_batches import EOS, D, part, positions, states
from tests.tensors.trie_walk import walk

QUOTE, OTHER = 1, 0


def catalogue(opening: str = "none") -> Trie:
    """Prefixes, a duplicate, single tokens, forced tails; 8 first tokens.

    Args:
        opening: "quote": all of them behind one token; "quotes": and a few items that open with
            another one, which makes the root a choice of two.
    """
    titles = [[a, 10 + b, 9] for a in range(3, 9) for b in range(3)]
    titles += [[3], [3, 10], [3, 10], [14], [15, 13, 12, 11]]
    before = [] if opening == "none" else [QUOTE]
    others = [[OTHER, 3], [OTHER, 4], [OTHER, 4]] if opening == "quotes" else []
    return build_trie([*([*before, *title, EOS] for title in titles), *([*o, EOS] for o in others)])


def draw(trie: Trie, leaves: list[int]) -> tuple[Batch, Forward]:
    batch = positions(trie, leaves)
    return batch, states(batch)


def kept(batch: Batch, forward: Forward, keep_P: Tensor) -> tuple[Batch, Forward]:
    """Some positions of a batch, as the engine leaves others out."""
    cut = replace(
        batch,
        target_P=batch.target_P[keep_P],
        node_P=batch.node_P[keep_P],
        answer_P=batch.answer_P[keep_P],
        final_P=batch.final_P[keep_P],
    )
    return cut, replace(forward, hidden_PD=forward.hidden_PD[keep_P])


def position_losses(batch: Batch, forward: Forward, tau: float) -> list[Tensor]:
    """MSL eq. 5 position by position; 0 where one token is legal."""
    losses = []
    for hidden, node, target in zip(forward.hidden_PD, batch.node_P, batch.target_P, strict=True):
        edges, _ = edges_of(batch.trie, node[None])
        legal = batch.trie.edge_token_E[edges].long()
        logits = forward.head.weight_VD[legal] @ hidden / tau
        losses.append(logits.logsumexp(0) - logits[legal == target].squeeze())
    return losses


@pytest.mark.parametrize("tau", [1.0, 4.5])
def test_fixed_tau_divides_by_all_response_positions(tau: float) -> None:
    batch, forward = draw(catalogue(), [0, 3, 8, 20])
    sums = METHOD.loss(forward, batch, MslOptions(tau=tau), {})
    torch.testing.assert_close(sums.total, torch.stack(position_losses(batch, forward, tau)).sum())
    assert sums.count == len(batch.target_P)


def test_positions_left_out_by_the_engine_still_count() -> None:
    batch, forward = draw(catalogue(), [0, 3, 8, 20])
    whole = METHOD.loss(forward, batch, MslOptions(), {})
    keep = batch.trie.fan_out(batch.node_P) > 1
    cut, at = kept(batch, forward, keep)
    assert METHOD.legal_only(MslOptions())
    assert len(cut.target_P) < len(batch.target_P)
    sums = METHOD.loss(at, cut, MslOptions(), {})
    torch.testing.assert_close(sums.total, whole.total)
    assert sums.count == whole.count


def test_ats_divides_by_branching_positions_and_multiplies_by_tau() -> None:
    batch, forward = draw(catalogue(), [0, 3, 8, 20])
    sums = METHOD.loss(forward, batch, MslOptions(tau="ats"), {"tau": 2.5})
    branching = batch.trie.fan_out(batch.node_P) > 1
    expected = 2.5 * torch.stack(position_losses(batch, forward, 2.5))[branching].sum()
    torch.testing.assert_close(sums.total, expected)
    assert sums.count == int(branching.sum()) < len(batch.target_P)


def test_tau_1_summed_over_a_title_is_item_level_cross_entropy() -> None:
    """Softmax over the catalogue's log-probabilities, one prompt."""
    trie = catalogue()
    leaves = list(range(trie.n_leaves))
    batch, forward = draw(trie, leaves)
    by_node = torch.randn(trie.n_nodes, D, dtype=torch.float64)  # one prompt: state by prefix
    forward = replace(forward, hidden_PD=by_node[batch.node_P])
    of_leaf = []
    for leaf in leaves:
        one, at = part(batch, forward, [leaf])
        of_leaf.append(METHOD.loss(at, one, MslOptions(tau=1.0), {}).total)
    scores = -torch.stack(of_leaf)
    assert float(scores.exp().sum().detach()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(-scores.log_softmax(0), torch.stack(of_leaf))


@pytest.mark.parametrize("options", [MslOptions(), MslOptions(tau="ats", ats_eta=0.5)])
def test_sums_gradients_and_statistics_add_up_over_any_split(options: MslOptions) -> None:
    batch, forward = draw(catalogue(), [0, 3, 8, 20, 1, 13])
    state = METHOD.init_state(options, batch.trie)
    whole = METHOD.loss(forward, batch, options, state)
    (wanted,) = torch.autograd.grad(whole.total, forward.head.weight_VD)
    total, count, stats = 0.0, 0, dict.fromkeys(whole.stats, 0.0)
    for answers in ([2], [0, 4, 5], [1, 3]):
        one, at = part(batch, forward, answers)
        sums = METHOD.loss(at, one, options, state)
        sums.total.backward()
        total, count = total + float(sums.total.detach()), count + int(sums.count)
        stats = {name: stats[name] + float(value) for name, value in sums.stats.items()}
    assert total == pytest.approx(float(whole.total.detach()), rel=1e-12)
    assert count == whole.count
    assert stats == {name: pytest.approx(float(v), rel=1e-12) for name, v in whole.stats.items()}
    torch.testing.assert_close(forward.head.weight_VD.grad, wanted)
    pooled = METHOD.update_state(state, stats, options, batch.trie)
    unsplit = {name: float(value) for name, value in whole.stats.items()}
    assert pooled == pytest.approx(METHOD.update_state(state, unsplit, options, batch.trie))


@pytest.mark.parametrize("opening", ["none", "quote", "quotes"])
def test_statistics_come_from_the_widest_choice(opening: str) -> None:
    """Not from the root, whose choice may be one of two quotes; nor from rows that pass it by."""
    trie = catalogue(opening)
    others = [0, 1] if opening == "quotes" else []  # leaves behind the other quote
    batch, forward = draw(trie, [*others, 2, 5, 10, 21])
    sums = METHOD.loss(forward, batch, MslOptions(tau="ats"), {"tau": 1.5})
    node = walk(trie, [] if opening == "none" else [QUOTE])
    assert int(trie.fan_out(torch.tensor(node))) == 8
    choice_P = batch.node_P == node
    edges, _ = edges_of(trie, torch.tensor([node]))
    legal = trie.edge_token_E[edges].long()
    logits = (forward.hidden_PD[choice_P] @ forward.head.weight_VD[legal].T).detach()
    chosen = forward.hidden_PD[choice_P] * forward.head.weight_VD[batch.target_P[choice_P]]
    assert {name: float(value) for name, value in sums.stats.items()} == pytest.approx(
        {
            "choice_rows": 4,
            "choice_target_sum": float(chosen.detach().sum()),
            "choice_legal": 32,
            "choice_legal_sum": float(logits.sum()),
            "choice_legal_squares": float(logits.square().sum()),
        }
    )


def test_a_root_of_two_quotes_does_not_pin_tau() -> None:
    """N = 2 there: 2 eta < 1 has no solution, but the choice of an item has N = 8."""
    options = MslOptions(tau="ats", ats_eta=0.4)
    assert METHOD.init_state(options, catalogue("quotes"))["tau"] == 1.5


def test_rows_that_pass_the_widest_choice_by_leave_tau_alone() -> None:
    trie, options = catalogue("quotes"), MslOptions(tau="ats", ats_eta=0.4)
    batch, forward = draw(trie, [0, 1, 0])
    state = {"tau": 2.2, "tau_outside": 0.3}
    sums = METHOD.loss(forward, batch, options, state)
    assert sums.count > 0
    stats = {name: float(value) for name, value in sums.stats.items()}
    assert METHOD.update_state(state, stats, options, trie) == state
    assert METHOD.metrics(stats, float(sums.count), options, trie) == {}


@pytest.mark.parametrize(
    ("opening", "said"),
    [
        ("none", "token 1 of an item, N = 8 legal tokens; 23 of 23 items (100.0%) pass it"),
        ("quotes", "token 2 of an item, behind '<1>', N = 8 legal tokens; 23 of 26 items (88.5%)"),
    ],
)
def test_the_choice_that_sets_tau_is_described(opening: str, said: str) -> None:
    def spell(ids: Sequence[int]) -> str:
        return "".join(f"<{token}>" for token in ids)

    line = METHOD.describe(MslOptions(tau="ats"), catalogue(opening), spell)
    assert line is not None
    assert said in line
    assert METHOD.describe(MslOptions(tau=2.0), catalogue(opening), spell) is None


def stats_of(gap: float, variance: float) -> Mapping[str, float]:
    """Two legal logits of mean 0."""
    return {
        "choice_rows": 1,
        "choice_target_sum": gap,
        "choice_legal": 2,
        "choice_legal_sum": 0,
        "choice_legal_squares": variance,
    }


@pytest.mark.parametrize(
    ("gap", "clamped_to"), [(2.0, 1.5), (-5.0, 1.5), (5.0, None), (900.0, 5.0)]
)
def test_tau_is_a_moving_average_of_clamped_values(gap: float, clamped_to: float | None) -> None:
    trie = catalogue()
    options = MslOptions(tau="ats", ats_eta=0.9)
    wanted = adaptive_temperature(stats_of(gap, 0.1), 8, 0.9)
    target = wanted if clamped_to is None else clamped_to
    assert clamped_to is not None or 1.5 < wanted < 5
    before = {"tau": 3.0, "tau_outside": 0.5}
    state = METHOD.update_state(before, stats_of(gap, 0.1), options, trie)
    assert state["tau"] == pytest.approx(0.95 * 3.0 + 0.05 * target)
    assert state["tau_outside"] == pytest.approx(0.98 * 0.5 + 0.02 * (clamped_to is not None))
    # what is logged is not clamped
    assert METHOD.metrics(stats_of(gap, 0.1), 7.0, options, trie) == {"tau_wanted": wanted}


def test_tau_never_leaves_its_limits_by_rounding() -> None:
    trie = catalogue()
    options = MslOptions(tau="ats", ats_eta=0.9, ats_start=1.7, ats_min=1.7, ats_max=5.0)
    for rate in (0.05, 0.1, 0.15, 0.3, 0.35):  # some of these round 1.7 to 1.6999999999999997
        moved = options.model_copy(update={"ats_rate": rate})
        state = METHOD.init_state(moved, trie)
        for _ in range(100):
            state = METHOD.update_state(state, stats_of(-5.0, 0.1), moved, trie)
            assert state["tau"] == 1.7


@pytest.mark.parametrize(("low", "start", "high"), [(1.5, 1.4, 5.0), (0.1, 1.5, 1.0), (2, 1.5, 5)])
def test_tau_starts_inside_of_its_limits(low: float, start: float, high: float) -> None:
    limits = {"ats_start": start, "ats_min": low, "ats_max": high}
    words = rf"ats_start = {start:g} must be in ats_min = {low:g} \.\. ats_max = {high:g}"
    with pytest.raises(ValueError, match=words):
        MslOptions.model_validate({"tau": "ats", **limits})
    assert MslOptions.model_validate({"tau": 1.0, **limits}).ats_start == start  # plays no part
    for at in (low, high):
        assert MslOptions.model_validate({"tau": "ats", **limits, "ats_start": at})


INSIDE, ABOVE = 5.0, 900.0  # gaps of ``stats_of``, with the limits of the test above


def warned_after(gaps: Sequence[float]) -> list[int]:
    """Numbers of updates, from 1, after which there is a reason to warn."""
    trie, options = catalogue(), MslOptions(tau="ats", ats_eta=0.9)
    state, found = METHOD.init_state(options, trie), []
    for number, gap in enumerate(gaps, start=1):
        stats = stats_of(gap, 0.1)
        state = METHOD.update_state(state, stats, options, trie)
        logged = {**METHOD.metrics(stats, 1.0, options, trie), **state}
        if METHOD.warning(logged, options) is not None:
            found.append(number)
    return found


def test_a_wanted_tau_outside_the_limits_for_many_updates_is_worth_a_warning() -> None:
    assert warned_after([ABOVE] * 50) == list(range(35, 51))  # 1 - .98^35 > 1/2
    assert warned_after([ABOVE] * 34 + [INSIDE] * 50) == []
    assert warned_after([INSIDE, ABOVE, INSIDE] * 100) == []  # a third of them
    assert warned_after([INSIDE] * 500) == []
    recovered = warned_after([ABOVE] * 60 + [INSIDE] * 60)
    assert recovered[-1] < 90


def test_the_warning_names_the_limits_and_what_is_wanted() -> None:
    options = MslOptions(tau="ats", ats_max=4.0)
    said = METHOD.warning({"tau": 4.0, "tau_wanted": 9.25, "tau_outside": 0.6}, options)
    assert said is not None
    assert "outside ats_min = 1.5 .. ats_max = 4 in 60% of the recent updates, now at 9.25" in said
    assert METHOD.warning({"tau": 4.0, "tau_outside": 0.6}, options) is not None
    assert METHOD.warning({"tau": 4.0, "tau_wanted": 9.25, "tau_outside": 0.5}, options) is None
    assert METHOD.warning({}, MslOptions()) is None


def test_state_starts_at_the_option_and_stands_still_without_rows() -> None:
    trie, options = catalogue(), MslOptions(tau="ats", ats_start=2.0)
    assert METHOD.init_state(options, trie) == {"tau": 2.0, "tau_outside": 0.0}
    none, state = dict.fromkeys(stats_of(0, 0), 0.0), {"tau": 2.2, "tau_outside": 0.4}
    assert METHOD.update_state(state, none, options, trie) == state
    fixed = MslOptions(tau=1.0)
    assert METHOD.init_state(fixed, trie) == {}
    assert METHOD.update_state({}, {}, fixed, trie) == {}
    assert METHOD.metrics({}, 3.0, fixed, trie) == {}


@pytest.mark.parametrize("eta", [1 / 8, 0.01])
def test_a_fan_out_too_small_for_ats_is_a_recipe_error(eta: float) -> None:
    with pytest.raises(RecipeError, match=r"ats_eta = .*N = 8 .*ats_eta > 0.125, or a fixed tau"):
        METHOD.init_state(MslOptions(tau="ats", ats_eta=eta), catalogue())
    assert METHOD.init_state(MslOptions(tau="ats", ats_eta=0.13), catalogue())


def test_a_catalogue_without_a_choice_cannot_use_ats() -> None:
    with pytest.raises(RecipeError, match="set a fixed tau"):
        METHOD.init_state(MslOptions(tau="ats"), build_trie([[5, 6, EOS]]))


@pytest.mark.parametrize("tau", [1.0, "ats"])
@pytest.mark.parametrize("leaves", [[], [0]])
def test_nothing_to_choose_is_a_connected_zero(tau: float | str, leaves: list[int]) -> None:
    trie = build_trie([[5, 6, EOS]]) if leaves else catalogue()
    batch, forward = draw(trie, leaves)
    sums = METHOD.loss(forward, batch, MslOptions.model_validate({"tau": tau}), {"tau": 2.0})
    sums.total.backward()
    assert float(sums.total.detach()) == 0
    assert sums.count == (0 if tau == "ats" else len(batch.target_P))
    assert forward.head.weight_VD.grad is not None
    assert forward.head.weight_VD.grad.abs().max() == 0
    assert forward.hidden_PD.grad is not None
    assert all(float(value) == 0 for value in sums.stats.values())


@pytest.mark.parametrize(
    "options",
    [
        {"tau": 0.0},
        {"tau": -1.0},
        {"tau": math.nan},
        {"tau": "adaptive"},
        {"ats_eta": 1.0},
        {"ats_min": 3.0, "ats_max": 2.0},
        {"temperature": 1.0},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        MslOptions.model_validate(options)
