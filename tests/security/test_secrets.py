"""Planted secrets are found nowhere: run folders, reports, exports, logs, error lines (S3)."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmrec_cli.cli import exit_codes
from llmrec_cli.pipeline import environment
from llmrec_cli.runs import record
from llmrec_cli.utils import text as redaction
from llmrec_cli.utils.text import redact
from tests.experiments import typed
from tests.security.hostile import RECIPE, write_raw

VALUES = {  # of the environment
    "HF_TOKEN": "hf_" + "Q" * 34,
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "MY_DATABASE_PASSWORD": "correct horse battery",
}
IN_URLS = ("s3cr3t-in-recipe", "s3cr3t-in-override")
SECRETS = (*VALUES.values(), *IN_URLS, "hf_" + "Z" * 34)
WORDS = (
    f"description=from postgresql://me:{IN_URLS[1]}@db.invalid/x with {VALUES['WANDB_API_KEY']}",
    f"model.revision={'hf_' + 'Z' * 34}",
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)
    write_raw(tmp_path, [f"title {number}" for number in range(12)])
    text = f'name = "own"\ndescription = "https://me:{IN_URLS[0]}@example.invalid"\n' + RECIPE
    (tmp_path / "own.toml").write_text(text)
    return tmp_path


COMMANDS = (
    ("validate", "own.toml", *WORDS),
    ("prepare", "own.toml", *WORDS),
    ("sft", "own.toml", *WORDS),
    ("sft", "own.toml", "--resume", *WORDS),
    ("eval", "own.toml", "--run", "sft", *WORDS),
    ("compare", "runs/own", "--out", "board.html", "--out", "board.json", "--out", "board.md"),
    ("runs", "show", "runs/own/sft"),
    ("export", "--run", "runs/own/sft", "--to", "out"),
    ("recommend", "--run", "runs/own/sft", "--history", "title 1", "--json"),
    ("audit", "own.toml", *WORDS),
    ("env",),
    ("env", "--json"),
)


def leaks(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def leaking_files(home: Path) -> list[str]:
    given = ("own.toml", "reviews.json", "meta.json")
    files = [file for file in home.rglob("*") if file.is_file() and file.name not in given]
    return [
        f"{file.relative_to(home)}: {secret}"
        for file in files
        for secret in SECRETS
        if secret.encode() in file.read_bytes()
    ]


def test_no_secret_is_written_or_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in COMMANDS:
        done = typed(capsys, *words)
        assert done.code == 0, done.err
        assert leaks(done.out + done.err) == [], words
    assert len(list(home.rglob("*"))) > 25
    assert leaking_files(home) == []
    assert redaction.HIDDEN in (home / "runs/own/sft/recipe.toml").read_text()


WRONG = (
    ("prepare", "own.toml", f"data.reviews=https://me:{IN_URLS[1]}@example.invalid/reviews.json"),
    ("sft", "own.toml", f"model.backbone=./{VALUES['HF_TOKEN']}"),
    ("validate", "own.toml", f"train.batch={VALUES['HF_TOKEN']}"),
    ("download", "amazon2018/Gift_Cards", "--to", "x", f"--from=http://me:{IN_URLS[1]}@x.invalid"),
    ("compare", f"runs/{VALUES['AWS_ACCESS_KEY_ID']}"),
)


@pytest.mark.parametrize("words", WRONG)
def test_an_error_line_tells_no_secret(
    home: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    done = typed(capsys, *words)
    assert done.code in (2, 3), done.err
    assert leaks(done.out + done.err) == []
    assert leaking_files(home) == []


@pytest.mark.parametrize("guarded", [True, False])
def test_a_bug_tells_no_secret(
    home: Path, guarded: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither its line nor its debug.log; unguarded (the control), both do."""

    def broken(path: Path) -> None:
        raise RuntimeError(f"no answer from https://me:{IN_URLS[0]}@x.invalid {SECRETS[0]}")

    monkeypatch.setattr("sys.argv", ["llmrec", "env"])
    if not guarded:
        monkeypatch.setattr(exit_codes, "redact", lambda text: text)
    code = exit_codes.catch_errors(lambda: broken(home))
    said = capsys.readouterr().err + (home / "debug.log").read_text()
    assert code == 1
    assert len(leaks(said)) == (0 if guarded else 2)


def test_without_redaction_the_run_folder_tells_them(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control of the first test."""
    monkeypatch.setattr(record, "redact", lambda text: text)
    monkeypatch.setattr(record, "redact_values", lambda value: value)
    for words in COMMANDS[1:3]:
        assert typed(capsys, *words).code == 0
    told = leaking_files(home)
    assert {line.partition(":")[0] for line in told} >= {
        "runs/own/sft/manifest.json",
        "runs/own/sft/recipe.toml",
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:pw@host/db", "postgresql://[secret]@host/db"),
        ("https://token@host", "https://[secret]@host"),
        ("https://host/a@b", "https://host/a@b"),
        ("runs/own@2", "runs/own@2"),
        ("hf_abc", "hf_abc"),
    ],
)
def test_what_a_secret_looks_like(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_a_bug_report_lists_no_variable_but_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)
    assert not set(environment.collect_environment()["variables"]) & set(VALUES)
