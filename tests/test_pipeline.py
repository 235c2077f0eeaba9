"""Whole experiments, through the command line as users type it, on the embedded sample."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llmrec_cli import workbench
from llmrec_cli.engine import checkpoint
from llmrec_cli.models.tokenizer import train_tokenizer
from llmrec_cli.progress import Silent
from llmrec_cli.recipe_file import load_recipe

SMALL = [
    "data.sample.train=400",
    "data.sample.valid=40",
    "data.sample.test=60",
    "data.history=5",
    "model.scratch.hidden=16",
    "model.scratch.layers=1",
    "model.scratch.feed_forward=16",
    "model.scratch.vocabulary=400",
    "train.epochs=2",
    "train.batch=32",
    "eval.resamples=100",
]


def llmrec(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmrec_cli", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


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


def test_validate_shows_what_would_run_and_leaves_nothing(tmp_path: Path) -> None:
    shown = ok(llmrec(tmp_path, "validate", "quickstart", *SMALL))
    for expected in ("[data]", "catalogue: ", "train: 400 rows", "prompt: ", "target: ", "memory"):
        assert expected in shown
    assert list(tmp_path.iterdir()) == []


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
    assert f"{word}; go on with --resume" in stderr
    resumed = llmrec(tmp_path, "sft", "quickstart", "--resume", *SMALL)
    ok(resumed)
    assert "resumed from" in resumed.stderr
    ours = (tmp_path / "runs/quickstart/sft/model/model.safetensors").read_bytes()
    assert ours == (finished / "runs/quickstart/sft/model/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretrained model in the hub's layout, whose generation_config samples."""
    folder = tmp_path_factory.mktemp("hub") / "tiny-llama"
    tokenizer = train_tokenizer(["The user has bought these items before"], vocabulary=400)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )
    model.generation_config.do_sample = True
    model.generation_config.top_k = 3
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_pretrained_model_with_a_text_prompt(
    hub_folder: Path, tmp_path: Path, tuning: str
) -> None:
    words = [
        *SMALL,
        f"model.backbone={hub_folder}",
        f"model.tuning={tuning}",
        "prompt.template=items",
        "train.rows=window",
        "align.msl.parent=sft",
        "align.msl.tau=ats",
        "train.epochs=1",
    ]
    shown = ok(llmrec(tmp_path, "run", "quickstart", *words))
    assert "align-msl" in shown
    run = tmp_path / "runs/quickstart/align-msl"
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["facts"]["parent"] == "sft"
    assert manifest["outcome"]["method"]["tau"] == pytest.approx(1.5, abs=1)
    if tuning == "lora":
        assert (run / "adapter" / "adapter_model.safetensors").is_file()
        assert not (run / "model").exists()
    else:
        AutoModelForCausalLM.from_pretrained(run / "model")
        AutoTokenizer.from_pretrained(run / "model")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it
def test_semantic_ids_on_a_pretrained_model_train_and_save_their_tokens(
    hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = {str(i): [f"<a_{i % 5}>", f"<b_{i // 5}>"] for i in range(30)}
    users = {str(u): [(u * 7 + t * 3) % 30 for t in range(8)] for u in range(60)}
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / "inter.json").write_text(json.dumps(users))
    recipe = tmp_path / "ids.toml"
    recipe.write_text(
        f"""
        [data]
        format = "semantic-ids"
        reviews = "./inter.json"
        index = "./index.json"
        k_core = 0
        [model]
        backbone = "{hub_folder}"
        tuning = "lora"
        [train]
        rows = "sequence"
        epochs = 1
        batch = 16
        [align.msl]
        [eval]
        resamples = 100
        """
    )
    shown = ok(llmrec(tmp_path, "run", "ids.toml"))
    assert "align-msl" in shown
    from safetensors import safe_open

    with safe_open(tmp_path / "runs/ids/sft/adapter/adapter_model.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.endswith("tokens_delta")]
        assert len(names) == 2, "new rows of embedding and head"
        assert all(file.get_slice(name).get_shape()[0] == 11 for name in names)

    monkeypatch.chdir(tmp_path)
    bench = workbench.open_workbench(load_recipe("ids.toml"), Silent())
    drawn = []
    for _ in range(2):
        torch.rand(1)  # whatever was drawn before must not matter
        drawn.append(checkpoint.trained_weights(workbench.load_policy(bench, None, train=True)))
    assert drawn[0].keys() == drawn[1].keys()
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


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
