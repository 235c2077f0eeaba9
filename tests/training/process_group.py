"""Groups of processes for tests: started like torchrun's ranks, each runs one scenario.

``run_group(n, folder)`` starts n of this module with a FOLDER, which go through all scenarios one
after the other, and returns what each rank found in each.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmrec_cli.config.training import TrackSection
from llmrec_cli.decoding.search import DecodeOptions, rank_catalogue
from llmrec_cli.errors import NumbersError
from llmrec_cli.runs.tracking import open_trackers
from llmrec_cli.training import trainer
from llmrec_cli.training.checkpoint import Checkpoints, trained_weights
from llmrec_cli.training.distributed import Ranks
from llmrec_cli.training.trainer import PolicyLoss
from tests.training.sharded import spread
from tests.training.tiny import CATALOGUE, final_state, job

TRIED = ("lml", "ats", "bear", "texts")
COMPARING = ("sprec",)  # with a reference, which weights in pieces do not allow
DRAWING = ("grpo", "drawn")
SECTIONS: dict[str, dict[str, Any]] = {
    "ragged": {"batch": 8, "epochs": 2},  # the last batch of an epoch has 6 rows
    "fewer rows than ranks": {"batch": 2, "max_steps": 3},
    "accumulated": {"batch": 8, "epochs": 1, "micro_batch": 2},
    "by tokens": {"batch": 8, "epochs": 1, "micro_tokens": 24},  # unequally many passes
}
ROWS, BATCHES = (1, 7, 13, 99), (1, 2, 3, 4, 5, 6)


def run_group(n: int, folder: Path, timeout: float = 300) -> list[dict[str, Any]]:
    """For each rank the scenarios' results by name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.process_group", str(folder)],
            cwd=Path(__file__).parents[2],  # the package of this checkout
            env=os.environ
            | {k: str(v) for k, v in shared.items()}
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(n)
    ]
    try:
        errors = [rank.communicate(timeout=timeout)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    codes = [rank.returncode for rank in ranks]
    assert codes == [0] * n, f"exit codes {codes}\n" + "\n".join(errors)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(n)]


def sections(folder: Path) -> None:
    """Every method and way to split a batch, without dropout; the first rank logs."""
    for method in (*TRIED, *COMPARING):
        for name, section in SECTIONS.items():
            job(folder / method / name, method, dropout=0, **section).train(resume=False)


def rollouts(folder: Path) -> None:
    """The policy's own answers at every update, which all ranks look for together."""
    for method in DRAWING:
        for name in ("ragged", "fewer rows than ranks"):
            job(folder / method / name, method, dropout=0, **SECTIONS[name]).train(resume=False)


def lists(folder: Path) -> dict[str, Any]:
    """Ranked lists of n rows, decoded b at once by all ranks together."""
    running = job(folder / "lists")
    ranks, found = running.ranks, {}
    for n in ROWS:
        prompts = prompts_of(n)
        for batch in BATCHES:
            options = DecodeOptions(k=3, batch=batch)

            def work(numbers: Any, options: DecodeOptions = options, prompts: Any = prompts) -> Any:
                mine = [prompts[i] for i in numbers]
                ranked = rank_catalogue(running.policy.model, running.trie, mine, options)
                return [(ranked.leaf_BK, -1), (torch.tensor(list(numbers), dtype=torch.int64), -1)]

            leaf_BK, number_B = ranks.share_work(n, work)
            found[f"{n} {batch}"] = [leaf_BK.tolist(), number_B.tolist()]
    return found


def prompts_of(n: int) -> list[list[int]]:
    """Ragged prompts: row i holds one to five items."""
    return [
        [1, *(t for j in range(1 + i % 5) for t in CATALOGUE[(i * 3 + j) % 7])] for i in range(n)
    ]


def bad_numbers(folder: Path) -> dict[str, Any]:
    """NaN in the loss, then in a gradient, of the last rank alone."""
    found = {}
    for kind in ("loss", "gradient"):
        running = job(folder / kind, dropout=0, save_every=1)
        last = running.ranks.index == running.ranks.count - 1
        if kind == "gradient" and last:
            hook = NanAfter(3)  # the first pass settles the buckets
            running.policy.head().weight_VD.register_post_accumulate_grad_hook(hook)
        forward = PolicyLoss.forward
        if kind == "loss" and last:
            PolicyLoss.forward = poisoned(forward, 4)  # type: ignore[method-assign]  # on purpose
        try:
            running.train(resume=False)
            message = "no error"
        except NumbersError as error:
            message = str(error)
        PolicyLoss.forward = forward  # type: ignore[method-assign]  # as it was
        finite = all(bool(torch.isfinite(p).all()) for p in running.policy.parameters())
        weights = {k: float(v.sum()) for k, v in trained_weights(running.policy).items()}
        found[kind] = {"message": message, "finite": finite, "weights": weights}
    return found


class NanAfter:
    """Makes a gradient NaN from the ``at``-th backward pass on, on this rank."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0

    def __call__(self, parameter: torch.Tensor) -> None:
        self.seen += 1
        if self.seen >= self.at and parameter.grad is not None:
            parameter.grad.mul_(math.nan)


def poisoned(forward: Callable[..., Any], at: int) -> Callable[..., Any]:
    """A forward pass whose ``at``-th training loss is NaN."""
    calls: list[int] = []

    def run(self: Any, *args: Any) -> Any:
        total, further = forward(self, *args)
        calls.extend([1] * torch.is_grad_enabled())
        return (total * math.nan if len(calls) == at else total), further

    return run


def one_signal(folder: Path) -> dict[str, Any]:
    """SIGUSR1 to one rank during the third update, and again during the save; then go on."""
    straight = job(folder / "straight")
    straight.train(resume=False)
    got: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
    stopped = job(folder / "stopped")
    if stopped.ranks.index == stopped.ranks.count - 1:
        signalled = replace(stopped.train_set, row_transforms=(Signalling(),))
        stopped = replace(stopped, train_set=signalled)
    position = stopped.train(resume=False)
    stopped.ranks.wait()
    at = position.step
    job(folder / "stopped").train(resume=True)
    stopped.ranks.wait()
    same = final_state(folder / "stopped") == final_state(folder / "straight")
    return {"got": got, "step": at, "same": same}


def by_time(folder: Path) -> dict[str, list[int]]:
    """Steps of this rank's checkpoints, where ten minutes pass in each update on one rank alone."""
    saved: dict[str, list[int]] = {}
    save, usual = Checkpoints.save, (trainer.SAVE_SECONDS, trainer.SAVE_SHARE)

    def noted(self: Checkpoints, model: Any, optimizer: Any, state: dict[str, Any]) -> Path:
        steps.append(state["step"])
        return save(self, model, optimizer, state)

    Checkpoints.save = noted  # type: ignore[method-assign]  # on purpose
    for name, rank in (("first", 0), ("another", 1)):
        running = job(folder / name, epochs=1, validate_every=100, save_every=None)
        steps = saved[name] = []
        if running.ranks.index == rank:
            trainer.SAVE_SECONDS, trainer.SAVE_SHARE = 0, 0  # type: ignore[misc]  # on purpose
        running.train(resume=False)
        trainer.SAVE_SECONDS, trainer.SAVE_SHARE = usual  # type: ignore[misc]  # as it was
        running.ranks.wait()
    Checkpoints.save = save  # type: ignore[method-assign]  # as it was
    return saved


class Signalling:
    """A row transform that sends this process signals when the third update is completed."""

    runs_ahead = False

    def __call__(self, rows: Any, step: int) -> Any:
        if step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR1)
        return rows


def telling(folder: Path) -> dict[str, Any]:
    """What ranks tell one another."""
    ranks = job(folder / "telling").ranks
    order: list[str] = []

    def work() -> None:
        (folder / "made").write_text("whole")
        order.append("worked")

    ranks.first(work, folder / ".lock")
    return {
        "most": ranks.most(10 * ranks.index),
        "sum": ranks.add({"a": torch.tensor(float(ranks.index)), "b": torch.tensor(1.0)}),
        "gathered": ranks.gather_numbers(list(range(ranks.index))),
        "share": ranks.share(range(7)),
        "fed": ranks.pick_share(range(1)),
        "worked": order,
        "saw": (folder / "made").read_text(),
    }


def mapping(folder: Path) -> dict[str, Any]:
    """Arrays that one rank makes, the others map, and one of them writes into."""
    ranks, made = job(folder / "mapping").ranks, []
    tempfile.tempdir = str(folder)

    def make() -> dict[str, Any]:
        made.append(ranks.index)
        return {"a": np.arange(5, dtype=np.int32) + ranks.index, "b": np.ones((2, 3))}

    found = ranks.map_arrays(make)
    maps = Path("/proc/self/maps").read_text()
    left = [path.name for path in folder.glob("llmrec-*")]
    found["b"][0, 0] = ranks.index
    ranks.wait()
    shown = {name: array.tolist() for name, array in found.items()}
    return {"made": made, "shown": shown, "mapped": "a.npy (deleted)" in maps, "left": left}


class Elsewhere:
    """An Accelerator on a machine of its own."""

    local_process_index, is_local_main_process = 0, True

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)


def many_machines(folder: Path) -> dict[str, Any]:
    """Every rank on another machine, all with the same folder for temporary files."""
    accelerator: Any = Elsewhere(job(folder / "machines").ranks.accelerator)
    ranks = Ranks(accelerator)
    found = ranks.map_arrays(lambda: {"a": np.full(3, ranks.index)})
    return {"shown": found["a"].tolist()}


def in_pieces(folder: Path) -> dict[str, Any]:
    """Every method and way to split a batch, weights spread over the ranks; and a resumption."""
    for method in TRIED:
        for name, section in SECTIONS.items():
            running = job(folder / "pieces" / method / name, method, dropout=0, **section)
            spread(running).train(resume=False)
    straight, again = folder / "pieces" / "straight", folder / "pieces" / "again"
    running = spread(job(straight, "ats"))
    position = running.train(resume=False)
    if running.ranks.is_first:
        shutil.copytree(straight, again)
        shutil.rmtree(again / "checkpoints" / f"step-{position.step}")
    running.ranks.wait()
    resumed = spread(job(again, "ats"))
    kinds = {type(p).__name__ for p in resumed.policy.parameters()}
    resumed.train(resume=True)
    resumed.ranks.wait()
    kinds |= {type(p).__name__ for p in resumed.policy.parameters()}
    return {"same": final_state(again) == final_state(straight), "kinds": sorted(kinds)}


def once_in_a_tracker(folder: Path) -> list[str]:
    """TensorBoard's files of a run in which all ranks work together."""
    running, section = job(folder / "tracked"), TrackSection(trackers=("tensorboard",))
    first, said = running.ranks.is_first, list[str]()
    with open_trackers(section, running.folder, writes=first, say=said.append) as trackers:
        replace(running, trackers=trackers).train(resume=False)
    running.ranks.wait()
    return [*said, *(path.parent.name for path in running.folder.rglob("*tfevents*"))]


def main(folder: Path) -> None:
    found = {
        run.__name__: run(folder)
        for run in (
            sections,
            rollouts,
            lists,
            bad_numbers,
            one_signal,
            by_time,
            telling,
            mapping,
            once_in_a_tracker,
            many_machines,
            in_pieces,
        )
    }
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # gloo's threads now and then end an interpreter that takes itself down with "terminate called
    # without an active exception"; all that is tested has happened.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
