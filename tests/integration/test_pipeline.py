"""Whole experiments, through the command line as users type it, on the embedded sample."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.commands import SMALL, llmrec, ok

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the whole quickstart ran once, small."""
    folder = tmp_path_factory.mktemp("quickstart")
    ok(llmrec(folder, "run", "quickstart", *SMALL))
    return folder


def test_run_leaves_every_artefact(finished: Path) -> None:
    home = finished / "runs" / "quickstart"
    for run in ("sft", "align-msl"):
        for name in ("recipe.toml", "manifest.json", "metrics.jsonl", "predictions.parquet"):
            assert (home / run / name).is_file(), f"{run}/{name}"
        assert (home / run / "model" / "model.safetensors").is_file()
        manifest = json.loads((home / run / "manifest.json").read_text())
        assert manifest["status"] == "done"
        assert manifest["opened"] == {"test": 1}
        report = json.loads((home / run / "report.json").read_text())
        assert report["rows"] == 60
        assert set(report["keep"]["metrics"]) >= {"hr@10", "ndcg@10", "mrr@10"}
        predictions = pd.read_parquet(home / run / "predictions.parquet")
        assert predictions["row"].is_unique
        assert len(predictions) == 60
    assert not list(finished.rglob("*.tmp"))


def test_running_again_keeps_what_is_finished_and_shows_the_same_table(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    shown = ok(llmrec(finished, "run", "quickstart", *SMALL))
    assert "align-msl" in shown
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


def test_a_finished_run_is_never_overwritten(finished: Path) -> None:
    done = llmrec(finished, "sft", "quickstart", *SMALL)
    assert done.returncode == 2
    assert "is finished and is never overwritten" in done.stderr
    assert "already finished" in llmrec(finished, "sft", "quickstart", "--resume", *SMALL).stderr


def test_the_test_split_is_opened_once(finished: Path) -> None:
    done = llmrec(finished, "eval", "quickstart", "--run", "sft", *SMALL)
    assert done.returncode == 2
    assert "was evaluated on test before" in done.stderr


def test_the_validation_split_has_its_own_report(finished: Path) -> None:
    ok(llmrec(finished, "eval", "quickstart", "--run", "sft", "--split", "valid", *SMALL))
    report = json.loads((finished / "runs/quickstart/sft/report-valid.json").read_text())
    assert report["protocol"]["split"] == "valid"
    assert report["rows"] == 40


def test_every_decoder_reaches_the_report(finished: Path) -> None:
    """All items and the exact search agree; a beam reports how many lists it got wrong."""
    reports = {}
    valid = ["--run", "align-msl", "--split", "valid", "--again"]
    for name, options in {
        "exact": [],
        "all": ["eval.decode.search=all"],
        "beam": ["eval.decode.search=beam", "eval.decode.beam_error=true"],
    }.items():
        ok(llmrec(finished, "eval", "quickstart", *valid, *SMALL, *options))
        path = finished / "runs/quickstart/align-msl/report-valid.json"
        reports[name] = json.loads(path.read_text())
        assert reports[name]["protocol"]["decoder"]["search"] == name
    assert reports["exact"]["keep"]["metrics"] == reports["all"]["keep"]["metrics"]
    assert reports["exact"]["remove"]["metrics"] == reports["all"]["remove"]["metrics"]
    assert "beam_error" not in reports["exact"]["keep"]
    assert 0 <= reports["beam"]["keep"]["beam_error"]["rows"] <= 40


def test_decoding_unlike_training_is_warned_about(finished: Path) -> None:
    words = ["--run", "align-msl", "--split", "valid", "--again", "eval.decode.mask=after"]
    done = llmrec(finished, "eval", "quickstart", *words, *SMALL)
    ok(done)
    assert "warning: trained on legal tokens only" in done.stderr


def test_validate_shows_what_would_run_and_leaves_nothing(tmp_path: Path) -> None:
    shown = ok(llmrec(tmp_path, "validate", "quickstart", "--rows", *SMALL))
    for expected in ("[data]", "catalogue: ", "train: 400 rows", "prompt: ", "target: ", "memory"):
        assert expected in shown
    assert list(tmp_path.iterdir()) == []


def test_validate_names_a_missing_source_before_it_prints_anything(tmp_path: Path) -> None:
    done = llmrec(tmp_path, "validate", "quickstart", "data.reviews=nowhere.json")
    assert done.returncode == 2
    assert "nowhere.json: no such file" in done.stderr
    assert done.stdout == ""


def test_validate_tells_what_is_prepared(finished: Path) -> None:
    shown = ok(llmrec(finished, "validate", "quickstart", *SMALL))
    assert "prepared; rows: train " in shown
    assert "sft: finished" in shown


def test_a_changed_recipe_cannot_resume(finished: Path) -> None:
    folder = finished / "runs/quickstart/sft/manifest.json"
    manifest = json.loads(folder.read_text())
    folder.write_text(json.dumps({**manifest, "status": "running"}))
    try:
        done = llmrec(finished, "sft", "quickstart", "--resume", *SMALL, "train.weight_decay=0.5")
        assert done.returncode == 2
        assert "started with stage.train.weight_decay = 0.05, now 0.5" in done.stderr
    finally:
        folder.write_text(json.dumps(manifest))


def test_an_alignment_without_a_table_runs_and_is_evaluated(finished: Path) -> None:
    """Continued SFT, the control of every method, with default options."""
    ok(llmrec(finished, "align", "--method", "lml", "quickstart", *SMALL))
    assert "align-lml" in ok(llmrec(finished, "eval", "quickstart", "--run", "align-lml", *SMALL))


def test_changed_settings_on_a_finished_run_are_not_ignored(finished: Path) -> None:
    done = llmrec(finished, "run", "quickstart", *SMALL, "train.learning_rate=0.1")
    assert done.returncode == 2
    assert "started with stage.train.learning_rate = 0.003, now 0.1" in done.stderr


def test_another_recipe_on_the_same_prepared_folder_is_refused(finished: Path) -> None:
    done = llmrec(finished, "prepare", "quickstart", *SMALL, "data.k_core=4")
    assert done.returncode == 2
    assert "k_core was 5, is now 4" in done.stderr


@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")]
)
def test_a_stopped_run_resumes_to_the_same_model(
    finished: Path, tmp_path: Path, number: signal.Signals, word: str
) -> None:
    """A signal in the middle of training: exit code 128 + n, then --resume gives the same bytes."""
    ok(llmrec(tmp_path, "prepare", "quickstart", *SMALL))
    process = subprocess.Popen(
        [sys.executable, "-m", "llmrec_cli", "sft", "quickstart", *SMALL],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "runs/quickstart/sft/metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.is_file() and metrics.read_bytes()):
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr
    assert f"{word}: " in stderr
    assert " stops now, " in stderr
    advice = f"{word}; go on with: llmrec "
    typed = next(line for line in stderr.splitlines() if advice in line).partition(advice)[2]
    assert shlex.split(typed) == ["sft", "quickstart", *SMALL, "--resume"]
    resumed = llmrec(tmp_path, *shlex.split(typed))
    ok(resumed)
    assert "resumed from" in resumed.stderr
    ours = (tmp_path / "runs/quickstart/sft/model/model.safetensors").read_bytes()
    assert ours == (finished / "runs/quickstart/sft/model/model.safetensors").read_bytes()


def test_an_unwritable_place_is_the_machines_fault(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    done = llmrec(tmp_path, "prepare", "quickstart", *SMALL)
    assert done.returncode in (2, 3)
    assert len(done.stderr.strip().splitlines()[-1]) > 0
    assert "Traceback" not in done.stderr


def test_progress_is_plain_lines_without_a_terminal(finished: Path, tmp_path: Path) -> None:
    done = llmrec(tmp_path, "prepare", "quickstart", *SMALL)
    assert "\x1b" not in done.stderr + done.stdout
    assert "k_core" in done.stderr
    assert os.listdir(tmp_path) == ["runs"]
