"""Commands that a sweep starts: how they end, what they tell, and how they are stopped."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from llmrec_cli.config.training import Selection
from llmrec_cli.errors import LlmrecError, MachineError, NumbersError, UserError
from llmrec_cli.sweep.trial import Interrupted, Pruned, Watch, follow_command
from tests.sweep.sweeps import playing

ROWS = [
    {"step": 1, "loss": 2.0},
    {"step": 2, "loss": 1.0, "valid_loss": 3.0, "valid_ndcg@10": 0.1},
    {"step": 4, "loss": 1.0, "valid_loss": 2.0, "valid_ndcg@10": 0.2},
]
WRITES = f"""
import json, pathlib, signal, sys, time
file = pathlib.Path("metrics.jsonl")
for row in {ROWS!r}:
    with file.open("a") as stream:
        stream.write(json.dumps(row) + "\\n")
"""
WAITS = (
    WRITES
    + """
def ended(number, frame):
    pathlib.Path("checkpoint").touch()
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, ended)
pathlib.Path("ready").touch()
while True:
    time.sleep(0.01)
"""
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def carry_out(here: Path, watch: Watch, select: str = "ndcg", patience: float = 20) -> None:
    judged = here, Selection(select)
    follow_command(["align", "x"], {"OWN": "1"}, here / "said.log", judged, watch, patience)


@pytest.mark.parametrize(("select", "scores"), [("ndcg", [0.1, 0.2]), ("loss", [-3.0, -2.0])])
def test_every_validation_is_told_once_as_the_training_loop_scores_it(
    select: str, scores: list[float], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    playing(WRITES, here, monkeypatch)
    told = list[tuple[int, float]]()

    def validated(number: int, score: float) -> bool:
        told.append((number, score))
        return False

    carry_out(here, Watch(validated), select)
    assert told == list(enumerate(scores, start=1))


def test_a_pruned_command_may_write_its_checkpoint(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    playing(WAITS, here, monkeypatch)

    def validated(number: int, score: float) -> bool:
        while not (here / "ready").exists():
            time.sleep(0.05)
        return number == 2

    with pytest.raises(Pruned):
        carry_out(here, Watch(validated))
    assert (here / "checkpoint").exists()


def test_an_interrupted_command_may_write_its_checkpoint(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    playing(WAITS, here, monkeypatch)
    with pytest.raises(Interrupted):
        carry_out(here, Watch(should_stop=(here / "ready").exists))
    assert (here / "checkpoint").exists()


def test_a_command_that_does_not_stop_is_ended(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\npathlib.Path('ready').touch()\n"
    record = "pathlib.Path('pid').write_text(str(__import__('os').getpid()))\n"
    playing(WRITES + record + deaf + "while True:\n    signal.pause()\n", here, monkeypatch)
    with pytest.raises(Interrupted):
        carry_out(here, Watch(should_stop=(here / "ready").exists), patience=0.5)
    with pytest.raises(ProcessLookupError):
        os.kill(int((here / "pid").read_text()), 0)


def test_a_command_that_finishes_its_update_is_ended_where_nobody_waits(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has said that it heard of the first signal; it would go on for ever."""
    hears = "signal.signal(signal.SIGTERM, lambda *_: pathlib.Path('heard').touch())\n"
    record = "pathlib.Path('pid').write_text(str(__import__('os').getpid()))\n"
    loop = "pathlib.Path('ready').touch()\nwhile True:\n    signal.pause()\n"
    playing(WRITES + record + hears + loop, here, monkeypatch)
    watch = Watch(should_stop=(here / "ready").exists, should_end=(here / "heard").exists)
    with pytest.raises(Interrupted):
        carry_out(here, watch, patience=3600)
    with pytest.raises(ProcessLookupError):
        os.kill(int((here / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("sys.stderr.write('llmrec align: error: odd\\n'); sys.exit(2)", UserError, "align: odd"),
        ("sys.stderr.write('llmrec align: error: full\\n'); sys.exit(3)", MachineError, "full"),
        ("sys.stderr.write('llmrec align: error: nan\\n'); sys.exit(4)", NumbersError, "nan"),
        ("sys.exit(1)", LlmrecError, r"align: ended with exit code 1; see .*said\.log"),
        ("import os; os.kill(os.getpid(), 9)", MachineError, "ended by SIGKILL"),
    ],
)
def test_a_command_that_fails_is_its_own_line(
    script: str,
    kind: type[LlmrecError],
    message: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (here / "said.log").write_text("llmrec align: error: of the last time\n")
    playing(f"import sys; {script}", here, monkeypatch)
    with pytest.raises(kind, match=message) as caught:
        carry_out(here, Watch())
    assert "of the last time" not in str(caught.value)
    assert type(caught.value) is kind


def test_a_command_gets_its_words_and_devices_and_knows_who_started_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "import json, os, sys; json.dump([sys.argv[1:], os.environ['OWN'], "
    told += "os.environ['LLMREC_LAUNCHER'], os.getsid(0) == os.getpid()], open('told', 'w'))"
    playing(told, here, monkeypatch)
    carry_out(here, Watch())
    expected = [["-m", "llmrec_cli", "align", "x"], "1", str(os.getpid()), True]
    assert json.loads((here / "told").read_text()) == expected
