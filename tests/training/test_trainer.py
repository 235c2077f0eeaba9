"""The loop: one normalisation, exact resume, schedules, and numbers that stop it."""

from __future__ import annotations

import io
import itertools
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llmrec_cli.config.training import TrainSection
from llmrec_cli.errors import ArtefactError, NumbersError
from llmrec_cli.methods import lml
from llmrec_cli.methods.contract import LossSums
from llmrec_cli.training import checkpoint, trainer
from llmrec_cli.training.rows import Row, as_windows
from llmrec_cli.training.trainer import PolicyLoss, Trainer, compute_learning_rate
from llmrec_cli.utils.progress import Lines
from tests.training.tiny import CATALOGUE, METHODS, final_state, job, metrics, rows


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_weights_do_not_depend_on_the_micro_batch(tmp_path: Path, method: str) -> None:
    whole, parts = (
        job(tmp_path / "a", method, dropout=0),
        job(tmp_path / "b", method, 0, micro_batch=3),
    )
    whole.train(resume=False)
    parts.train(resume=False)
    for one, other in zip(metrics(whole.folder), metrics(parts.folder), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5, abs=1e-7)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)
        assert one.get("tau", 1) == pytest.approx(other.get("tau", 1), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_sequence_equals_its_windows_in_loss_and_gradient(tmp_path: Path, method: str) -> None:
    running = job(tmp_path, method, dropout=0)
    needs, collate = running.method.needs(running.options), running.make_collator()
    sequences = rows(6)
    if needs.rollouts:
        sequences = [name_neighbours(row) for row in sequences]
    if needs.negatives:
        sequences = [reject_neighbours(row) for row in sequences]
    windows = [window for row in sequences for window in as_windows(row, CATALOGUE)]
    assert len(windows) > len(sequences)
    found = []
    for some in (sequences, windows):
        running.policy.zero_grad()
        state = running.method.init_state(running.options, running.trie)
        micro = running.train_set.complete_batch(collate(some), some)
        total, further = running.loss(micro, state)
        total.backward()
        gradients = [p.grad.clone() for p in running.policy.parameters() if p.grad is not None]
        found.append((float(total.detach()), further["count"], gradients))
    (one, count, gradients), (other, other_count, others) = found
    assert count == other_count
    assert one == pytest.approx(other, rel=1e-6, abs=1e-6)  # advantages sum to 0
    for a, b in zip(gradients, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def name_neighbours(row: Row) -> Row:
    """Three rollouts of each target, itself among them."""
    n = len(CATALOGUE)
    return replace(row, rollouts=tuple(((t + 1) % n, t, (t + 3) % n) for t in row.targets))


def reject_neighbours(row: Row) -> Row:
    """One negative of each target."""
    n = len(CATALOGUE)
    return replace(row, negatives=tuple(((t + 1) % n,) for t in row.targets))


def test_a_mean_of_means_would_be_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above: averaging each micro-batch on its own is not the same loss."""
    whole, parts = job(tmp_path / "a", dropout=0), job(tmp_path / "b", dropout=0, micro_batch=3)
    whole.train(resume=False)
    summed = trainer.add_sums

    def averaged(
        sums: dict[str, torch.Tensor], total: Any, further: dict[str, Any], **rest: Any
    ) -> None:
        summed(sums, total, further, **rest)
        mean = float(total.detach()) / further["count"]
        sums["means"] = sums.get("means", torch.zeros(())) + mean
        sums["parts"] = sums.get("parts", torch.zeros(())) + 1
        sums["total"] = sums["means"] / sums["parts"] * sums["count"]

    monkeypatch.setattr(trainer, "add_sums", averaged)
    parts.train(resume=False)
    pairs = zip(metrics(whole.folder), metrics(parts.folder), strict=True)
    assert max(abs(a["loss"] - b["loss"]) / a["loss"] for a, b in pairs) > 1e-4


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_a_loss_is_divided_by_any_sum_of_weights(tmp_path: Path, scale: float) -> None:
    """Weights need not be counts: their sum over a micro-batch or a batch may be below 1."""

    def weighted(*args: Any) -> LossSums:
        plain = lml.loss(*args)
        count = torch.tensor(scale * int(plain.count), dtype=torch.float64)
        return replace(plain, total=plain.total * scale, count=count)

    plain = job(tmp_path / "plain", dropout=0, micro_batch=3)
    scaled = job(tmp_path / "scaled", dropout=0, micro_batch=3)
    scaled.loss = PolicyLoss(scaled.policy, replace(scaled.method, loss=weighted), scaled.options)
    plain.train(resume=False)
    scaled.train(resume=False)
    for one, other in zip(metrics(plain.folder), metrics(scaled.folder), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-4)
        if "valid_loss" in one:
            assert other["valid_loss"] == pytest.approx(one["valid_loss"], rel=1e-5)
    assert "valid_loss" in one


def kill_behind(running: Trainer, step: int) -> None:
    """Train until an update is done, and end there as a kill does."""
    update = Trainer.run_update

    def dies(*args: Any) -> dict[str, Any]:
        if args[0].state.step == step:
            raise KeyboardInterrupt
        return update(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run_update", dies)
        with pytest.raises(KeyboardInterrupt):
            running.train(resume=False)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [1, 2, 3, 5, 8])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(
    tmp_path: Path, method: str, stop: int
) -> None:
    """Dropout on; killed after ``stop`` updates, mid-epoch or at its end, saved or not."""
    straight = job(tmp_path / "straight", method)
    straight.train(resume=False)

    interrupted = job(tmp_path / "interrupted", method)
    kill_behind(interrupted, stop)
    job(tmp_path / "interrupted", method).train(resume=True)
    assert metrics(interrupted.folder) == metrics(straight.folder)
    assert final_state(interrupted.folder) == final_state(straight.folder)


def held_at_a_limit(folder: Path, **section: Any) -> tuple[Trainer, io.StringIO]:
    """A job whose wanted tau always lies outside the limits, and what it says."""
    running = job(folder, "ats", epochs=15, validate_every=5, **section)  # 45 updates
    options = running.options.model_copy(update={"ats_min": 90.0, "ats_max": 91.0})
    shown = io.StringIO()
    return replace(running, options=options, progress=Lines(shown)), shown


def test_the_log_has_the_wanted_tau_beside_the_tau_that_follows_it(tmp_path: Path) -> None:
    job(tmp_path, "ats").train(resume=False)
    logged = metrics(tmp_path)
    outside = []
    for one, after in itertools.pairwise(logged):
        kept = min(max(one["tau_wanted"], 1.5), 5.0)
        assert after["tau"] == pytest.approx(0.95 * one["tau"] + 0.05 * kept, rel=1e-12)
        outside.append(kept != one["tau_wanted"])
        ages = [age for age, was in enumerate(reversed(outside)) if was]
        assert after["tau_outside"] == pytest.approx(sum(0.02 * 0.98**age for age in ages))
    assert logged[0]["tau_outside"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("stop", [None, 20, 36, 40])
def test_a_tau_held_at_a_limit_is_said_once_whether_resumed_or_not(
    tmp_path: Path, stop: int | None
) -> None:
    running, shown = held_at_a_limit(tmp_path, save_every=4)
    if stop is not None:
        kill_behind(running, stop)
    again, shown_again = held_at_a_limit(tmp_path, save_every=4)
    position = again.train(resume=stop is not None)
    said = (shown.getvalue() + shown_again.getvalue()).splitlines()
    (warned,) = [line for line in said if "warning" in line]
    assert "warning at update 36: the wanted tau lay outside ats_min = 90 .. ats_max = 91" in warned
    assert position.warned_at == 36  # its loss is the first to use a tau after 35 such updates


def test_a_run_whose_method_remembered_something_else_is_not_resumed(tmp_path: Path) -> None:
    """Before, tau followed another choice of the catalogue, and was all that was remembered."""
    began = job(tmp_path, "ats", max_steps=4)
    older = replace(
        began.method,
        init_state=lambda options, trie: {"tau": 1.5},
        update_state=lambda state, stats, options, trie: state,
    )
    replace(began, method=older).train(resume=False)
    with pytest.raises(ArtefactError, match="remembers tau, expected tau, tau_outside: an llmrec"):
        job(tmp_path, "ats", max_steps=6).train(resume=True)


def test_the_best_validation_is_what_remains_and_patience_stops(tmp_path: Path) -> None:
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.1])
    running = job(tmp_path, epochs=6, patience=2)
    object.__setattr__(running, "rank_valid", lambda: {"ndcg@2": next(scores)})
    position = running.train(resume=False)
    assert position.best_step == 6
    assert position.step == 12
    assert position.stopped
    kept = checkpoint.trained_weights(running.policy)
    best = job(tmp_path / "other")
    checkpoint.restore_weights(best.policy, tmp_path / "checkpoints" / "step-6")
    for name, value in checkpoint.trained_weights(best.policy).items():
        assert torch.equal(value, kept[name])


def test_selection_by_loss_takes_the_lowest(tmp_path: Path) -> None:
    position = job(tmp_path, select="loss").train(resume=False)
    losses = {row["step"]: row["valid_loss"] for row in metrics(tmp_path) if "valid_loss" in row}
    assert position.best_step == min(losses, key=lambda step: losses[step])


def test_selection_by_loss_ranks_no_validation_row(tmp_path: Path) -> None:
    running, shown = job(tmp_path, select="loss"), io.StringIO()

    def rank_valid() -> dict[str, float]:
        raise AssertionError("ranked")

    replace(running, rank_valid=rank_valid, progress=Lines(shown)).train(resume=False)
    validated = [row for row in metrics(tmp_path) if "valid_loss" in row]
    assert len(validated) == 3
    assert not any(key.startswith(("valid_ndcg", "valid_hr")) for row in validated for key in row)
    assert f"validation loss {validated[-1]['valid_loss']:.4f}" in shown.getvalue()


def test_a_validation_without_the_figure_that_chooses_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="rank_valid gives no ndcg"):
        replace(job(tmp_path), rank_valid=dict).train(resume=False)


class Clock:
    """A clock that runs on by some seconds with each update, and with each checkpoint."""

    def __init__(self, update: float, save: float = 0.0) -> None:
        self.now, self.saved = 0.0, list[int]()
        self._update, self._save = update, save

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        update, save = Trainer.run_update, checkpoint.Checkpoints.save

        def run_update(*args: Any) -> dict[str, Any]:
            self.now += self._update
            return update(*args)

        def timed(own: Any, model: Any, optimizer: Any, state: dict[str, Any]) -> Path:
            self.now += self._save
            self.saved.append(state["step"])
            return save(own, model, optimizer, state)

        monkeypatch.setattr(Trainer, "run_update", run_update)
        monkeypatch.setattr(checkpoint.Checkpoints, "save", timed)
        return self


@pytest.mark.parametrize(
    ("save_every", "update", "save", "saved"),
    [
        (None, 250, 0, [3, 6, 9, 12]),
        (None, 60, 0, [10, 12]),
        (None, 10, 0, [12]),
        (None, 600, 0, list(range(1, 13))),
        (None, 250, 90, [3, 7, 11, 12]),  # 900 s after one that took 90 s
        (5, 250, 0, [5, 10, 12]),  # as it was asked for
    ],
)
def test_without_save_every_a_checkpoint_comes_after_ten_minutes(
    save_every: int | None,
    update: float,
    save: float,
    saved: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(update, save).install(monkeypatch)
    job(tmp_path, epochs=4, validate_every=100, save_every=save_every).train(resume=False)
    assert clock.saved == saved


def test_a_validation_starts_the_ten_minutes_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(250).install(monkeypatch)
    job(tmp_path, epochs=4, validate_every=4 / 3, save_every=None).train(resume=False)
    assert clock.saved == [3, 4, 7, 8, 11, 12]


def test_a_run_killed_after_a_checkpoint_by_time_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"epochs": 4, "validate_every": 100, "save_every": None}
    straight, killed = (
        job(tmp_path / "a", "ats", **settings),
        job(tmp_path / "b", "ats", **settings),
    )
    straight.train(resume=False)
    Clock(250).install(monkeypatch)
    kill_behind(killed, 5)
    assert [p.name for p in checkpoint.all_of(tmp_path / "b" / "checkpoints")] == ["step-3"]
    job(tmp_path / "b", "ats", **settings).train(resume=True)
    assert metrics(killed.folder) == metrics(straight.folder)
    assert final_state(killed.folder) == final_state(straight.folder)


def poison(monkeypatch: pytest.MonkeyPatch, bad: float, passes: set[int]) -> None:
    """Make the total loss of some forward passes (counted from 1) ``bad``."""
    forward, calls = PolicyLoss.forward, []

    def poisoned(self: Any, *args: Any) -> Any:
        total, further = forward(self, *args)
        calls.extend([1] * torch.is_grad_enabled())  # not in validation
        return (total * bad if len(calls) in passes else total), further

    monkeypatch.setattr(PolicyLoss, "forward", poisoned)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_or_inf_stops_before_the_update_and_names_step_and_rows(
    tmp_path: Path, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = job(tmp_path, micro_batch=4)  # two passes an update: the fifth is of step 3
    poison(monkeypatch, bad, {5})
    with pytest.raises(NumbersError, match=r"step 3: loss = .*training rows concerned: \d"):
        running.train(resume=False)
    assert all(torch.isfinite(p).all() for p in running.policy.parameters())
    (noted,) = [json.loads(x) for x in (tmp_path / "nonfinite.jsonl").read_text().splitlines()]
    assert noted["step"] == 3
    assert len(noted["rows"]) == 4  # of the pass, not of the whole batch
    assert set(noted["rows"]) <= set(running.sampler.numbers_of(2))


def test_a_bad_gradient_alone_stops_too(tmp_path: Path) -> None:
    running = job(tmp_path)
    weight = running.policy.head().weight_VD
    weight.register_hook(lambda gradient: gradient * math.nan)
    before = checkpoint.trained_weights(running.policy)
    with pytest.raises(NumbersError, match=r"step 1: loss = \d.*gradient norm = nan"):
        running.train(resume=False)
    for name, value in checkpoint.trained_weights(running.policy).items():
        assert torch.equal(value, before[name])


def test_bad_updates_can_be_left_out_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = job(tmp_path, on_nonfinite="skip", skip_limit=2)
    poison(monkeypatch, math.nan, {2, 4})
    position = running.train(resume=False)
    assert (position.step, position.skipped) == (9, 2)
    assert [row["step"] for row in metrics(tmp_path) if row.get("skipped")] == [2, 4]
    assert all(torch.isfinite(p).all() for p in running.policy.parameters())
    poison(monkeypatch, math.nan, {1, 2, 3})
    with pytest.raises(NumbersError, match="step 3"):
        job(tmp_path / "b", on_nonfinite="skip", skip_limit=2).train(resume=False)


def test_schedules_warm_up_and_end_at_zero() -> None:
    section = TrainSection(learning_rate=2.0, warmup=4, schedule="linear")
    assert [compute_learning_rate(section, s, 12) for s in (0, 3, 4, 8, 12)] == [
        0.5,
        2.0,
        2.0,
        1.0,
        0.0,
    ]
    cosine = TrainSection(learning_rate=2.0, warmup=0.25, schedule="cosine")
    assert compute_learning_rate(cosine, 2, 12) == 2.0
    assert compute_learning_rate(cosine, 3 + 3, 12) == pytest.approx(1 + math.cos(math.pi / 3))
    assert compute_learning_rate(cosine, 12, 12) == pytest.approx(0)
    constant = TrainSection(learning_rate=2.0, warmup=0, schedule="constant")
    assert compute_learning_rate(constant, 11, 12) == 2.0


def test_weight_decay_spares_norms(tmp_path: Path) -> None:
    policy = job(tmp_path).policy
    decayed, spared = trainer.make_optimizer(policy, TrainSection(weight_decay=0.1)).param_groups
    assert all(p.ndim == 2 for p in decayed["params"])
    assert all(p.ndim == 1 for p in spared["params"])
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
