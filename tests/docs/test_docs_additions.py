"""What the pages "Add a ..." say is done, in a copy of the package that gets that file alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import llmrec_cli
from llmrec_cli.models.tokenizer import train_tokenizer
from tests.commands import TINY
from tests.docs.doc_pages import DOCS, ROOT, Block, blocks, read

pytestmark = pytest.mark.slow

PACKAGE = Path(llmrec_cli.__file__).parent
QUICKSTART = ROOT / "recipes" / "quickstart.toml"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a copy of the package: what runs there runs the copy."""
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=lambda *_: {"__pycache__"})
    return tmp_path


def page_blocks(page: str, language: str) -> list[Block]:
    return [block for block in blocks(read(DOCS / page)) if block.language == language]


def write_files(page: str, home: Path) -> list[Path]:
    """The page's Python blocks, each in the file that the paragraph before it begins with."""
    found = []
    for block in page_blocks(page, "python"):
        before = read(DOCS / page).splitlines()[: block.line - 1]
        name = re.findall(r"^`([\w/]+\.py)`", "\n".join(before), re.M)[-1]
        found.append(home / name)
        found[-1].write_text(block.text, encoding="utf-8")
    assert len(set(found)) == len(found)
    return found


def write_recipe(page: str, home: Path, base: Path | None = None) -> Path:
    """The page's recipe, or its part of one on top of another."""
    *_, block = page_blocks(page, "toml")
    extends = "" if base is None else f'extends = "{base}"\n'
    recipe = home / "my-recipe.toml"
    recipe.write_text(extends + block.text, encoding="utf-8")
    return recipe


def run_child(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)


def say(home: Path, *words: str) -> str:
    """What a command of the copied package prints."""
    done = run_child(home, "-m", PACKAGE.name, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def say_all(home: Path, *commands: list[str]) -> str:
    """What several commands of the copied package print, in one process."""
    code = (
        "import sys\nfrom llmrec_cli.cli import app, exit_codes\n"
        f"for words in {commands!r}:\n"
        "    sys.argv = ['llmrec', *words]\n"
        "    assert exit_codes.catch_errors(app.app) == 0, words\n"
    )
    done = run_child(home, "-c", code)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_pages_method_is_trained_and_evaluated(home: Path) -> None:
    [file] = write_files("add-a-method.md", home)
    assert file.parent == home / PACKAGE.name / "methods"
    recipe = write_recipe("add-a-method.md", home, QUICKSTART)
    words = [recipe.name, *TINY, "align.smooth.train.max_steps=4"]
    told = say_all(
        home,
        ["prepare", *words],
        ["align", "--method", "smooth", *words],
        ["eval", *words, "--run", "align-smooth"],
    )
    assert "align-smooth" in told
    run = home / "runs" / "quickstart" / "align-smooth"
    assert len(pd.read_parquet(run / "predictions.parquet")) == 60
    assert "share = 0.2" in (run / "recipe.toml").read_text()


def write_movies(home: Path) -> None:
    """Forty users with six ratings each, of twelve movies, in MovieLens's files."""
    ratings = [
        f"{user}::{100 + (user + step) % 12}::{step % 5}.5::{800_000_000 + 60 * user + step}"
        for user in range(40)
        for step in range(6)
    ]
    movies = [f"{100 + i}::Movie: the {i}th (19{80 + i})::Drama|War" for i in range(12)]
    (home / "ratings.dat").write_text("".join(f"{line}\n" for line in ratings))
    (home / "movies.dat").write_text("".join(f"{line}\n" for line in movies))


def test_the_pages_data_format_is_prepared(home: Path) -> None:
    [file] = write_files("add-a-data-format.md", home)
    assert file.parent == home / PACKAGE.name / "data" / "formats"
    write_movies(home)
    recipe = write_recipe("add-a-data-format.md", home)
    say(home, "validate", recipe.name)
    made = json.loads(say(home, "prepare", recipe.name, "--json"))
    folder = home / made["folder"]
    titles = pd.read_parquet(folder / "items.parquet")["title"]
    assert sorted(titles)[0] == "Movie: the 0th (1980)"
    assert len(titles) == 12
    assert len(pd.read_parquet(folder / "test.parquet")) == 40
    assert made["reader"]["reviews"]["ratings.dat"]["interactions"] == 240

    schema = json.loads(say(home, "schema", "--json"))
    assert "movielens" in schema["$defs"]["DataSection"]["properties"]["format"]["enum"]


def test_the_pages_data_format_names_what_is_wrong(home: Path) -> None:
    write_files("add-a-data-format.md", home)
    write_movies(home)
    recipe = write_recipe("add-a-data-format.md", home)
    with (home / "ratings.dat").open("a") as file:
        file.write("1,122,5,838985046\n")
    done = run_child(home, "-m", PACKAGE.name, "prepare", recipe.name)
    assert done.returncode == 2
    assert "ratings.dat:241: the line is" in done.stderr
    assert "expected user::item::rating::seconds" in done.stderr
    made = json.loads(say(home, "prepare", recipe.name, "data.on_bad_line=skip", "--json"))
    assert made["reader"]["bad_lines"]["skipped"] == 1


def test_a_new_data_format_leaves_a_recipe_quick_to_read(home: Path) -> None:
    write_files("add-a-data-format.md", home)
    code = (
        "import sys\nfrom llmrec_cli.config.data import DataSection\n"
        "from llmrec_cli.config.formats import FORMATS\n"
        "assert 'movielens' in FORMATS\n"
        "assert not {'polars', 'pandas', 'numpy', 'torch'} & set(sys.modules)\n"
        "from llmrec_cli.data.formats import movielens\n"
    )
    done = run_child(home, "-c", code)
    assert done.returncode == 0, done.stderr
    done = run_child(home, "-c", "from llmrec_cli.data.formats import movielens")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", ["", "FORMAT = 3\n"])
def test_a_file_without_a_format_is_named(home: Path, code: str) -> None:
    (home / PACKAGE.name / "data" / "formats" / "mine.py").write_text(code)
    done = run_child(home, "-c", "import llmrec_cli.config.data")
    assert "data/formats/mine.py: FORMAT is" in done.stderr


def test_the_pages_baseline_is_fitted_evaluated_and_compared(home: Path) -> None:
    [file] = write_files("add-a-baseline.md", home)
    assert file.parent == home / PACKAGE.name / "models" / "baselines"
    recipe = write_recipe("add-a-baseline.md", home, QUICKSTART)
    assert "rules" in " ".join(say(home, "baseline", "--help").split())
    words = [recipe.name, *TINY]
    told = say_all(
        home,
        ["prepare", *words],
        ["baseline", "--model", "rules", *words],
        ["eval", *words, "--run", "baseline-rules", "--run", "baseline-pop"],
    )
    assert "baseline-rules" in told
    run = home / "runs" / "quickstart" / "baseline-rules"
    report = json.loads((run / "report.json").read_text())
    assert 0 < report["keep"]["lists"]["coverage"] <= 1
    assert len(pd.read_parquet(run / "predictions.parquet")) == 60
    assert "power = 0.3" in (run / "recipe.toml").read_text()


def test_the_pages_metric_is_reported_and_compared(home: Path) -> None:
    [table] = page_blocks("add-a-metric.md", "python")
    file = home / PACKAGE.name / "evaluation" / "metrics.py"
    before, begin, after = file.read_text().partition("RANK_METRICS: Final = (\n")
    rows, end, after = after.partition("\n)\n")
    assert table.text.startswith(begin + rows)  # one line more, and nothing else
    assert table.text.count("\n") == (begin + rows + end).count("\n") + 1
    file.write_text(before + table.text + after)
    words = ["quickstart", *TINY]
    shutil.copytree(ROOT / "recipes", home / "recipes")
    (home / "data").symlink_to(ROOT / "data")
    told = say_all(
        home,
        ["prepare", *words],
        ["eval", *words, "--run", "baseline-pop"],
        ["compare", "quickstart", "--metric", "rbp@10"],
    )
    leaderboard, _, compared = told.partition("RBP@10 against the baseline")
    assert "RBP@10" in leaderboard
    assert "baseline-pop" in compared
    run = home / "runs" / "quickstart" / "baseline-pop"
    report = json.loads((run / "report.json").read_text())
    assert report["definitions"]["rbp@K"] == "0.2 * 0.8^(rank - 1) if rank <= K"
    found: dict[str, Any] = report["keep"]["metrics"]
    per_cutoff = {f"{name}@{k}" for k in (1, 5, 10) for name in ("hr", "ndcg", "rbp")}
    assert found.keys() == per_cutoff | {"mrr@10"}
    assert found["rbp@1"]["mean"] == pytest.approx(0.2 * found["hr@1"]["mean"])
    predictions = pd.read_parquet(run / "predictions.parquet")
    gains = [
        0.2 * 0.8 ** list(ranked).index(target) if target in ranked[:10] else 0
        for ranked, target in zip(predictions["ranked"], predictions["target"], strict=True)
    ]
    assert found["rbp@10"]["mean"] == pytest.approx(sum(gains) / len(gains))
    assert found["rbp@10"]["low"] <= found["rbp@10"]["mean"] <= found["rbp@10"]["high"]


def test_the_pages_backbone_trains(home: Path) -> None:
    tokenizer = train_tokenizer(["a title of an item"], vocabulary=300)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(home / "my-folder")
    tokenizer.save_pretrained(home / "my-folder")
    stored = json.loads((home / "my-folder" / "config.json").read_text())
    stored |= {"model_type": "my-backbone", "architectures": ["MyModel"]}
    (home / "my-folder" / "config.json").write_text(json.dumps(stored))

    _, program = write_files("add-a-backbone.md", home)
    recipe = write_recipe("add-a-backbone.md", home, QUICKSTART)
    words = [recipe.name, *TINY, "train.max_steps=2"]
    say(home, "prepare", *words)
    refused = run_child(home, "-m", PACKAGE.name, "sft", *words)
    assert refused.returncode == 2
    assert "my-backbone" in refused.stderr
    done = run_child(home, program.name, "sft", *words)
    assert done.returncode == 0, done.stderr
    run = home / "runs" / "quickstart" / "sft"
    assert json.loads((run / "manifest.json").read_text())["probe"]
    trained = json.loads((run / "model" / "config.json").read_text())
    assert trained["model_type"] == "my-backbone"
