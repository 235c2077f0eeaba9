"""stdout and stderr as consoles that may lose their reader without stopping any work."""

from __future__ import annotations

import os

from rich.console import Console


class Terminal(Console):
    """A rich console; once nobody reads it any more (``| head``), it says nothing further."""

    def on_broken_pipe(self) -> None:
        """Send what follows to nowhere; the command goes on, and ends as it would have."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


# Text stays what it is: ``reviews.json:100:`` names a line, and no emoji.
out = Terminal(highlight=False, emoji=False)
err = Terminal(stderr=True, highlight=False, emoji=False)
