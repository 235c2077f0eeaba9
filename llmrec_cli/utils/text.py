"""Text output: formatting, removal of secrets, safety of terminals."""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
import sys
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from io import TextIOWrapper
from typing import IO, Any, Final

from rich.console import Console

# Titles and names from other people's files, made safe for terminals and reports.


# A terminal's own commands, 7-bit and C1 forms: ESC [ ... letter; ESC ] ... BEL or ESC \ and its
# like (only where they end: otherwise the text after them is kept); ESC with one letter.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]?"
)
_JOINERS = "\u200c\u200d"  # shape letters and emoji, never direction or layout
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#!|~&$@])")
_SPACES = frozenset("\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029")


def clean_line(title: str) -> str:
    """``title`` as one harmless line.

    Terminal escape sequences, control characters, bidirectional overrides and invisible format
    characters are removed; line breaks and runs of spaces become one space; a lone surrogate (which
    no file could be written with) becomes U+FFFD.  Markup such as ``[/]`` and ``<b>`` and formulas
    such as ``=cmd`` stay as text: whoever renders must not interpret them.
    """
    return " ".join(strip_controls(title).split())


def escape_markdown(text: str) -> str:
    """One harmless line of Markdown that shows ``text`` as it is: no markup, HTML, or new cell."""
    return _MARKDOWN.sub(r"\\\1", clean_line(text))


def build_markdown_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int] = (0,)
) -> str:
    """A table of cells that are Markdown already.

    Args:
        left: numbers of the columns that stand to the left.
    """
    rules = [":--" if at in left else "--:" for at in range(len(headings))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, rules, *rows))


def strip_controls(line: str) -> str:
    """``line`` without what ``plain`` removes, its spaces as they are."""
    return "".join(map(_harmless, _ESCAPES.sub("", line)))


def _harmless(char: str) -> str:
    if char in _SPACES:
        return " "
    kind = unicodedata.category(char)
    if kind == "Cs":
        return "\ufffd"
    return "" if kind in {"Cc", "Cf"} and char not in _JOINERS else char


def quote_word(word: str) -> str:
    """``word`` as a shell reads it, on one harmless line.

    Letters that ``clean_line`` would remove or join are written as escapes, ``$'...'`` (POSIX 2024,
    bash, zsh).
    """
    if clean_line(word) == word:
        return shlex.quote(word)
    return "$'" + "".join(map(_escape_letter, word)) + "'"


def _escape_letter(char: str) -> str:
    if char in "'\\":
        return f"\\{char}"
    if char != " " and strip_controls(char) == char:
        return char
    return f"\\x{ord(char):02x}" if ord(char) < 0x80 else f"\\U{ord(char):08x}"


def format_seconds(value: float) -> str:
    """A time: 0.31 s, 38.2 s, 12 min 5 s, 3 h 20 min."""
    if value < 60:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours:,} h {minutes} min"


# Secrets in addresses, overrides or the environment are never written or printed.
#
# Removed are: user and password of a URL, tokens of well-known formats, and values of environment
# variables with names such as HF_TOKEN, WANDB_API_KEY, AWS_SECRET_...


HIDDEN: Final = "[secret]"
_IN_URL: Final = re.compile(r"(?<=://)[^\s/@'\"]+(?=@)")
_TOKEN: Final = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[\w-]{20,})"
)
_NAME: Final = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIAL")
_PLACES: Final = ("_PATH", "_FILE", "_DIR")  # where a secret lies is none
_SHORTEST: Final = 8  # what is shorter would also be found by chance


def redact(text: str) -> str:
    """``text`` without secrets."""
    shown = _TOKEN.sub(HIDDEN, _IN_URL.sub(HIDDEN, text))
    for name, value in os.environ.items():
        secret = _NAME.search(name.upper()) and not name.upper().endswith(_PLACES)
        if secret and len(value) >= _SHORTEST:
            shown = shown.replace(value, HIDDEN)
    return shown


def redact_values(value: Any) -> Any:
    """The same for every text in lists and dictionaries."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redact_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(inner) for inner in value]
    return value


# stdout and stderr: a closed reader or a small encoding does not stop the work.


class Terminal(Console):
    """A rich console; once nobody reads it any more (``| head``), it says nothing further."""

    def on_broken_pipe(self) -> None:
        """Send what follows to nowhere; the command goes on, and ends as it would have."""
        self.quiet = True
        _send_nowhere(self.file)

    def _check_buffer(self) -> None:
        """A terminal that was closed is a reader that went away, too; rich has no hook for it."""
        try:
            super()._check_buffer()
        except OSError as error:
            if not _is_hung_up(self.file, error):
                raise
            self.on_broken_pipe()


def show_any_text() -> None:
    """Let stdout and stderr show text that their encoding lacks letters for.

    Such a letter becomes an escape (``\\u4e2d``).  Encodings: PYTHONIOENCODING, an old locale, a
    Windows console.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def let_go() -> None:
    """Drop what stdout and stderr could not write: Python would end with a code of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # closed by whoever started this
                stream.flush()
        except OSError:
            _send_nowhere(stream)


def _is_hung_up(file: IO[str], error: OSError) -> bool:
    """Whether a write failed because the terminal behind ``file`` is gone."""
    if error.errno != errno.EIO:
        return False
    try:
        return stat.S_ISCHR(os.fstat(file.fileno()).st_mode)
    except (OSError, ValueError):  # no file of the system's
        return False


def _send_nowhere(file: IO[str]) -> None:
    with suppress(OSError, ValueError):  # no file of the system's
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)


# Text stays what it is: ``reviews.json:100:`` names a line, and no emoji.
out = Terminal(highlight=False, emoji=False)
err = Terminal(stderr=True, highlight=False, emoji=False)
