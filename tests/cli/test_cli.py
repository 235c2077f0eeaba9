"""The command line: help, exit codes, and one line for whatever goes wrong."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

from llmrec_cli import __version__
from llmrec_cli.cli import exit_codes
from llmrec_cli.errors import (
    ArtefactError,
    BegunError,
    DataError,
    MachineError,
    MissingRunError,
    NumbersError,
    RecipeError,
)
from llmrec_cli.training.launch import SIGNALS, Stopped, describe_resuming
from llmrec_cli.utils.files import write_folder
from llmrec_cli.utils.locks import lock_run
from llmrec_cli.utils.progress import Lines, Rich
from llmrec_cli.utils.text import Terminal, clean_line, quote_word
from tests.commands import llmrec
from tests.experiments import typed

COMMANDS = (
    "prepare",
    "validate",
    "baseline",
    "sft",
    "align",
    "eval",
    "run",
    "sweep",
    "compare",
    "export-data",
    "export-lists",
    "audit",
    "recommend",
    "export",
    "download",
    "sample",
    "recipes ls",
    "recipes show",
    "recipes copy",
    "runs ls",
    "runs show",
    "schema",
    "env",
)


class Unread(StringIO):
    """Text that nobody takes any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


class PanicException(BaseException):
    """What a thread of Rust that gave up is to Python."""


@pytest.mark.slow
def test_a_process_ends_with_the_code_and_the_words_of_its_command(tmp_path: Path) -> None:
    """The tests below call the command line in this process; these two are as users type them."""
    version = llmrec(tmp_path, "--version")
    assert (version.returncode, version.stdout) == (0, f"llmrec {__version__}\n")
    wrong = llmrec(tmp_path, "prepare", "nowhere.toml")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("llmrec prepare: error: nowhere.toml: no such recipe")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(capsys, "--version").out == f"llmrec {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = typed(capsys, *command.split(), "--help")
    assert shown.code == 0
    assert f"Example: llmrec {command}" in shown.out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RecipeError("x.toml: bad"), 2),
        (DataError("x:3: bad"), 2),
        (ArtefactError("run: bad"), 2),
        (MachineError("disk"), 3),
        (OSError(28, "No space left on device", "out"), 3),
        (MemoryError(), 3),
        (ImportError("libx.so: failed to map segment from shared object"), 3),
        (PanicException("Os { code: 11, message: Resource temporarily unavailable }"), 3),
        (PanicException("index out of bounds"), 1),
        (NumbersError("step 3"), 4),
        *((Stopped(n), 130 if n == signal.SIGINT else 143) for n in SIGNALS),
        (RuntimeError("surprise"), 1),
    ],
)
def test_every_exception_is_one_line_and_its_documented_code(
    error: BaseException,
    code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    def command() -> None:
        raise error

    assert exit_codes.catch_errors(command) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert "error: " in shown.err
    assert (tmp_path / "debug.log").exists() == (code == 1)


def test_the_traceback_of_a_bug_lies_in_the_folder_of_its_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/new/sft")
    folder.mkdir(parents=True)

    def command() -> None:
        with lock_run(folder):
            raise RuntimeError("surprise")

    assert exit_codes.catch_errors(command) == 1
    assert "runs/new/sft/debug.log" in capsys.readouterr().err
    assert "surprise" in (folder / "debug.log").read_text()
    assert not (tmp_path / "debug.log").exists()


def test_progress_that_nobody_can_read_stops_nothing() -> None:
    with Lines(Unread()).track("sft", total=1) as advance:
        advance(1)


def test_hostile_text_in_an_error_is_shown_and_not_interpreted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command() -> None:
        raise DataError("title '[/] [bold]x[/bold] \x1b[31mred' is odd")

    assert exit_codes.catch_errors(command) == 2
    shown = capsys.readouterr().err
    assert "[/] [bold]x[/bold]" in shown
    assert "\x1b" not in shown


def test_a_line_of_an_error_has_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise RecipeError("x.toml: 1 problem\n  " + "k" * 90_000 + ": unknown key")

    assert exit_codes.catch_errors(command) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("x.toml: 1 problem")
    assert 1000 < len(second) < 3000
    assert second.endswith("k... (90,013 characters)")


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        *((name, "go on with: llmrec {} --resume") for name in ("sft", "align", "baseline")),
        *((name, "go on with: llmrec {}") for name in ("run", "eval", "prepare")),
    ],
)
def test_an_interrupted_command_says_how_to_go_on_with_it(
    command: str, advice: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped() -> None:
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr("sys.argv", ["llmrec", command])
    assert exit_codes.catch_errors(stopped) == 143
    said = capsys.readouterr().err
    assert said == f"llmrec {command}: error: terminated; {advice.format(command)}\n"
    assert ("--resume" in typed(capsys, command, "--help").out) == ("--resume" in advice)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["sft", "r.toml", "train.lr=3e-4"], "sft r.toml train.lr=3e-4 --resume"),
        (["sft", "r.toml", "--resume", "-q"], "sft r.toml --resume -q"),
        (
            ["align", "-m", "msl", "--", "my recipe.toml"],
            "align -m msl --resume -- 'my recipe.toml'",
        ),
        (
            ["eval", "r.toml", "data.reviews=['a','b']"],
            """eval r.toml 'data.reviews=['"'"'a'"'"','"'"'b'"'"']'""",
        ),
        (["run", "r.toml", "name=a  b\n"], r"run r.toml $'name=a\x20\x20b\x0a'"),
        (["run", "r.toml", "name=\u202eb'"], r"run r.toml $'name=\U0000202eb\''"),
        (
            ["run", "r.toml", "base=https://me:secret@hub/m"],
            "run r.toml 'base=https://[secret]@hub/m'",
        ),
    ],
)
def test_the_advice_is_the_command_to_type(
    words: list[str],
    shown: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With overrides, quoted for a shell, on one harmless line, without secrets."""
    monkeypatch.setattr("sys.argv", ["/bin/llmrec", *words])

    def stopped() -> None:
        raise Stopped(signal.SIGINT)

    assert exit_codes.catch_errors(stopped) == 130
    assert capsys.readouterr().err.rstrip("\n").endswith(f"interrupted; go on with: llmrec {shown}")


def raising(error: BaseException) -> Callable[[], None]:
    """A command that ends with an error."""

    def command() -> None:
        raise error

    return command


TYPED = ["eval", "my recipe.toml", "--run", "sft", "train.learning_rate=3e-4", "--split", "test"]


@pytest.mark.parametrize(
    ("error", "words", "said"),
    [
        (
            BegunError("runs/a/sft: exists already; choose another name"),
            ["sft", "r.toml", "seed=1"],
            "choose another name, or go on with: llmrec sft r.toml seed=1 --resume",
        ),
        (
            MissingRunError("runs/a/sft: is not finished", "llmrec sft RECIPE --resume"),
            TYPED,
            "run first: llmrec sft 'my recipe.toml' train.learning_rate=3e-4 --resume",
        ),
        (
            MissingRunError("runs/a/sft: does not exist", "llmrec align --method x RECIPE"),
            TYPED,
            "run first: llmrec align --method x 'my recipe.toml' train.learning_rate=3e-4",
        ),
        (
            MissingRunError("runs/a/sft: does not exist", "llmrec sft RECIPE"),
            ["recommend", "--run", "runs/a/sft"],
            "run first: llmrec sft RECIPE",
        ),
        (
            ArtefactError("p: not a prepared folder; run first: llmrec prepare RECIPE"),
            ["sft", "r.toml", "name=a b"],
            "run first: llmrec prepare r.toml 'name=a b'",
        ),
        (
            RecipeError("x: the RECIPE; llmrec eval RECIPE --run sft --again, or RECIPE"),
            ["eval", "r.toml"],
            "x: the RECIPE; llmrec eval r.toml --run sft --again, or RECIPE",
        ),
    ],
)
def test_a_refusal_names_the_command_to_type(
    error: BaseException,
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The recipe and the overrides of the command that was refused, and no other option of it."""
    monkeypatch.setattr("sys.argv", ["llmrec", *words])
    assert exit_codes.catch_errors(raising(error)) == 2
    assert capsys.readouterr().err.rstrip("\n").endswith(said)


@pytest.mark.parametrize(
    "error",
    [
        MachineError("disk"),
        OSError(28, "No space left on device", "out"),
        MemoryError(),
        RuntimeError("[enforce fail] can't allocate memory: you tried"),
    ],
)
@pytest.mark.parametrize("begun", [True, False])
def test_what_the_machine_stopped_goes_on_where_a_run_was_begun(
    begun: bool,
    error: Exception,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["llmrec", "align", "-m", "msl", "r.toml", "seed=1"])
    folder = tmp_path / "runs/a/align-msl"
    folder.parent.mkdir(parents=True)

    def command() -> None:
        with lock_run(folder):
            if begun:
                folder.mkdir()
            raise error

    assert exit_codes.catch_errors(command) == 3
    advice = "; once that is mended, go on with: llmrec align -m msl r.toml seed=1 --resume"
    assert capsys.readouterr().err.rstrip("\n").endswith(advice) == begun


def test_a_rank_tells_what_its_launcher_was_started_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["llmrec", "sft", "r.toml"])
    monkeypatch.setenv("LLMREC_FAILURES", "nowhere")
    assert describe_resuming() == "go on under the same launcher with: llmrec sft r.toml --resume"
    monkeypatch.setenv("LLMREC_LAUNCHER", "1")
    monkeypatch.setenv("LLMREC_TYPED", '["sft", "r.toml", "--accelerate-config", "a.yaml"]')
    advice = "go on with: llmrec sft r.toml --accelerate-config a.yaml --resume"
    assert describe_resuming() == advice


@pytest.mark.slow
@pytest.mark.parametrize(
    "word", ["plain", "a b", "a  b", "it's", "\n\t'\\", "\u202ex", "$HOME", "\x1b[31m", "=é"]
)
def test_a_shell_reads_a_quoted_word_as_it_was(word: str) -> None:
    quoted = quote_word(word)
    assert clean_line(quoted) == quoted
    bash = ["/bin/bash", "-c", f"printf %s {quoted}"]
    done = subprocess.run(bash, capture_output=True, env={"LC_ALL": "C.UTF-8"}, check=True)
    assert done.stdout.decode() == word


def ended_while_failing(signals: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command with a data error that is told to stop while it says so."""
    say = exit_codes._fail

    def failing() -> None:
        raise DataError("row 7 is odd")

    def said(message: str, code: int, *, secondary: bool = False) -> int:
        for _ in range(signals):
            signal.raise_signal(signal.SIGTERM)
        return say(message, code, secondary=secondary)

    monkeypatch.setattr(exit_codes, "_fail", said)
    monkeypatch.setattr("sys.argv", ["llmrec"])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    code = exit_codes.run_to_exit_code(failing)
    signal.raise_signal(signal.SIGTERM)  # and on the way out
    return code


@pytest.mark.usefixtures("signals_as_before")
@pytest.mark.parametrize("signals", [0, 1, 2])
def test_a_signal_that_comes_after_the_end_changes_nothing(
    signals: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended_while_failing(signals, monkeypatch) == 2
    assert capsys.readouterr().err == "llmrec: error: row 7 is odd\n"


@pytest.mark.usefixtures("signals_as_before")
@pytest.mark.parametrize("number", SIGNALS)
def test_every_signal_ends_a_command_and_leaves_no_half_of_a_folder(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is whole already stays; a second signal of a kind that comes twice does no harm."""
    cleaned: list[int] = []

    def fill(folder: Path) -> None:
        (folder / "half").write_text("half")
        try:
            signal.raise_signal(number)
        finally:
            if number not in (signal.SIGINT, signal.SIGTERM):  # a person who insists
                signal.raise_signal(number)
                signal.raise_signal(signal.SIGHUP)
            cleaned.append(number)

    def command() -> None:
        write_folder(tmp_path / "prepared", lambda folder: None)
        write_folder(tmp_path / "second", fill)

    for heard in SIGNALS:
        signal.signal(heard, signal.SIG_DFL)
    monkeypatch.setattr("sys.argv", ["llmrec", "prepare"])
    assert exit_codes.run_to_exit_code(command) == (130 if number == signal.SIGINT else 143)
    assert cleaned == [number]
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]
    said = capsys.readouterr().err
    assert said == f"llmrec prepare: error: {SIGNALS[number]}; go on with: llmrec prepare\n"


@pytest.mark.usefixtures("signals_as_before")
@pytest.mark.parametrize("number", SIGNALS)
def test_what_was_ignored_before_the_start_is_ignored(number: int) -> None:
    signal.signal(number, signal.SIG_IGN)
    assert exit_codes.run_to_exit_code(lambda: signal.raise_signal(number)) == 0
    assert signal.getsignal(number) == signal.SIG_IGN


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["prepare", "nowhere.toml"], "no such recipe"),
        (["sft", "quickstart", "train.epoch=1"], "Did you mean epochs?"),
        (["align", "--method", "mls", "quickstart"], "Did you mean msl?"),
        (["baseline", "--model", "sasrek", "quickstart"], "Did you mean sasrec?"),
        (["eval", "quickstart", "--run", "baseline-caser"], "llmrec baseline --model caser"),
        (["eval", "quickstart", "--run", "align-msl"], "run first: llmrec align --method msl"),
        (["eval", "quickstart", "--run", "nothing"], "nothing"),
        (["sft", "quickstart"], "not a prepared folder"),
        (["prepare"], "Missing argument"),
        (["fly"], "No such command"),
        (["prepare", "quickstart", "data.reviews=gone.json"], "gone.json"),
    ],
)
def test_wrong_use_is_exit_code_2_and_no_traceback(
    words: list[str],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = typed(capsys, *words)
    assert done.code == 2, done.err
    assert expected in done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_line_number_is_no_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise DataError("reviews.json:100: bad")

    assert exit_codes.catch_errors(command) == 2
    assert "reviews.json:100: bad" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [Lines, Rich])
def test_progress_shows_text_and_follows_none(kind: type[Lines] | type[Rich]) -> None:
    shown = StringIO()
    terminal = Terminal(file=shown, force_terminal=True, emoji=False, width=120, color_system=None)
    progress = Lines(shown) if kind is Lines else Rich(terminal)
    progress.say("[bold]a[/] \x1b]0;title\x07 file:100:")
    with progress.track("[red]b[/]", total=1) as advance:
        advance(1, note="[blink]c")
    text = shown.getvalue()
    assert "\x1b]0;" not in text
    for words in ("[bold]a[/]", "file:100:", "[red]b[/]", "[blink]c"):
        assert words in text
