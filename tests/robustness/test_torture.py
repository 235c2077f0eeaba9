"""Nothing is lost: killed and resumed runs, and results that were damaged since."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.errors import ArtefactError
from llmrec_cli.pipeline.evaluate import evaluate_runs
from llmrec_cli.pipeline.train import align
from llmrec_cli.utils.files import HASHES_FILE, write_folder
from llmrec_cli.utils.progress import Silent
from tests.commands import TINY, llmrec, ok
from tests.robustness.torture_checks import Watch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def test_kills_change_nothing(tmp_path: Path) -> None:
    """One and two processes, and a launcher; ``make torture`` kills three hundred times."""
    words = ["tests.robustness.torture", "--size", "ci", "--out", str(tmp_path), "--seed", "3"]
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = tmp_path.glob("*-torture.json")
    cases = json.loads(report.read_text())["cases"]
    assert sum(len(case["hits"]) for case in cases) >= 6
    assert {case["processes"] for case in cases} == {1, 2}
    assert not any(case["problems"] for case in cases)


def run_folder(root: Path, steps: tuple[int, ...] = (1, 2)) -> Path:
    """What a run leaves: two checkpoints and metrics."""
    run = root / "runs/torture/sft"
    for step in (1, 2):
        state = {"step": step, "best_step": 1}

        def fill(folder: Path, state: dict[str, int] = state) -> None:
            (folder / "state.json").write_text(json.dumps(state))

        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_folder(run / "checkpoints" / f"step-{step}", fill)
    rows = [json.dumps({"step": step, "seconds": step / 7}) + "\n" for step in steps]
    (run / "metrics.jsonl").write_text("".join(rows))
    return run


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda run: None, ""),
    "a torn checkpoint": (
        lambda run: (run / "checkpoints/step-2/state.json").write_text("{"),
        "unreadable",
    ),
    "the best is gone": (
        lambda run: shutil.rmtree(run / "checkpoints/step-1"),
        "the best, step 1, is gone",
    ),
    "a row is missing": (
        lambda run: (run / "metrics.jsonl").write_text('{"step": 2}\n'),
        "metrics rows [2]",
    ),
    "a row is doubled": (
        lambda run: (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": 1}\n{"step": 2}\n'),
        "metrics rows [1, 1, 2]",
    ),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_the_torture_sees_what_a_kill_may_break(tmp_path: Path, broken: str) -> None:
    """The controls of the test above."""
    harm, expected = BREAKS[broken]
    run = run_folder(tmp_path)
    watch = Watch(run, keep=2)
    watch.killed()
    assert watch.problems == []
    harm(run)
    watch.killed()
    assert bool(watch.problems) == bool(expected)
    assert expected in "; ".join(watch.problems)


def test_the_torture_compares_every_file(tmp_path: Path) -> None:
    run, other = run_folder(tmp_path / "a"), run_folder(tmp_path / "b")
    rows = [json.dumps({"step": step, "seconds": 9}) + "\n" for step in (1, 2)]
    (other / "metrics.jsonl").write_text("".join(rows))
    watch = Watch(run, keep=2)
    watch.finished(other.parent)
    assert watch.problems == []
    (other / "model.bin").write_bytes(b"x")
    (run / ".step-3.tmp").write_bytes(b"x")
    (run / "metrics.jsonl").write_text("".join([*rows, rows[-1]]))
    watch.finished(other.parent)
    assert sorted(watch.problems) == [
        "sft/.step-3.tmp: left over",
        "sft/metrics.jsonl: differs from the uninterrupted run's",
        "sft/model.bin: missing",
    ]


SFT = [*TINY, "train.max_steps=2", "align.lml.parent=sft"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which SFT is finished."""
    folder = tmp_path_factory.mktemp("damaged")
    ok(llmrec(folder, "prepare", "quickstart", *SFT))
    ok(llmrec(folder, "sft", "quickstart", *SFT))
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flip": flip,
    "truncate": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "delete": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_is_named_before_it_is_used(
    home: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By evaluation and by an alignment that starts from it; nothing is written.

    (Where the list of hashes itself is changed, the file that does not fit it is named.)
    """
    monkeypatch.chdir(home)
    recipe = read_recipe("quickstart", SFT, ["lml"])
    model = (recipe.folder / "sft") / "model"
    names = sorted(path.name for path in model.iterdir())
    assert {"model.safetensors", "config.json", "tokenizer.json", HASHES_FILE} <= set(names)
    for name in names:
        kept = (model / name).read_bytes()
        DAMAGES[damage](model / name)
        try:
            refused(recipe, str(model if name == HASHES_FILE else model / name))
        finally:
            (model / name).write_bytes(kept)


def refused(recipe: Recipe, file: str) -> None:
    with pytest.raises(ArtefactError, match=file):
        evaluate_runs(recipe, ["sft"], split="valid", again=False, progress=Silent())
    with pytest.raises(ArtefactError, match=file):
        align(recipe, "lml", resume=False, progress=Silent())
    assert not (recipe.folder / "align-lml").exists()


def test_a_damaged_result_is_one_line_and_exit_code_2(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "runs", tmp_path / "runs")
    flip(tmp_path / "runs/quickstart/sft/model/model.safetensors")
    done = llmrec(tmp_path, "eval", "quickstart", "--run", "sft", *SFT)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "runs/quickstart/sft/model/model.safetensors: damaged" in line
