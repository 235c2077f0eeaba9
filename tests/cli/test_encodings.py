"""Text of any language where stdout, the locale or a file name know less than UTF-8."""

from __future__ import annotations

import ast
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

import llmrec_cli
from benchmarks.small import SAMPLE
from llmrec_cli.cli import app, exit_codes
from tests.experiments import make_experiment

pytestmark = pytest.mark.slow  # many commands, in every encoding

PACKAGE = Path(llmrec_cli.__file__).parent
ODD = "“curly” café 中文 🎸"
LETTERS = {"ascii": "", "latin-1": "é"}
RUN = "runs/odd/baseline-itemknn"
COMMANDS = {
    "prepare": ["tiny.toml", "name=again", "data.metadata=meta.json.gz"],
    "validate": ["tiny.toml", "--rows"],
    "tokenize": ["tiny.toml", "tokens.kind=semantic-id", "tokens.vectors=random", "tokens.codes=8"],
    "baseline": ["--model", "itemknn", "tiny.toml", "--resume"],
    "sft": ["tiny.toml", "--resume"],
    "align": ["--method", "msl", "tiny.toml", "--resume"],
    "eval": ["tiny.toml", "--again"],
    "run": ["tiny.toml"],
    "sweep": ["tiny.toml"],
    "compare": ["runs/odd", "--out", "board.md", "--out", "board.html"],
    "export-data": ["tiny.toml", "--to", "exported"],
    "export-lists": ["--run", RUN, "--to", "lists.csv", "--format", "csv"],
    "audit": ["tiny.toml"],
    "recommend": ["--run", RUN, "--user"],
    "export": ["--run", "runs/odd/sft", "--to", f"{ODD}"],
    "download": ["--list"],
    "sample": ["--out", ODD, "--users", "30", "--items", "40"],
    "recipes ls": [],
    "recipes show": ["quickstart"],
    "recipes copy": ["quickstart", "--to", f"{ODD}.toml"],
    "runs ls": ["runs/odd"],
    "runs show": [RUN],
    "schema": [],
    "env": [],
}
MADE = (ODD, f"{ODD}.toml", "exported", "runs/odd/tokens")
REFUSED = {"sweep": "[sweep]"}  # the recipe asks for none


class Screen(TextIOWrapper):
    """A terminal, or not, with an encoding of its own."""

    def __init__(self, encoding: str, *, terminal: bool) -> None:
        self.taken = BytesIO()
        self.terminal = terminal
        super().__init__(self.taken, encoding=encoding, errors="strict", write_through=True)

    def isatty(self) -> bool:
        return self.terminal

    @property
    def shown(self) -> str:
        return self.taken.getvalue().decode(self.encoding)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small experiment with titles of many scripts, all of it done."""
    folder = tmp_path_factory.mktemp("odd")
    source = gzip.open(SAMPLE / "meta_Synthetic_Toys.json.gz", "rt", encoding="utf-8")
    with source, gzip.open(folder / "meta.json.gz", "wt", encoding="utf-8") as target:
        for line in source:
            record = json.loads(line)
            record["title"] = f"{record['title']} {ODD}"
            target.write(json.dumps(record) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        make_experiment(folder, "odd", "data.metadata=meta.json.gz", "eval.rows=10")
    recipe = (folder / "tiny.toml").read_text(encoding="utf-8")
    recipe = recipe.replace(str(SAMPLE / "meta_Synthetic_Toys.json.gz"), "meta.json.gz")
    recipe = f'name = "odd"\n{recipe}'.replace("rows = 60", "rows = 10")
    (folder / "tiny.toml").write_text(recipe, encoding="utf-8")
    return folder


@pytest.fixture
def there(
    home: Path, monkeypatch: pytest.MonkeyPatch, signals_as_before: None
) -> Iterator[pytest.MonkeyPatch]:
    """In ``home``; what a command makes there is gone before the next one."""
    monkeypatch.chdir(home)
    yield monkeypatch
    for made in MADE:
        path = home / made
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def typed(patch: pytest.MonkeyPatch, screen: Screen, *words: str) -> tuple[int, str]:
    """A command line with ``screen`` for its stdout and stderr, in this process."""
    patch.setattr(sys, "argv", ["llmrec", *words])
    patch.setattr(sys, "stdout", screen)
    patch.setattr(sys, "stderr", screen)
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0), screen.shown


def words_of(command: str) -> list[str]:
    words = [*command.split(), *COMMANDS[command]]
    if words[-1] == "--user":
        with gzip.open(SAMPLE / "Synthetic_Toys.json.gz", "rb") as lines:
            words.append(json.loads(next(lines))["reviewerID"])
    return words


def test_no_command_is_forgotten() -> None:
    assert set(COMMANDS) == set(app.COMMANDS)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_ends_as_it_would_and_shows_what_there_are_letters_for(
    command: str, encoding: str, there: pytest.MonkeyPatch
) -> None:
    words = words_of(command)
    code, shown = typed(there, Screen(encoding, terminal=False), *words)
    assert code == (2 if command in REFUSED else 0), shown
    assert REFUSED.get(command, "") in shown
    if command == "recommend":
        assert "\\u4e2d\\u6587" in shown
        assert "\\U0001f3b8" in shown
        assert ("café" if encoding == "latin-1" else "caf\\xe9") in shown


@pytest.mark.parametrize("encoding", LETTERS)
@pytest.mark.parametrize("command", ["recommend", "compare", "audit", "runs ls", "recipes ls"])
def test_tables_on_a_terminal_have_plain_borders(
    command: str, encoding: str, there: pytest.MonkeyPatch
) -> None:
    there.setenv("TERM", "xterm")
    code, shown = typed(there, Screen(encoding, terminal=True), *words_of(command), "--quiet")
    assert code == 0
    assert "+--" in shown
    assert "\\u2500" not in shown  # an escape for every piece of a border


@pytest.mark.parametrize("encoding", [*LETTERS, "utf-8"])
def test_json_is_json_and_the_same_everywhere(encoding: str, there: pytest.MonkeyPatch) -> None:
    words = [*words_of("recommend"), "--json", "--quiet"]
    code, shown = typed(there, Screen(encoding, terminal=False), *words)
    assert code == 0
    assert ODD in json.loads(shown)["items"][0]["title"]


def test_a_letter_that_utf_8_has_is_shown_as_it_is(there: pytest.MonkeyPatch) -> None:
    code, shown = typed(there, Screen("utf-8", terminal=False), *words_of("recommend"))
    assert code == 0
    assert ODD in shown


NARROW = {
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "LC_ALL": "C",
    "PYTHONIOENCODING": "latin-1",
}
FAILING = f"""
from llmrec_cli.cli import app as cli
def fail():
    raise RuntimeError({ODD!a})
cli.app = fail
cli.main()
"""


@pytest.mark.starts_python("the locale of a process; no torch")
def test_a_traceback_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILING],
        cwd=tmp_path,
        env=os.environ | NARROW,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.decode("latin-1").splitlines()
    assert "a bug of llmrec (RuntimeError: " in line
    assert f"RuntimeError: {ODD}" in (tmp_path / "debug.log").read_text(encoding="utf-8")


def test_the_command_itself_under_another_encoding(home: Path) -> None:
    command = [sys.executable, "-m", "llmrec_cli", *words_of("recommend"), "--quiet"]
    done = subprocess.run(
        command, cwd=home, env=os.environ | NARROW, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "café" in done.stdout.decode("latin-1")


def test_names_that_are_not_utf_8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"caf\xe9")
    for words, code in (
        (["validate", f"{name}.toml"], 2),
        (["recipes", "copy", "quickstart", "--to", f"{name}.toml"], 2),
        (["runs", "ls", name], 2),
        (["sample", "--out", name, "--users", "30", "--items", "40"], 0),
        (["validate", "quickstart", f"name={name}"], 2),
    ):
        monkeypatch.setattr(sys, "argv", ["llmrec", *words])
        assert exit_codes.catch_errors(app.app) == code, words
        shown = capsys.readouterr()
        assert "caf" in shown.out + shown.err


NO_TEXT = ("os.open", "kind.open", "urllib.")
TEXT = ("open", "read_text", "write_text", "fdopen", "TextIOWrapper", "NamedTemporaryFile")


def unnamed_encodings(source: str) -> Iterator[int]:
    """Lines of Python source that read or write text in whatever encoding the locale has."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if "encoding" in given:
            continue
        words = [n.value for n in (*node.args, *given.values()) if isinstance(n, ast.Constant)]
        binary = any(isinstance(w, str) and "b" in w and len(w) <= 3 for w in words)
        texts = "text" in given or "universal_newlines" in given
        opens = name in TEXT and not ast.unparse(function).startswith(NO_TEXT)
        if texts or (opens and not binary):
            yield node.lineno


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_files_are_utf_8_whatever_the_locale(path: Path) -> None:
    assert list(unnamed_encodings(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("path.write_text(story)", 1),
        ("open(path, 'w')", 1),
        ("path.open()", 1),
        ("subprocess.run(command, text=True)", 1),
        ("path.write_text(story, encoding='utf-8')", 0),
        ("path.open('rb')", 0),
    ],
)
def test_a_locale_s_encoding_would_be_found(line: str, found: int) -> None:
    assert len(list(unnamed_encodings(line))) == found
