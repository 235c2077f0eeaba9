"""The contract: every method found in ``methods/``, and a toy one in a single new file, goes
through the same battery under its default options and under every single choice of them."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from pydantic import ValidationError

from llmrec_cli import methods
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.methods.contract import (
    Batch,
    Forward,
    LossSums,
    Method,
    Needs,
    Negatives,
    Options,
    ReferenceModel,
)
from tests.methods.random_batches import (
    catalogue,
    draw,
    leaves_of,
    one_item,
    part,
    positions,
    states,
)

RUN_BY_SFT = {"lml"}
"""The quickstart's ``[sft]`` runs it, so no ``[align.*]`` has to."""

TARGETS = [0, 3, 8, 5, 10, 2]

TOY = '''
"""Focal loss: well-predicted tokens count less."""

from __future__ import annotations

from pydantic import Field

from llmrec_cli.methods.contract import Batch, Forward, LossSums, Method, Options, State


class ToyOptions(Options):
    """Options of the toy."""

    gamma: float = Field(default=2.0, ge=0, description="exponent, >= 0; 0: cross-entropy")
    rising: bool = Field(default=False, description="whether gamma grows with every update")


def loss(forward: Forward, batch: Batch, options: ToyOptions, state: State) -> LossSums:
    """``-sum_t (1 - p_t)^gamma log p_t``."""
    from llmrec_cli.tensors.losses import vocab_nll

    nll_P = vocab_nll(forward.hidden_PD, forward.head.weight_VD, batch.target_P)
    total = (-(-nll_P).expm1()).pow(state["gamma"]).mul(nll_P).sum()
    return LossSums(total, count=batch.positions, stats={"nll": nll_P.detach().sum()})


METHOD = Method(
    summary="a toy",
    options=ToyOptions,
    loss=loss,
    init_state=lambda options, trie: {"gamma": options.gamma},
    update_state=lambda state, stats, options, trie: (
        {"gamma": state["gamma"] + 0.1} if options.rising else state
    ),
)
'''


def found_names() -> list[str]:
    """The methods of the package, whatever else a test adds."""
    return methods.list_methods()


@pytest.fixture(params=[*found_names(), "toy"])
def method(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Method]:
    """A method by its name; the toy is one new file."""
    if request.param == "toy":
        (tmp_path / "toy.py").write_text(TOY)
        monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
        importlib.invalidate_caches()
    assert request.param in methods.list_methods()
    yield methods.find_method(request.param)
    if request.param == "toy":
        del sys.modules[f"{methods.__name__}.toy"]
        vars(methods).pop("toy")


def variants(method: Method) -> list[Any]:
    """The default options, and every other value of a choice or switch, one at a time."""
    default = method.options()
    found = [default]
    for name, field in method.options.model_fields.items():
        key = field.alias or name
        for value in choices(field.annotation):
            if value != getattr(default, name):
                found.append(method.options.model_validate({key: value}))
    return found


def choices(annotation: Any) -> list[Any]:
    """Values of the literals and switches inside of an annotation."""
    if annotation is bool:
        return [True, False]
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for part in get_args(annotation) for value in choices(part)]


def cases(method: Method) -> Iterator[tuple[Batch, Forward, Any, dict[str, float]]]:
    """A batch with all that is needed, for every variant of the options."""
    for options in variants(method):
        trie = catalogue()
        batch, forward = draw(trie, TARGETS, method.needs(options), cut=method.legal_only(options))
        yield batch, forward, options, dict(method.init_state(options, trie))


def gradients(sums: LossSums, forward: Forward) -> list[torch.Tensor]:
    leaves = leaves_of(forward)
    found = torch.autograd.grad(sums.total, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


def numbers(sums: LossSums) -> dict[str, float]:
    return {name: float(value) for name, value in sums.stats.items()}


def test_the_variants_reach_every_choice() -> None:
    """The battery is not run on defaults alone."""
    ilrec = [options.model_dump() for options in variants(methods.find_method("ilrec"))]
    assert {options["support"] for options in ilrec} == {"vocab", "legal"}
    assert any(options.tau == "ats" for options in variants(methods.find_method("msl")))
    released = [o for o in variants(methods.find_method("dmpo")) if o.variant == "released"]
    assert [options.sft for options in released] == [1.0]


def test_options_are_documented_frozen_and_strict(method: Method) -> None:
    assert issubclass(method.options, Options)
    assert method.summary
    assert "\n" not in method.summary
    for name, field in method.options.model_fields.items():
        assert field.description, name
        assert not field.is_required(), f"{name} has no default"
    with pytest.raises(ValidationError):
        method.options.model_validate({"no_such_option": 1})
    frozen = method.options()
    for name in method.options.model_fields:
        with pytest.raises(ValidationError):
            setattr(frozen, name, getattr(frozen, name))


def test_options_survive_a_recipe(method: Method) -> None:
    """A resolved recipe holds plain values under the recipe's own keys."""
    for options in variants(method):
        plain = json.loads(json.dumps(options.model_dump(mode="json")))
        assert method.options.model_validate(plain) == options
        assert set(plain) == {f.alias or name for name, f in method.options.model_fields.items()}


def test_needs_are_what_the_contract_knows(method: Method) -> None:
    for options in variants(method):
        needs = method.needs(options)
        assert isinstance(needs, Needs)
        assert needs.hidden_states >= 0
        if needs.reference:
            assert needs.packs, "a reference is asked about preferences or rollouts"
            assert method.log_probs is not None
        if needs.rollouts:
            assert needs.negatives is None
            assert needs.reference in (None, ReferenceModel()), "the answers are not known before"
            assert needs.rollouts.draw == "top" or needs.rollouts.support == "legal"
            assert needs.rollouts.k >= 1
        if needs.negatives:
            draws = get_args(get_type_hints(Negatives)["draw"])
            assert needs.negatives.k >= 1
            assert needs.negatives.draw in draws
        if needs.item_scores:
            assert needs.item_scores.model
            assert needs.item_scores.history in ("keep", "zero")


def test_loss_is_finite_and_reaches_the_hidden_states(method: Method) -> None:
    for batch, forward, options, state in cases(method):
        sums = method.loss(forward, batch, options, state)
        assert sums.total.shape == ()
        assert sums.total.isfinite()
        if torch.is_tensor(sums.count):  # a sum of weights
            assert (sums.count.shape, sums.count.dtype) == ((), torch.float64)
            assert not sums.count.requires_grad
        else:
            assert isinstance(sums.count, int)
        assert sums.count > 0
        found = gradients(sums, forward)
        assert all(gradient.isfinite().all() for gradient in found)
        assert found[0].abs().sum() > 0, "no gradient at the last hidden states"
        assert not any(torch.is_tensor(x) and x.requires_grad for x in sums.stats.values())


def test_loss_is_pure(method: Method) -> None:
    for batch, forward, options, state in cases(method):
        before = [x.detach().clone() for x in leaves_of(forward)]
        first = method.loss(forward, batch, options, state)
        second = method.loss(forward, batch, options, state)
        assert float(first.total.detach()) == float(second.total.detach())
        assert numbers(first) == numbers(second)
        for x, was in zip(leaves_of(forward), before, strict=True):
            assert torch.equal(x.detach(), was)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_is_taken_in_fp32(method: Method, dtype: torch.dtype) -> None:
    for batch, _, options, state in cases(method):
        forward = states(batch, method.needs(options).hidden_states, dtype=dtype)
        sums = method.loss(forward, batch, options, state)
        assert sums.total.dtype == torch.float32
        assert all(gradient.isfinite().all() for gradient in gradients(sums, forward))


@pytest.mark.parametrize("split", [[[0], [1], [2], [3], [4], [5]], [[2], [0, 3, 5], [1, 4]]])
def test_sums_counts_and_gradients_add_up_over_any_split(
    method: Method, split: list[list[int]]
) -> None:
    for batch, forward, options, state in cases(method):
        whole = method.loss(forward, batch, options, state)
        wanted = gradients(whole, forward)
        total, count, stats = 0.0, 0.0, dict.fromkeys(whole.stats, 0.0)
        summed = [torch.zeros_like(gradient) for gradient in wanted]
        for targets in split:
            cut, at = part(batch, forward, targets)
            sums = method.loss(at, cut, options, state)
            grads = torch.autograd.grad(sums.total, leaves_of(forward), allow_unused=True)
            summed = [s if g is None else s + g for s, g in zip(summed, grads, strict=True)]
            total, count = total + float(sums.total.detach()), count + float(sums.count)
            stats = {name: stats[name] + value for name, value in numbers(sums).items()}
        assert total == pytest.approx(float(whole.total.detach()), rel=1e-10)
        assert count == pytest.approx(float(whole.count), rel=1e-12)
        assert stats == pytest.approx(numbers(whole), rel=1e-10, abs=1e-10)
        for found, want in zip(summed, wanted, strict=True):
            torch.testing.assert_close(found, want)


def test_what_is_cut_has_no_loss(method: Method) -> None:
    """``legal_only``: the engine leaves forced positions out, and nothing may change."""
    for options in variants(method):
        if not method.legal_only(options):
            continue
        trie, needs = catalogue(), method.needs(options)
        state = method.init_state(options, trie)
        batch, forward = draw(trie, TARGETS, needs)
        short, _ = draw(trie, TARGETS, needs, cut=True)
        kept_P = _kept(batch, short)
        assert len(kept_P) < len(batch.target_P)
        layers_LPD = forward.layers_LPD
        at = replace(
            forward,
            hidden_PD=forward.hidden_PD[kept_P],
            layers_LPD=None if layers_LPD is None else layers_LPD[:, kept_P],
        )
        whole = method.loss(forward, batch, options, state)
        cut = method.loss(at, short, options, state)
        torch.testing.assert_close(cut.total, whole.total)
        assert float(cut.count) == float(whole.count)
        assert numbers(cut) == pytest.approx(numbers(whole))


def _kept(batch: Batch, short: Batch) -> torch.Tensor:
    places = list(zip(batch.answer_P.tolist(), batch.node_P.tolist(), strict=True))
    kept = zip(short.answer_P.tolist(), short.node_P.tolist(), strict=True)
    return torch.tensor([places.index(place) for place in kept])


def test_an_empty_batch_is_a_connected_zero(method: Method) -> None:
    for options in variants(method):
        trie = catalogue()
        batch, forward = draw(trie, [], method.needs(options))
        assert (len(batch.target_P), batch.answers) == (0, 0)
        sums = method.loss(forward, batch, options, method.init_state(options, trie))
        assert (float(sums.total.detach()), float(sums.count)) == (0.0, 0.0)
        assert all(value == 0 for value in numbers(sums).values())
        sums.total.backward()
        assert forward.hidden_PD.grad is not None
        assert forward.head.weight_VD.grad is not None
        assert float(forward.head.weight_VD.grad.abs().sum()) == 0


@pytest.mark.parametrize("cut", [False, True])
def test_an_all_forced_batch_can_be_trained_on(method: Method, cut: bool) -> None:
    """One item: over legal tokens there is no choice, hence no gradient, and no NaN."""
    for options in variants(method):
        if cut and not method.legal_only(options):
            continue
        state = method.init_state(options, catalogue())
        batch, forward = draw(one_item(), [0, 0], method.needs(options), cut=cut)
        assert int(batch.trie.fan_out(batch.node_P).max() if len(batch.node_P) else 1) == 1
        sums = method.loss(forward, batch, options, state)
        assert sums.total.isfinite()
        assert all(math.isfinite(value) for value in numbers(sums).values())
        for gradient in gradients(sums, forward):
            assert gradient.isfinite().all()
            assert not method.legal_only(options) or float(gradient.abs().sum()) == 0


def test_log_probabilities_of_answers_have_their_shape(method: Method) -> None:
    if method.log_probs is None:
        return
    for options in variants(method):
        batch = positions(catalogue(), TARGETS, cut=method.legal_only(options))
        log_probs = method.log_probs(states(batch), batch, options)
        by_token = method.needs(options).rollouts is not None
        assert log_probs.shape == (len(batch.target_P) if by_token else batch.answers,)
        assert bool((log_probs <= 0).all())


def test_state_is_json_and_its_update_is_pure(method: Method) -> None:
    for batch, forward, options, state in cases(method):
        stored = json.loads(json.dumps(state))
        assert stored == state
        sums = method.loss(forward, batch, options, stored)
        stats = numbers(sums)
        kept = dict(stats)
        first = method.update_state(stored, stats, options, batch.trie)
        second = method.update_state(stored, stats, options, batch.trie)
        assert first == second
        assert (stored, stats) == (state, kept), "changed in place"
        assert json.loads(json.dumps(dict(first))) == first
        assert set(first) == set(state)
        assert method.loss(forward, batch, options, first).total.isfinite()


def test_metrics_are_means_and_a_warning_is_a_line(method: Method) -> None:
    for batch, forward, options, state in cases(method):
        sums = method.loss(forward, batch, options, state)
        stats = numbers(sums)
        shown, many, twice_as_many = (
            method.metrics(
                {name: times * value for name, value in stats.items()},
                float(times * sums.count),
                options,
                batch.trie,
            )
            for times in (1, 10_000, 20_000)
        )
        assert all(math.isfinite(value) for value in shown.values())
        assert twice_as_many == pytest.approx(many, rel=1e-3)  # a variance may be unbiased
        warning = method.warning({**shown, **state}, options)
        assert warning is None or "\n" not in warning


def test_a_description_is_a_line(method: Method) -> None:
    for options in variants(method):
        line = method.describe(options, catalogue(), lambda ids: " ".join(map(str, ids)))
        assert line is None or (line and "\n" not in line)


@pytest.mark.parametrize("name", sorted(set(found_names()) - RUN_BY_SFT))
def test_the_quickstart_runs_every_method(name: str) -> None:
    assert name in {stage.method for stage in read_recipe("quickstart").align.values()}


def test_the_toy_is_gone_again() -> None:
    assert "toy" not in methods.list_methods()
