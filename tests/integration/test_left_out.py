"""What a text prompt has no room for is said by every command, and counted where it is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.experiments import typed

pytestmark = pytest.mark.slow  # an experiment of its own

ITEMS, USERS, TITLE_WORDS = 12, 20, 12
RECIPE = """
name = "long"
[data]
format = "interactions"
reviews = "clicks.csv"
metadata = "items.csv"
columns = { user = "user", item = "item", timestamp = "time", title = "title" }
[prompt]
template = "items"
max_tokens = 300
[model]
scratch = { hidden = 16, layers = 2, heads = 2, feed_forward = 16, vocabulary = 400 }
[train]
max_steps = 1
batch = 4
validate_rows = 6
[eval]
rows = 8
resamples = 100
"""
LINE = "rows do not see their whole history: "


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Titles so long that few of them fit into a prompt."""
    monkeypatch.chdir(tmp_path)
    titles = [" ".join(f"w{i}x{j}" for j in range(TITLE_WORDS)) for i in range(ITEMS)]
    items = [f"i{i},{title}" for i, title in enumerate(titles)]
    clicks = [
        f"u{user},i{(user + 5 * at) % ITEMS},{1_500_000_000 + 86_400 * at}"
        for user in range(USERS)
        for at in range(9)
    ]
    Path("items.csv").write_text("\n".join(["item,title", *items]) + "\n")
    Path("clicks.csv").write_text("\n".join(["user,item,time", *clicks]) + "\n")
    Path("long.toml").write_text(RECIPE)
    return tmp_path


def counted(line: str) -> tuple[int, int]:
    """History items left out, and all of them, as a line says."""
    lost, _, whole = line.split(LINE)[1].split(" history items")[0].partition(" of ")
    return int(lost.replace(",", "")), int(whole.replace(",", ""))


def test_every_command_says_what_prompts_leave_out(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = typed(capsys, "validate", "long.toml", "--rows")
    assert said.code == 0, said.err
    lines = {line.split(":")[0]: line for line in said.out.splitlines() if LINE in line}
    assert set(lines) == {"train", "valid", "test"}
    lost, whole = counted(lines["test"])
    assert 0 < lost < whole == USERS * 8
    assert "(prompt.max_tokens = 300)" in lines["test"]

    assert typed(capsys, "prepare", "long.toml").code == 0
    trained = typed(capsys, "sft", "long.toml")
    assert trained.code == 0, trained.err
    [line] = [line for line in trained.err.splitlines() if line.startswith("sft: train: ")]
    assert counted(line) == counted(lines["train"])
    assert "checkpoints are chosen on 6 of 20 rows (train.validate_rows)" in trained.err
    manifest = json.loads(Path("runs/long/sft/manifest.json").read_text())
    found = manifest["outcome"]["histories"]["train"]
    assert (found["history items left out"], found["history items"]) == counted(line)

    evaluated = typed(capsys, "eval", "long.toml", "--run", "sft")
    assert evaluated.code == 0, evaluated.err
    [line] = [line for line in evaluated.err.splitlines() if LINE in line]
    report = json.loads(Path("runs/long/sft/report.json").read_text())["histories"]
    assert (report["history items left out"], report["history items"]) == counted(line)

    assert typed(capsys, "compare", "runs/long", "--out", "page.html").code == 0
    page = Path("page.html").read_text()
    assert f"{report['history items left out']} of {report['history items']} items are left" in page


def test_a_whole_run_says_the_same_figures_once(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stages on the same rows leave out the same; each manifest has it all the same."""
    tables = '[align.msl]\nparent = "base"\n[align.msl-2]\nmethod = "msl"\ntau = 2.0\n'
    (recipe / "long.toml").write_text(f"{RECIPE}{tables}")
    done = typed(capsys, "run", "long.toml")
    assert done.code == 0, done.err
    said = [line for line in done.err.splitlines() if LINE in line]
    assert [line.split(LINE)[0].rpartition(": ")[0] for line in said] == [
        "sft: train",
        "sft: valid",
        "test",
    ]
    for run in ("sft", "align-msl", "align-msl-2"):
        manifest = json.loads(Path(f"runs/long/{run}/manifest.json").read_text())
        found = manifest["outcome"]["histories"]["train"]
        assert (found["history items left out"], found["history items"]) == counted(said[0])
