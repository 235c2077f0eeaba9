"""stdout and stderr as consoles: a reader that leaves, or few letters, stop no work."""

from __future__ import annotations

import errno
import os
import stat
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import IO

from rich.console import Console


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
