"""``python -m tests.robustness.torture --size ci|full --out DIR``: kills lose nothing.

Every method is trained on one and on two processes, and the whole process group is killed again and
again: half of the time inside a save (at a random moment of it, or right before one of its file
operations), half at moments drawn over the whole command, from start-up to the writing of the
result.  After each kill the folder is looked at, and the run goes on with ``--resume`` until done.
Then its folder must hold, byte for byte, what an uninterrupted run leaves; only clock times and the
command line may differ.  A few kills go through the real launcher (``torture_launcher``).

The exit code is 1 when a promise was broken.  Linux; dropout is on wherever the method allows it.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.robustness.torture_aim import drawn
from tests.robustness.torture_attempt import Attempt, Kill, attempt
from tests.robustness.torture_checks import Watch
from tests.robustness.torture_launcher import launcher_kills
from tests.robustness.torture_report import Hit, Outcome, write_report

Size = Literal["ci", "full"]
KEEP = 2
RECIPE = [
    "quickstart",
    "name=torture",
    "data.sample.train=96",
    "data.sample.valid=16",
    "data.sample.test=16",
    "data.history=5",
    "model.scratch.hidden=16",
    "model.scratch.feed_forward=16",
    "model.scratch.vocabulary=400",
    "train.epochs=3",
    "train.batch=16",
    "train.micro_batch=8",
    "train.save_every=2",
    f"train.keep={KEEP}",
    "train.validate_every=1.4",
    "train.validate_rows=8",
    "baseline.sasrec.hidden=16",
    "baseline.sasrec.train.epochs=2",
    "launch.device=cpu",
    "launch.timeout=40",
    "align.dmpo.train.max_steps=18",
    "align.dmpo.train.batch=4",
    "align.dmpo.train.micro_batch=2",
    "align.dmpo.pool=6",
    "align.sprec.train.max_steps=18",
    "align.sprec.train.batch=4",
    "align.sprec.train.micro_batch=2",
    "align.sprec.refresh=3",
]


@dataclass(frozen=True)
class Case:
    """A training command; ``made`` are the runs that it stands on, finished."""

    name: str
    words: tuple[str, ...]
    run: str
    made: tuple[str, ...] = ()

    def command(self, processes: int) -> list[str]:
        first, *others = self.words
        return [first, *RECIPE, *others, f"launch.processes={processes}", "--resume"]


CASES = [
    Case("sft", ("sft",), "sft"),
    Case("msl, adaptive tau", ("align", "-m", "msl", "align.msl.tau=ats"), "align-msl"),
    Case(
        "dmpo, refreshed negatives",
        ("align", "-m", "dmpo", "align.dmpo.refresh=3"),
        "align-dmpo",
        ("sft", "base"),
    ),
    Case(
        "dmpo, stored reference",
        ("align", "-m", "dmpo", "align.dmpo.reference=precompute"),
        "align-dmpo",
        ("sft", "base"),
    ),
    Case("dmpo, mined once", ("align", "-m", "dmpo"), "align-dmpo", ("sft", "base")),
    Case("ilrec", ("align", "-m", "ilrec"), "align-ilrec", ("baseline-sasrec", "base")),
    Case("sprec, moving reference", ("align", "-m", "sprec"), "align-sprec", ("sft", "base")),
]
# (case, processes, kills)
PLANS: dict[Size, list[tuple[int, int, int]]] = {
    "ci": [(0, 1, 2), (3, 1, 1), (5, 2, 1), (6, 1, 1)],
    "full": [(case, processes, 25) for case in range(len(CASES)) for processes in (1, 2)],
}
LAUNCHER_KILLS: dict[Size, int] = {"ci": 1, "full": 16}


def main() -> int:
    """Run the plan; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.robustness.torture", description=__doc__)
    parser.add_argument("--size", choices=("ci", "full"), default="ci")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two reports")
    parser.add_argument("--seed", type=int, default=None, help="of the kills; printed if absent")
    parser.add_argument("--case", type=int, help="only this one of the methods, from 0")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}", flush=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        scratch, draw = Path(name), random.Random(seed)
        plan = [p for p in PLANS[arguments.size] if arguments.case in (None, p[0])]
        evaluated_data = _ground(scratch / "ground")
        outcomes = [_torture(c, n, kills, evaluated_data, scratch, draw) for c, n, kills in plan]
        if arguments.case is None:
            kills = LAUNCHER_KILLS[arguments.size]
            outcomes.append(_through_the_launcher(evaluated_data, scratch, kills, draw))
    minutes = (time.monotonic() - begun) / 60
    write_report(arguments.out, outcomes, arguments.size, seed, minutes)
    return 1 if any(outcome.problems for outcome in outcomes) else 0


def _ground(folder: Path) -> Path:
    """A folder in which everything is finished that some case stands on."""
    folder.mkdir()
    for words in (["prepare"], ["baseline", "-m", "sasrec"], ["sft"]):
        ended = attempt([words[0], *RECIPE, *words[1:]], folder, 1, Kill())
        _require_end(ended, folder)
    return folder


def copied(evaluated_data: Path, case_runs: tuple[str, ...], folder: Path) -> Path:
    """A fresh place with the prepared data and the finished runs that are asked for."""
    for name in ("prepared", *case_runs):
        shutil.copytree(evaluated_data / "runs/torture" / name, folder / "runs/torture" / name)
    return folder


def _torture(
    number: int,
    processes: int,
    kills: int,
    evaluated_data: Path,
    scratch: Path,
    draw: random.Random,
) -> Outcome:
    """Kill runs of one case until there were so many kills; a run is resumed until it is done."""
    case = CASES[number]
    outcome = Outcome(f"{case.name}", processes)
    fresh = scratch / f"{number}-{processes}-uninterrupted"
    copied(evaluated_data, case.made, fresh)
    straight = attempt(case.command(processes), fresh, processes, Kill())
    _require_end(straight, fresh)
    while len(outcome.hits) < kills and not outcome.problems:
        folder = copied(evaluated_data, case.made, scratch / f"{number}-{processes}-{outcome.runs}")
        _until_done(case, folder, fresh, straight, kills, draw, outcome)
        if not outcome.problems:
            shutil.rmtree(folder)
    print(f"{outcome.summary()}", flush=True)
    return outcome


def _through_the_launcher(
    evaluated_data: Path, scratch: Path, kills: int, draw: random.Random
) -> Outcome:
    """The first case, as users start it on two processes."""
    start, fresh = (
        copied(evaluated_data, (), scratch / name) for name in ("launcher-0", "launcher-1")
    )
    command, uninterrupted = CASES[0].command(2), fresh / "runs/torture"
    straight = attempt(command, fresh, 2, Kill())
    _require_end(straight, fresh)
    watch = Watch(scratch / "launcher/runs/torture" / CASES[0].run, KEEP)
    return launcher_kills(command, start, uninterrupted, watch, kills, 2 * straight.seconds, draw)


def _until_done(
    case: Case,
    folder: Path,
    fresh: Path,
    straight: Attempt,
    kills: int,
    draw: random.Random,
    outcome: Outcome,
) -> None:
    """One run of the case, killed and resumed to its end, and compared."""
    watch = Watch(folder / "runs/torture" / case.run, KEEP)
    steps = len(straight.spans("log"))
    outcome.runs += 1
    while True:
        left = 1 - watch.newest / steps
        kill = Kill()
        if len(outcome.hits) < kills:
            kill = drawn(straight, left, outcome.processes, draw)
        said_before = _said(folder)
        ended = attempt(case.command(outcome.processes), folder, outcome.processes, kill)
        said = _said(folder).removeprefix(said_before)
        watch.attempted(said, ended.codes, hung=ended.hung, refused=kill.refused)
        if not ended.struck or watch.problems:
            break
        watch.killed()
        if kill.refused:
            outcome.refusals += 1
        else:
            outcome.hits.append(Hit(kill.kind, ended.phase, watch.newest))
    if not ended.struck:
        watch.finished(fresh / "runs/torture")
    if watch.problems:
        watch.problems.append(f"output: {_said(folder)[-2000:]}")
    outcome.problems += watch.problems


def _said(folder: Path) -> str:
    path = folder / "log.txt"
    return path.read_text() if path.exists() else ""


def _require_end(ended: Attempt, folder: Path) -> None:
    if any(ended.codes):
        raise SystemExit(f"a run that nobody killed ended with {ended.codes}:\n{_said(folder)}")


if __name__ == "__main__":
    sys.exit(main())
