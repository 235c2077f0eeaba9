"""How a command ends: every exception and signal becomes one line on stderr and an exit code.

``docs/pipeline.md`` and ``errors.py`` list the codes.  In a process group, the launcher prints the
line of the rank that failed.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from llmrec_cli.errors import (
    BegunError,
    LlmrecError,
    MachineError,
    find_folder,
)
from llmrec_cli.training.launch import (
    LAUNCHER,
    Stopped,
    describe_resuming,
    is_rank,
    list_heeded_signals,
    note_failure,
    read_typed_words,
    set_last_resort,
)
from llmrec_cli.utils.text import clean_line, err, let_go, quote_word, redact

_MEMORY = (
    "out of memory; lower train.micro_batch, train.micro_tokens, eval.batch or the model's size"
)
_NO_MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    "failed to map segment from shared object",
    "Resource temporarily unavailable",
)
_WITH_RECIPE = re.compile(
    r"(\bllmrec [a-z][a-z-]*(?: --[a-z]+ \S+)* )RECIPE\b"
)  # a command to type
_INSISTENT = (signal.SIGINT, signal.SIGTERM)
_LONGEST = 2000  # characters of a line; keys and values have no limit
_ALONE = "another process of the group ended, or gave no answer within launch.timeout seconds; "


def run_to_exit_code(command: Callable[[], object]) -> int:
    """Run ``command``; exceptions and signals become exit codes.

    The first signal ends the command.  While the command cleans up, only SIGINT and SIGTERM
    interrupt it: a closed terminal sends SIGHUP more than once, and a limit on processor time sends
    SIGXCPU every second.  After the command, signals are ignored and the outcome is printed.
    """
    running, stopping = True, False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        if running and (not stopping or number in _INSISTENT):
            stopping = True
            raise Stopped(number)

    def heard() -> None:
        nonlocal running
        try:
            for number in list_heeded_signals():
                signal.signal(number, stop)
            command()
        finally:
            running = False

    set_last_resort(_end_at_once)
    return catch_errors(heard)


def catch_errors(command: Callable[[], object]) -> int:
    """Run ``command``; turn every exception into one line on stderr and an exit code."""
    try:
        command()
    except LlmrecError as error:
        return _fail(_describe_error(error), error.exit_code)
    except Stopped as stop:
        return _tell_stopped(stop)
    except (MemoryError, OSError) as error:
        return _fail(_machine_line(error) + _advise_after(error), MachineError.exit_code)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0
    except Exception as error:
        if _out_of_memory(error):
            return _fail(_MEMORY + _advise_after(error), MachineError.exit_code)
        if is_rank() and _left_alone(error):
            return _fail(_ALONE + describe_resuming(), MachineError.exit_code, secondary=True)
        return _bug(error)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of polars: a thread of Rust gave up
            raise
        return _fail(_MEMORY, MachineError.exit_code) if _out_of_memory(error) else _bug(error)
    return 0


def _describe_error(error: LlmrecError) -> str:
    """Its message, with the command to type where one helps."""
    match error:
        case BegunError():
            return f"{error.reason}, or {describe_resuming()}"
        case MachineError():
            return str(error) + _advise_after(error)
    return name_recipe(str(error))


def _advise_after(error: BaseException) -> str:
    """How to go on with the run in which the machine failed, where one was begun.

    The commands of a sweep do not say it: the sweep does them again.
    """
    if find_folder(error) is None or (LAUNCHER in os.environ and not is_rank()):
        return ""
    return f"; once that is mended, {describe_resuming()}"


def name_recipe(text: str) -> str:
    """A message whose commands have the recipe and the overrides as typed, in place of RECIPE.

    Without a recipe on this command line the message stays as it is.
    """
    from llmrec_cli.cli.app import read_recipe_words

    if not _WITH_RECIPE.search(text):
        return text
    recipe = read_recipe_words(read_typed_words())
    if recipe is None:
        return text
    typed = " ".join(quote_word(redact(word)) for word in recipe)
    return _WITH_RECIPE.sub(lambda found: found[1] + typed, text)


def _tell_stopped(stop: Stopped) -> int:
    return _fail(f"{stop}; {describe_resuming()}", stop.exit_code, secondary=True)


def _end_at_once(stop: Stopped) -> NoReturn:
    """End the process while its main thread is busy in a library.

    Files are whole at any moment, and locks end with their process.
    """
    code = _tell_stopped(stop)
    with suppress(OSError):
        err.show_cursor()  # bars hide it
    let_go()
    os._exit(code)


def _fail(message: str, code: int, *, secondary: bool = False) -> int:
    message = redact(message)
    if note_failure(message, code, secondary=secondary):
        return code  # whoever started this rank prints it
    words = [word for word in sys.argv[1:2] if not word.startswith("-")]
    said = format_message(f"{' '.join(['llmrec', *words])}: error: {message}")
    with suppress(OSError):  # stderr is full or gone: the code still tells
        err.print(said, markup=False, soft_wrap=True)
    return code


def format_message(message: str) -> str:
    """A message for the terminal: without control characters, and with long lines cut."""
    lines = map(clean_line, message.split("\n"))
    return "\n".join(
        line if len(line) <= _LONGEST else f"{line[:_LONGEST]}... ({len(line):,} characters)"
        for line in lines
    )


def _machine_line(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or 'the machine'}: {error.strerror or error}"
    return _MEMORY


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, as torch (GPU, CPU), the dynamic loader or polars report it."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return "OutOfMemoryError" in names or any(sign in str(error) for sign in _NO_MEMORY)


def _left_alone(error: Exception) -> bool:
    """Whether a collective failed because another process of the group ended or hangs."""
    names = {kind.__name__ for kind in type(error).__mro__}
    signs = ("gloo", "NCCL", "closed by peer", "reset by peer", "Timed out")
    is_runtime = isinstance(error, RuntimeError)
    return "DistError" in names or (is_runtime and any(sign in str(error) for sign in signs))


def _bug(error: BaseException) -> int:
    log = (find_folder(error) or Path()) / "debug.log"
    try:
        story = redact("".join(traceback.format_exception(error)))
        log.write_text(story, encoding="utf-8", errors="backslashreplace")
        where = f"the traceback is in {log.resolve()}; please report it"
    except OSError:
        where = "please report it"
    return _fail(f"a bug of llmrec ({type(error).__name__}: {error}); {where}", 1)
