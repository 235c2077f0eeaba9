"""Updates made ahead: the same ones, in a thread that asks nobody, and errors where they belong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmrec_cli.errors import DataError
from llmrec_cli.training.collator import MicroBatch
from llmrec_cli.training.dataset import DataLoader, Dataset, Sampler, Update, draw_order
from llmrec_cli.training.distributed import Ranks
from llmrec_cli.training.rows import AnyRow
from llmrec_cli.training.trainer import PolicyLoss, Trainer
from tests.training.tiny import final_state, job, metrics, rows

STEPS = 9  # of a tiny job: 22 rows, 8 an update, 3 epochs


@dataclass(frozen=True)
class Watched:
    """A row transform that notes when and where it is called."""

    runs_ahead: bool = True
    made: Callable[[int], object] = lambda step: None
    steps: list[int] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def __call__(self, rows: Sequence[AnyRow], step: int) -> list[AnyRow]:
        self.steps.append(step)
        self.threads.append(threading.current_thread())
        self.made(step)
        return list(rows)


def watching(folder: Path, watched: Watched, **section: Any) -> Trainer:
    running = job(folder, "ats", **section)
    return replace(running, train_set=Dataset(rows(), (watched,)))


def threads_left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("collate")]


def tensors_of(micro: MicroBatch) -> dict[str, torch.Tensor]:
    found = {"input_ids_BT": micro.input_ids_BT, "take_P": micro.take_P}
    values = {each.name: getattr(micro.batch, each.name) for each in fields(micro.batch)}
    return found | {name: v for name, v in values.items() if isinstance(v, torch.Tensor)}


def check_same(found: Update, expected: Update) -> None:
    assert found.numbers == expected.numbers
    assert len(found.passes) == len(expected.passes) > 1
    for one, other in zip(found.passes, expected.passes, strict=True):
        assert [row.number for row in one.rows] == [row.number for row in other.rows]
        tensors = zip(tensors_of(one.micro).items(), tensors_of(other.micro).items(), strict=True)
        for (name, a), (_, b) in tensors:
            assert torch.equal(a, b), name


@pytest.mark.parametrize("first", [0, 4])
def test_updates_made_ahead_are_those_made_when_they_are_asked_for(
    tmp_path: Path, first: int
) -> None:
    ahead = watching(tmp_path, Watched(), micro_batch=3).loader
    at_once = watching(tmp_path, Watched(runs_ahead=False), micro_batch=3).loader
    with ahead, at_once:
        for step in range(first, STEPS):
            check_same(ahead.load_update(step), at_once.load_update(step))


def test_the_next_update_is_made_while_one_is_computed(tmp_path: Path) -> None:
    made = {step: threading.Event() for step in range(STEPS)}
    watched = Watched(made=lambda step: made[step].set())
    loader = watching(tmp_path, watched).loader
    with loader:
        for step in range(STEPS):
            loader.load_update(step)
            assert step + 1 == STEPS or made[step + 1].wait(60)  # nobody has asked for it yet
    assert watched.steps == list(range(STEPS))  # each once, and none behind the last
    assert watched.threads[0] is threading.main_thread()
    assert threading.main_thread() not in watched.threads[1:]
    assert threads_left() == []


def test_what_looks_at_the_model_is_asked_in_its_turn_by_the_loop_itself(tmp_path: Path) -> None:
    """One such transform among others is enough; mined negatives and references say so."""
    order: list[tuple[str, int]] = []
    watched = Watched(made=lambda step: order.append(("made", step)))
    both = Dataset(rows(), (watched, Watched(runs_ahead=False)))
    running = replace(job(tmp_path, "ats"), train_set=both)
    update = running.run_update

    def noted(*args: Any) -> Any:
        row = update(*args)
        order.append(("done", row["step"] - 1))
        return row

    object.__setattr__(running, "run_update", noted)
    running.train(resume=False)
    assert order == [(what, step) for step in range(STEPS) for what in ("made", "done")]
    assert set(watched.threads) == {threading.main_thread()}


def test_losses_and_weights_are_the_same_with_and_without(tmp_path: Path) -> None:
    for name, ahead in (("ahead", True), ("at once", False)):
        watching(tmp_path / name, Watched(runs_ahead=ahead), micro_batch=3).train(resume=False)
    assert metrics(tmp_path / "ahead") == metrics(tmp_path / "at once")
    assert final_state(tmp_path / "ahead") == final_state(tmp_path / "at once")


def test_an_error_belongs_to_its_update_and_leaves_no_thread(tmp_path: Path) -> None:
    def refuse(step: int) -> None:
        if step == 4:
            raise DataError("no row of the fifth update is any good")

    with pytest.raises(DataError, match="fifth update"):
        watching(tmp_path, Watched(made=refuse)).train(resume=False)
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3, 4]
    assert threads_left() == []


def test_an_interruption_does_not_wait_for_the_updates_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched()
    running = watching(tmp_path, watched)
    forward = PolicyLoss.forward

    def interrupted(self: PolicyLoss, *args: Any) -> Any:
        if running.state.step == 3:
            raise KeyboardInterrupt
        return forward(self, *args)

    monkeypatch.setattr(PolicyLoss, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        running.train(resume=False)
    assert max(watched.steps) <= 4
    assert threads_left() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["most", "add", "gather_numbers", "share_work", "wait", "first", "map_arrays"]
)
def test_the_thread_speaks_to_no_other_process(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    collective, threads = getattr(Ranks, name), set[threading.Thread]()

    def noted(*args: Any, **named: Any) -> Any:
        threads.add(threading.current_thread())
        return collective(*args, **named)

    monkeypatch.setattr(Ranks, name, noted)
    watching(tmp_path, Watched(), micro_tokens=40).train(resume=False)
    assert threads <= {threading.main_thread()}
    assert threads or name in ("gather_numbers", "share_work", "first", "map_arrays")


@pytest.mark.parametrize(("stop", "epochs"), [(None, [0, 1, 2]), (5, [1, 2])])
def test_a_run_draws_each_epochs_order_once(
    tmp_path: Path, stop: int | None, epochs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def counting(n_rows: int, seed: int, epoch: int) -> np.ndarray[Any, Any]:
        drawn.append(epoch)
        return draw_order(n_rows, seed, epoch)

    if stop is not None:
        watching(tmp_path, Watched(), save_every=1, max_steps=stop).train(resume=False)
    monkeypatch.setattr("llmrec_cli.training.dataset.draw_order", counting)
    watching(tmp_path, Watched(), save_every=1).train(resume=stop is not None)
    assert drawn == epochs


def test_a_process_without_rows_computes_one_for_nothing(tmp_path: Path) -> None:
    """Two rows and three processes: the third one's pass is spare, with the first row."""
    plain = watching(tmp_path, Watched())

    @dataclass(frozen=True)
    class Third:
        def share(self, numbers: Sequence[int]) -> list[int]:
            return list(numbers[2::3])

    ranks: Any = Third()
    collator = plain.make_collator()
    loader = DataLoader(
        Dataset(rows(2)), Sampler(2, 2), collator, plain.loader.limits, ranks, steps=1
    )
    update = loader.load_update(0)
    assert update.passes == []
    assert [row.number for row in update.spare.rows] == update.numbers[:1]
    assert list(loader.iterate_passes(0)) == []
