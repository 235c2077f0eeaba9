"""Trackers get the rows of ``metrics.jsonl``, each step once, and change nothing of a run."""

from __future__ import annotations

import errno
import json
import os
import sys
from dataclasses import dataclass, field, replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from accelerate import PartialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.training import TrackerName, TrackSection
from llmrec_cli.errors import MachineError, RecipeError
from llmrec_cli.runs.run import experiment_of
from llmrec_cli.runs.tracking import MetricsLog, Trackers, open_trackers, require_trackers
from llmrec_cli.training.trainer import Trainer
from llmrec_cli.utils.files import TRACKERS_FILE
from tests.training.tiny import final_state, job, metrics

Said = list[str]
Rows = dict[int, dict[str, float]]
FAKED: tuple[TrackerName, ...] = ("wandb", "mlflow", "trackio")


def train_tracked(
    folder: Path, *names: TrackerName, resume: bool = False, running: Trainer | None = None
) -> Said:
    """A tiny run with trackers; what was said of them."""
    said: Said = []
    section = TrackSection(trackers=names)
    with open_trackers(section, folder, writes=True, say=said.append) as trackers:
        replace(running or job(folder, "ats"), trackers=trackers).train(resume=resume)
    return said


def log_tracked(
    folder: Path, *names: TrackerName, steps: range = range(1, 10), online: bool = False
) -> Said:
    """Rows as the loop writes them, from behind a checkpoint on; what was said of the trackers."""
    said: Said = []
    section = TrackSection(trackers=names, online=online)
    PartialState(cpu=True)  # the processes, which a training knows
    folder.mkdir(parents=True, exist_ok=True)
    with open_trackers(section, folder, writes=True, say=said.append) as trackers:
        log = MetricsLog(folder / "metrics.jsonl", trackers=trackers)
        log.keep_until(steps.start - 1)
        for step in steps:
            loss = None if step == 3 else 1 / step
            row = {"step": step, "epoch": step / 3, "loss": loss, "skipped": step == 3}
            log.append(row | ({"valid_ndcg@2": 0.5} if step % 3 == 0 else {}))
    return said


def dying(folder: Path, at: int) -> Trainer:
    """A job that dies at its ``at``-th validation, behind the last checkpoint."""
    running, done = job(folder, "ats"), []

    def rank_valid() -> dict[str, float]:
        done.append(1)
        if len(done) == at:
            raise KeyboardInterrupt
        return {"ndcg@2": 0.5}

    return replace(running, rank_valid=rank_valid)


def numbers(folder: Path) -> Rows:
    """Rows of metrics.jsonl by step, numbers only."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        row["step"]: {k: v for k, v in row.items() if k != "step" and v is not None} for row in rows
    }


def shown_by_tensorboard(folder: Path) -> Rows:
    """What TensorBoard reads; no step may come twice in a curve."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    rows: Rows = {}
    for tag in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(tag)]
        assert steps == sorted(set(steps)), tag
        for event in events.Scalars(tag):
            rows.setdefault(event.step, {})[tag] = event.value
    return rows


def assert_same(shown: Rows, expected: Rows) -> None:
    assert shown.keys() == expected.keys()
    for step, row in expected.items():
        assert shown[step] == pytest.approx(row, rel=1e-6), step  # TensorBoard keeps fp32


def test_tensorboard_holds_the_rows_of_the_log(tmp_path: Path) -> None:
    said = train_tracked(tmp_path / "x/sft", "tensorboard")
    rows = numbers(tmp_path / "x/sft")
    assert len(rows) == 9
    assert any("valid_ndcg@2" in row and "tau" in row for row in rows.values())
    assert_same(shown_by_tensorboard(tmp_path / "x/sft"), rows)
    assert said == [f"sft: also in tensorboard: tensorboard --logdir {tmp_path}/x"]


def test_a_tracked_run_is_bit_identical_to_one_that_is_not(tmp_path: Path) -> None:
    job(tmp_path / "alone", "ats").train(resume=False)
    train_tracked(tmp_path / "tracked", "tensorboard")
    assert metrics(tmp_path / "tracked") == metrics(tmp_path / "alone")
    assert final_state(tmp_path / "tracked") == final_state(tmp_path / "alone")


def test_a_resumed_run_goes_on_in_the_curve(tmp_path: Path) -> None:
    """The updates behind the checkpoint are done again, with other figures in between."""
    folder = tmp_path / "x/sft"
    with pytest.raises(KeyboardInterrupt):
        train_tracked(folder, "tensorboard", running=dying(folder, at=2))
    before = shown_by_tensorboard(folder)
    assert max(before) == 5  # the checkpoint is of update 4
    train_tracked(folder, "tensorboard", resume=True)
    assert_same(shown_by_tensorboard(folder), numbers(folder))
    assert max(numbers(folder)) == 9


def test_a_tracker_that_comes_later_gets_the_whole_curve(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        dying(tmp_path, at=2).train(resume=False)
    train_tracked(tmp_path, "tensorboard", resume=True)
    assert_same(shown_by_tensorboard(tmp_path), numbers(tmp_path))


@pytest.mark.parametrize("broken", ["in a row", "at its end", "at its start"])
def test_a_tracker_that_fails_ends_nothing(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A full disk, as TensorBoard meets it: in a thread of its own."""
    from tensorboard.summary.writer import event_file_writer
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    written: list[int] = []

    def write(self: Any, data: bytes) -> None:
        written.append(len(data))
        if len(written) > 20:
            full()

    if broken == "in a row":
        monkeypatch.setattr(RecordWriter, "write", write)
    else:
        part = {"at its end": "close", "at its start": "__init__"}[broken]
        monkeypatch.setattr(event_file_writer.EventFileWriter, part, full)
    said = train_tracked(tmp_path / "x/sft", "tensorboard")
    warnings = [line for line in said if "warning" in line]
    assert warnings == [
        "sft: warning: tensorboard failed and gets no further rows; the run goes on "
        "(OSError: [Errno 28] No space left on device)"
    ]
    assert len(numbers(tmp_path / "x/sft")) == 9
    assert capfd.readouterr().err == ""


@dataclass
class Fake:
    """A tracker's package: what it was told, and what it saw of the environment."""

    opened: list[dict[str, Any]] = field(default_factory=list)
    seen: list[dict[str, str]] = field(default_factory=list)
    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    finished: int = 0
    closed: bool = False  # by trackio.finish()
    breaks: bool = False

    def open(self, **given: Any) -> Any:
        self.opened.append(given)
        self.seen.append(dict(os.environ))
        print("a word of its own")
        print("a word of its own", file=sys.stderr)
        info = SimpleNamespace(run_id=f"given-{len(self.opened)}")
        return SimpleNamespace(log=self.log, finish=self.finish, info=info)

    def log(self, values: dict[str, float], step: int) -> None:
        if self.breaks and len(self.rows) == 4:
            raise ConnectionError("https://ann:secret@tracker.example: gone\x1b[2J")
        assert all(type(value) in (int, float) for value in values.values())
        self.rows.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    """Packages of these names, with as much of them as Accelerate calls."""
    made: dict[str, Fake] = {}
    for name in FAKED:
        fake = made[name] = Fake()
        module: Any = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.init = module.start_run = fake.open
        module.Settings = dict
        module.log_metrics, module.end_run = fake.log, fake.finish
        module.finish = lambda fake=fake: setattr(fake, "closed", True)
        module.search_experiments = lambda filter_string: []
        module.create_experiment = lambda **given: given["name"]
        module.set_tracking_uri = lambda uri, fake=fake: fake.opened.append({"uri": uri})
        monkeypatch.setitem(sys.modules, name, module)
    return made


@pytest.mark.parametrize("name", FAKED)
def test_every_tracker_gets_the_rows(
    name: TrackerName, fakes: dict[str, Fake], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log_tracked(tmp_path, name)
    rename = (lambda key: key.replace("@", "_at_")) if name == "mlflow" else str
    expected = {
        step: {rename(key): value for key, value in row.items()}
        for step, row in numbers(tmp_path).items()
    }
    assert [step for step, _ in fakes[name].rows] == sorted(expected)
    assert dict(fakes[name].rows) == expected
    assert fakes[name].finished == 1
    assert fakes[name].closed == (name == "trackio")
    assert capfd.readouterr() == ("", "")


def test_offline_holds_whatever_the_environment_says(
    fakes: dict[str, Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = {
        "WANDB_MODE": "online",
        "MLFLOW_TRACKING_URI": "https://tracker.example",
        "MLFLOW_RUN_ID": "another",
        "TRACKIO_SPACE_ID": "ann/board",
        "TRACKIO_SERVER_URL": "https://tracker.example",
    }
    for variable, value in elsewhere.items():
        monkeypatch.setenv(variable, value)
    before = dict(os.environ)
    log_tracked(tmp_path / "x/sft", *FAKED)
    assert fakes["wandb"].opened[0]["mode"] == "offline"
    assert fakes["wandb"].opened[0]["dir"] == str(tmp_path / "x/sft")
    address, run = fakes["mlflow"].opened
    assert address == {"uri": f"sqlite:///{tmp_path}/x/sft/mlflow/mlflow.db"}
    assert run["run_id"] is None
    seen = fakes["trackio"].seen[0]
    assert not [name for name in elsewhere if name.startswith("TRACKIO") and name in seen]
    assert seen["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", FAKED)
@pytest.mark.parametrize("online", [False, True])
def test_what_cannot_be_made_again_goes_on_without_the_steps_it_has(
    online: bool,
    name: TrackerName,
    fakes: dict[str, Fake],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracker.example")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "ann/board")
    log_tracked(tmp_path, name, online=online, steps=range(1, 6))
    fake = fakes[name]
    assert [step for step, _ in fake.rows] == [1, 2, 3, 4, 5]
    assert fake.finished == 1
    stays = online or name == "trackio"
    if not stays:
        fake.rows.clear()  # with the files
    log_tracked(tmp_path, name, online=online, steps=range(5, 10))
    assert [step for step, _ in fake.rows] == list(range(1, 10))
    runs = [given for given in fake.opened if "uri" not in given]
    key = {"wandb": "id", "mlflow": "run_id", "trackio": "name"}[name]
    first, second = (run[key] or "given-1" for run in runs)
    assert (first == second) == (stays or name == "mlflow")
    goes_on = runs[1].get("resume") in ("allow", "must") or runs[1].get("run_id") == "given-1"
    assert goes_on == stays
    assert (tmp_path / TRACKERS_FILE).exists() == stays


def test_a_failure_is_said_once_and_without_secrets(fakes: dict[str, Fake], tmp_path: Path) -> None:
    fakes["wandb"].breaks = True
    said = log_tracked(tmp_path / "x/sft", "wandb", "trackio")
    assert [line for line in said if "warning" in line] == [
        "sft: warning: wandb failed and gets no further rows; the run goes on "
        "(ConnectionError: https://tracker.example: gone [2J)"
    ]
    assert len(fakes["wandb"].rows) == 4
    assert len(fakes["trackio"].rows) == 9


def test_only_one_process_writes(tmp_path: Path) -> None:
    section = TrackSection(trackers=("tensorboard",))
    with open_trackers(section, tmp_path, writes=False, say=pytest.fail) as trackers:
        trackers.start([{"step": 1, "loss": 1.0}], seen=1)
        trackers.log({"step": 2, "loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_told_before_anything_is_written(tmp_path: Path) -> None:
    """wandb, mlflow and trackio are no part of the tests' packages."""
    wanted = r'track.trackers = "wandb": wandb is not installed: pip install "llmrec\[wandb\]"'
    with (
        pytest.raises(MachineError, match=wanted),
        open_trackers(TrackSection(trackers=("wandb",)), tmp_path, writes=True, say=pytest.fail),
    ):
        pytest.fail("was opened")


@pytest.mark.parametrize(
    ("name", "variables"),
    [("mlflow", "MLFLOW_TRACKING_URI"), ("trackio", "TRACKIO_SPACE_ID or TRACKIO_SERVER_URL")],
)
def test_online_needs_an_address(
    name: TrackerName, variables: str, fakes: dict[str, Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in variables.split(" or "):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(RecipeError, match=rf"\[track\] online = true: {name} .* set {variables} "):
        require_trackers(TrackSection(trackers=(name,), online=True))


def test_a_run_does_not_depend_on_its_trackers() -> None:
    with_one = read_recipe("quickstart", ["track.trackers=tensorboard", "track.online=true"])
    assert with_one.track.trackers == ("tensorboard",)
    for run in experiment_of(with_one).runs:
        assert run.settings(with_one) == run.settings(read_recipe("quickstart"))


def test_no_trackers_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trackers = Trackers()
    trackers.start([], seen=0)
    trackers.log({"step": 1})
    trackers.finish()
    assert list(tmp_path.iterdir()) == []
