"""``recipes``, ``schema``, ``env``, ``runs``; completion and colour as a shell sees them."""

from __future__ import annotations

import getpass
import json
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from filelock import FileLock
from typer.main import get_command
from typer.testing import CliRunner

from llmrec_cli.cli import options
from llmrec_cli.cli.app import app
from llmrec_cli.cli.shipped import copy_recipe
from llmrec_cli.config.loader import list_shipped_names, read_recipe
from llmrec_cli.errors import ArtefactError, RecipeError
from llmrec_cli.pipeline import environment
from llmrec_cli.pipeline.compare import Asked, compare_runs
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.runs import listing
from llmrec_cli.runs.listing import (
    describe_run,
    find_headline,
    find_states,
    format_size,
    read_run_state,
)
from llmrec_cli.runs.run import read_run_manifest, run_at
from llmrec_cli.serving.recommender import Recommender


def told(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


# --- recipes -----------------------------------------------------------------------------------


def test_recipes_are_listed_with_what_they_show() -> None:
    lines = told("recipes", "ls").splitlines()
    assert [line.split()[0] for line in lines] == list_shipped_names()
    assert any("on a CPU" in line for line in lines)
    [quick] = [r for r in json.loads(told("recipes", "ls", "--json"))["recipes"]
               if r["name"] == "quickstart"]  # fmt: skip
    assert "align-msl" in quick["runs"]


def test_a_recipe_is_shown_as_it_stands_and_resolved() -> None:
    assert told("recipes", "show", "quickstart").startswith("# The whole pipeline")
    resolved = tomllib.loads(told("recipes", "show", "amazon2018/gift-cards", "--resolved"))
    assert resolved["model"]["backbone"] == "meta-llama/Llama-3.2-1B"  # inherited
    assert resolved["data"]["k_core"] == 5  # a default


@pytest.mark.parametrize("name", list_shipped_names())
def test_a_copy_loads_and_is_the_same_experiment_of_its_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [target, *_] = copy_recipe(name, Path("deep/mine.toml"))
    ours, theirs = read_recipe(str(target)).to_table(), read_recipe(name).to_table()
    assert ours.pop("name") == "mine"
    assert theirs.pop("name") != "mine"
    files = [
        recipe["data"].pop(key) for key in ("reviews", "metadata") for recipe in (ours, theirs)
    ]
    assert [[Path(f).name for f in group] for group in files[::2]] == [
        [Path(f).name for f in group] for group in files[1::2]
    ]
    assert ours == theirs
    assert "llmrec run deep/mine.toml" in target.read_text()
    assert str(tmp_path) not in target.read_text()


def test_a_copied_quickstart_finds_its_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told("recipes", "copy", "quickstart", "--to", "mine.toml").splitlines()[0] == "mine.toml"
    recipe = read_recipe("mine.toml")
    assert len(prepare_data(recipe, Path).items) == 311
    assert recipe.data.reviews == ("data/sample/amazon2018/Synthetic_Toys.json.gz",)


def test_nothing_is_overwritten_by_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    copy_recipe("amazon2018/gift-cards", None)
    assert Path("gift-cards.toml").is_file()
    with pytest.raises(ArtefactError, match=r"gift-cards\.toml: exists already"):
        copy_recipe("amazon2018/gift-cards", None)
    copy_recipe("amazon2018/gift-cards", Path("second.toml"))  # its base is there and the same
    Path("base-llama32-1b.toml").write_text("# mine")
    with pytest.raises(ArtefactError, match="base-llama32-1b"):
        copy_recipe("amazon2018/gift-cards", Path("third.toml"))
    assert not Path("third.toml").exists()
    with pytest.raises(RecipeError, match="Did you mean quickstart"):
        copy_recipe("quikstart", None)
    with pytest.raises(RecipeError, match="yours already"):
        copy_recipe("second.toml", None)


def test_the_schema_is_printed_and_written(tmp_path: Path) -> None:
    shown_schema = json.loads(told("schema"))
    assert shown_schema["title"] == "llmrec recipe"
    told("schema", "--to", str(tmp_path / "s.json"))
    assert json.loads((tmp_path / "s.json").read_text()) == shown_schema


# --- env ---------------------------------------------------------------------------------------


def test_env_tells_versions_and_nothing_about_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HF_HUB_OFFLINE", "hf_secret token/with/slashes")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    found = json.loads(told("env", "--json"))
    assert found["packages"]["torch"]
    assert found["variables"]["OMP_NUM_THREADS"] == "3"
    assert found["variables"]["HF_HUB_OFFLINE"] == "(set)"
    assert found["processor"]["cores"] >= 1
    assert found["memory"]["total, GB"] > 0
    text = told("env") + json.dumps(found)
    home, user, host = str(Path.home()), getpass.getuser(), socket.gethostname()
    for secret in ("secret", "hf_abcdefgh", home, str(tmp_path), host):
        assert secret not in text
    assert not re.search(rf"\b{re.escape(user)}\b", text)


def test_a_package_that_is_missing_is_a_dash() -> None:
    assert environment.find_version("surely-not-installed") is None
    assert list(environment.format_facts({"a": {"b": None, "c": ["x", "y"]}, "d": [{"e": 1}]})) == [
        "a:", "  b: -", "  c: x y", "d 0:", "  e: 1"
    ]  # fmt: skip


def test_gpus_are_told_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 10**9, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    found = environment.collect_environment()["torch"]
    assert found["driver"] is None
    assert found["GPU"][1] == {
        "name": "NVIDIA H100", "memory, GB": 80.0, "compute capability": "9.0"
    }  # fmt: skip
    assert "GPU 1:" in list(environment.format_facts(found))


# --- runs --------------------------------------------------------------------------------------


def a_run(folder: Path, manifest: dict[str, object], rows: Sequence[Mapping[str, object]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text("")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


TRAIN = {"epochs": 5.0, "select": "ndcg"}
EVAL = {"cutoffs": [5, 10]}
ROWS = [
    {"step": 31, "epoch": 1.0, "valid_loss": 2.0, "valid_ndcg@10": 0.2},
    {"step": 62, "epoch": 2.0, "valid_loss": 3.0, "valid_ndcg@10": 0.4},
    {"step": 93, "epoch": 3.0, "valid_loss": 1.0, "valid_ndcg@10": 0.3},
]


def running(**train: object) -> dict[str, object]:
    return {"status": "running", "settings": {"stage": {"train": TRAIN | train}, "eval": EVAL}}


def test_a_run_that_stopped_says_where_and_its_best_so_far(tmp_path: Path) -> None:
    found = read_run_state(run_at(a_run(tmp_path / "e" / "sft", running(), ROWS)))
    assert found.progress == "stopped at step 93 of 155"
    assert (found.best, found.best_step) == (0.4, 62)
    assert (found.experiment, found.run) == ("e", "sft")


@pytest.mark.parametrize(
    ("train", "steps", "best"),
    [
        ({"max_steps": 100}, 100, "ndcg@10 0.4000 at 62"),
        ({"max_steps": 1000}, 155, "ndcg@10 0.4000 at 62"),
        ({"select": "loss"}, 155, "loss 1.0000 at 93"),
    ],
)
def test_max_steps_and_select_count(
    train: dict[str, object], steps: int, best: str, tmp_path: Path
) -> None:
    found = read_run_state(run_at(a_run(tmp_path / "e" / "sft", running(**train), ROWS)))
    assert found.steps == steps
    assert listing.state_to_cells(found)[2] == best


@pytest.mark.parametrize(
    ("select", "score", "cell"),
    [("loss", -2.5, "loss 2.5000 at 62"), ("auc", 0.7, "auc 0.7000 at 62")],
)
def test_a_finished_run_names_its_best_quantity(
    select: str, score: float, cell: str, tmp_path: Path
) -> None:
    manifest = running(select=select) | {"outcome": {"best_step": 62, "best_score": score}}
    found = read_run_state(run_at(a_run(tmp_path / "e" / "sft", manifest, ROWS)))
    assert listing.state_to_cells(found)[2] == cell
    assert (found.best, found.best_metric) == (abs(score), select)


def test_of_equal_validations_the_first_is_the_best(tmp_path: Path) -> None:
    rows = [{**row, "valid_ndcg@10": 0.4} for row in ROWS]
    found = read_run_state(run_at(a_run(tmp_path / "e" / "sft", running(), rows)))
    assert (found.best, found.best_step) == (0.4, 31)


def test_a_run_whose_folder_is_claimed_is_running(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "e" / "sft", running(), ROWS[:1])
    with FileLock(tmp_path / "e" / ".sft.lock"):
        assert read_run_state(run_at(folder)).progress == "running at step 31 of 155"
    assert read_run_state(run_at(folder)).state == "stopped"


def test_done_evaluated_and_damaged_runs(tmp_path: Path) -> None:
    done = a_run(tmp_path / "e" / "baseline-pop", {"status": "done"}, [])
    assert read_run_state(run_at(done)).progress == "done"
    report = {
        "protocol": {"seen": "remove", "cutoffs": [5, 10]},
        "remove": {"metrics": {"ndcg@10": {"mean": 0.25}}},
    }
    (done / "report.json").write_text(json.dumps(report))
    assert (read_run_state(run_at(done)).state, read_run_state(run_at(done)).metric) == (
        "evaluated",
        "ndcg@10 (remove)",
    )
    assert find_headline({"protocol": {}, "metrics": {"auc_paired": {"mean": 0.7}}})[1] == 0.7
    (done / "manifest.json").write_text("{")
    found = read_run_state(run_at(done))
    assert found.state == "damaged"
    assert found.problem is not None
    assert "not valid JSON" in found.problem
    for content in ("[" * 5000, "null", '{"facts": []}', '{"settings": {"stage": 1}}'):
        (done / "manifest.json").write_text(content)
        assert read_run_state(run_at(done)).state == "damaged"
        with pytest.raises(ArtefactError, match=r"manifest\.json: not"):
            describe_run(done)
    (done / "manifest.json").write_text('{"settings": {}, "facts": {}}')
    assert read_run_manifest(done / "manifest.json")["facts"] == {}
    with pytest.raises(ArtefactError, match="not the manifest of a run"):
        read_run_manifest(done / "manifest.json", ("settings",))
    (done / "manifest.json").write_text("{")
    (done / "recipe.toml").write_text("[")
    assert "not valid JSON" in told("runs", "ls", str(tmp_path))


def test_runs_of_all_experiments_or_of_one(tmp_path: Path) -> None:
    for experiment in ("b", "a"):
        a_run(tmp_path / experiment / "sft", running(), [])
    (tmp_path / "other").mkdir()
    assert [one.experiment for one in find_states(tmp_path)] == ["a", "b"]
    assert [one.experiment for one in find_states(tmp_path / "b")] == ["b"]
    for folder, problem in ((tmp_path / "other", "holds no experiment"),
                            (tmp_path / "gone", "no such folder")):  # fmt: skip
        with pytest.raises(ArtefactError, match=problem):
            find_states(folder)
    lines = told("runs", "ls", str(tmp_path)).splitlines()
    assert lines[1].split()[:5] == ["a/sft", "stopped", "at", "step", "0"]


def test_a_run_is_shown_with_lineage_versions_and_openings(tmp_path: Path) -> None:
    manifest = running() | {
        "facts": {"lineage": ["scratch", "sft"]},
        "packages": {"torch": "2.13"},
        "command": ["llmrec", "run", "quickstart"],
        "opened": {"test": 2},
    }
    folder = a_run(tmp_path / "e" / "align-msl", manifest, ROWS)
    text = told("runs", "show", str(folder))
    for line in ("state: stopped", "  lineage: scratch sft", "command: llmrec run quickstart",
                 "  test: 2", "  torch: 2.13", "progress: stopped at step 93 of 155"):  # fmt: skip
        assert f"{line}\n" in text
    with pytest.raises(ArtefactError, match="it holds the runs align-msl"):
        describe_run(folder.parent)
    with pytest.raises(ArtefactError, match="llmrec runs ls"):
        describe_run(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("size", "words"), [(999, "999 B"), (2_400_000, "2.4 MB"), (10**16, "10000.0 TB")]
)
def test_sizes_in_words(size: int, words: str) -> None:
    assert format_size(size) == words


@pytest.mark.slow
def test_hostile_names_stay_text_in_tables(tmp_path: Path) -> None:
    a_run(tmp_path / "[bold]e" / "sft", running(), [])
    assert "[bold]e/sft" in told("runs", "ls", str(tmp_path))
    assert "[bold]e/sft" in in_terminal("runs", "ls", str(tmp_path), cwd=tmp_path)
    assert listing.HEADINGS[0] == "run"


@pytest.mark.parametrize(
    "read",
    [
        lambda folder: compare_runs([str(folder)], Asked()),
        lambda folder: Recommender.load(folder),
        lambda folder: describe_run(folder),
    ],
    ids=["compare", "recommend", "runs show"],
)
def test_a_misspelt_folder_is_answered_with_the_nearest(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a_run(Path("runs/e/align-msl"), running(), [])
    with pytest.raises(ArtefactError, match=r"^runs/e/align-ms: no.* mean align-msl\?$"):
        read(Path("runs/e/align-ms"))


# --- completion and colour ---------------------------------------------------------------------

LLMREC = Path(sys.executable).with_name("llmrec")
COMPLETE = {
    "bash": lambda line: {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)},
    "zsh": lambda line: {"_TYPER_COMPLETE_ARGS": line},
    "fish": lambda line: {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}


@pytest.mark.parametrize("shell", COMPLETE)
@pytest.mark.starts_python("completion imports no torch")
def test_every_shell_is_offered_recipes(shell: str, tmp_path: Path) -> None:
    if not LLMREC.is_file():
        pytest.skip("llmrec is not installed as a command")
    (tmp_path / "quick-mine.toml").write_text("")
    variables = COMPLETE[shell]("llmrec run quick") | {"_LLMREC_COMPLETE": f"complete_{shell}"}
    done = subprocess.run(
        [LLMREC],
        env=os.environ | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert set(re.findall(r"quick[\w.-]*", done.stdout)) == {"quickstart", "quick-mine.toml"}


@pytest.mark.starts_python("completion imports no torch")
def test_bash_completes_once_it_has_read_the_script(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None or not LLMREC.is_file():
        pytest.skip("no bash, or llmrec is not installed as a command")
    script = (
        'eval "$(_LLMREC_COMPLETE=source_bash llmrec)"; COMP_WORDS=(llmrec run quicks); '
        'COMP_CWORD=2; _llmrec_completion llmrec; echo "${COMPREPLY[@]}"'
    )
    path = {"PATH": f"{LLMREC.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [bash, "-c", script],
        env=os.environ | path,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "quickstart\n", done.stderr


def test_names_are_offered_for_every_kind_of_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a_run(Path("runs/e/sft"), running(), [])
    Path("sub").mkdir()
    Path("sub/own.toml").write_text("")
    assert options.complete_folders("runs/") == ["runs/e", "runs/e/", "runs/e/sft"]
    assert options.complete_recipes("su") == ["sub/"]
    assert options.complete_recipes("sub/") == ["sub/own.toml"]
    assert "runs/e" in options.recipes_and_folders("runs/")
    assert options.complete_methods("d") == ["dmpo", "dpo"]
    assert options.complete_models("s") == ["sasrec"]
    assert options.categories("amazon2018/Gi") == ["amazon2018/Gift_Cards"]


WHERE_RUNS_STAND = [
    ("compare", "runs"),
    ("recommend", "run"),
    ("export", "run"),
    ("export-lists", "run"),
    ("audit", "source"),
]


@pytest.mark.parametrize(("command", "parameter"), WHERE_RUNS_STAND)
def test_folders_of_runs_are_offered(
    command: str, parameter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a_run(Path("runs/e/sft"), running(), [])
    found: Any = get_command(app)
    words = {p.name: p for p in found.commands[command].params}
    offered = words[parameter].shell_complete(typer.Context(found), "runs/e/s")
    assert "runs/e/sft" in [item.value for item in offered]


def test_a_broken_recipe_offers_no_runs(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("train.epoch = 1")

    def offered(recipe: str, incomplete: str) -> list[str]:
        typed: Any = SimpleNamespace(params={"recipe": recipe})  # all that is read of a context
        return options.run_names(typed, incomplete)

    assert offered(str(tmp_path / "bad.toml"), "") == []
    assert offered("quickstart", "align-d") == ["align-dmpo", "align-dpo"]


def in_terminal(*words: str, cwd: Path, **variables: str) -> str:
    """What a command shows in a pseudo-terminal."""
    outer, inner = pty.openpty()
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-m", "llmrec_cli", *words],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        cwd=cwd,
        env=clean | {"TERM": "xterm-256color", "COLUMNS": "200"} | variables,
    ) as process:
        os.close(inner)
        shown_bytes = b""
        while True:
            try:
                block = os.read(outer, 65536)
            except OSError:  # the other end is closed
                break
            if not block:
                break
            shown_bytes += block
        os.close(outer)
    assert process.returncode == 0, shown_bytes
    return shown_bytes.decode()


COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")


@pytest.mark.slow
def test_colour_in_a_terminal_and_none_under_no_color(tmp_path: Path) -> None:
    prepare_data(read_recipe("quickstart", [f"out={tmp_path}"]), Path)
    words = ("audit", str(tmp_path / "quickstart"))
    assert COLOUR.search(in_terminal(*words, cwd=tmp_path))
    plain = in_terminal(*words, cwd=tmp_path, NO_COLOR="1")
    assert not COLOUR.search(plain)
    assert "training later than test" in plain
