"""Kills of a run that was started as users start it: a launcher and two ranks of its own making.

The launcher's process group is killed; the ranks live in sessions of their own and must notice.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.robustness.torture_checks import Watch
from tests.robustness.torture_report import Hit, Outcome

ROOT = Path(__file__).resolve().parents[2]
ORPHANS_END = 20.0  # seconds: they end at once, on a machine with nothing else to do
LIMIT = 300.0


def launcher_kills(
    command: Sequence[str],
    start: Path,
    uninterrupted: Path,
    watch: Watch,
    kills: int,
    seconds: float,
    draw: random.Random,
) -> Outcome:
    """Kill a launcher again and again, and resume to the end.

    Args:
        command: of ``llmrec``.
        start: folder with what the run stands on; copied for each run.
        uninterrupted: the experiment's folder as two ranks leave it.
        watch: of the run, in the copy.
        seconds: kills are drawn from so long after the launcher, the ranks, or training began.
    """
    outcome = Outcome("sft, through the launcher", 2)
    folder = watch.folder.parents[2]
    while len(outcome.hits) < kills and not outcome.problems:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(start, folder)
        watch.newest = watch.most = 0
        outcome.runs += 1
        for _ in range(min(4, kills - len(outcome.hits))):
            begun = draw.choice((_launched, _ranks_started, _rows_written, _rows_written))
            hit = _killed(command, folder, begun, draw.random() * seconds, watch)
            if hit is None:
                break
            outcome.hits.append(hit)
        _finish(command, folder, uninterrupted, watch)
        outcome.problems += watch.problems
    print(outcome.summary(), flush=True)
    return outcome


def _launched(folder: Path) -> bool:
    return True


def _ranks_started(folder: Path) -> bool:
    return len(processes_in(folder)) >= 3


def _rows_written(folder: Path) -> bool:
    """Whether rows were added since the log was cut to where the run goes on."""
    log = next(folder.glob("runs/torture/*/metrics.jsonl"), None)
    return _ranks_started(folder) and log is not None and log.stat().st_mtime > time.time() - 0.5


def _killed(
    command: Sequence[str],
    folder: Path,
    begun: Callable[[Path], bool],
    delay: float,
    watch: Watch,
) -> Hit | None:
    """Kill a launcher some seconds after something has begun; None: it was done before."""
    launcher = _started(command, folder)
    while launcher.poll() is None and not begun(folder):
        time.sleep(0.02)
    try:
        launcher.wait(delay)
        return None
    except subprocess.TimeoutExpired:
        ranks = len(processes_in(folder)) - 1
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
    _require_gone(folder, watch)
    watch.killed()
    return Hit("launcher", f"launcher: {ranks} ranks, {begun.__name__.strip('_')}", watch.newest)


def _require_gone(folder: Path, watch: Watch) -> None:
    begun = time.monotonic()
    while left := processes_in(folder):
        if time.monotonic() - begun > ORPHANS_END:
            watch.problems.append(f"{len(left)} orphans after {ORPHANS_END} s")
            for process in left:
                os.kill(process, signal.SIGKILL)
        time.sleep(0.02)


def _finish(command: Sequence[str], folder: Path, uninterrupted: Path, watch: Watch) -> None:
    code = _started(command, folder).wait(LIMIT)
    if code:
        watch.problems.append(f"exit code {code}: {(folder / 'log.txt').read_text()[-2000:]}")
    else:
        watch.finished(uninterrupted)


def _started(command: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """A launcher in a process group of its own; what it says goes to ``log.txt``."""
    words = [sys.executable, "-m", "llmrec_cli", *command]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with (folder / "log.txt").open("ab") as stream:
        return subprocess.Popen(
            words,
            cwd=folder,
            env=environment,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )


def processes_in(folder: Path) -> list[int]:
    """Processes whose working folder this is; those that have ended do not count."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.path.samefile(entry / "cwd", folder):
                found.append(int(entry.name))
        except OSError:
            continue  # gone, or not ours
    return found
