"""Output of a command: the result on stdout, as text or JSON; progress on stderr.

Colours and boxes appear only on a terminal.  ``NO_COLOR`` switches colours off (rich's rules).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrec_cli.training.launch import LAUNCHER, is_first_rank
from llmrec_cli.utils.files import translate_os_errors
from llmrec_cli.utils.text import err, out, strip_controls

if TYPE_CHECKING:
    from rich.console import RenderableType

    from llmrec_cli.utils.progress import Progress


class Screen:
    """Shows the progress and the result of one command; only the first rank prints."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet

    def progress(self) -> Progress:
        """Bars on a terminal, lines elsewhere, nothing under ``--quiet``."""
        from llmrec_cli.utils.progress import Lines, Rich, Silent

        if self.quiet or not is_first_rank():
            return Silent()
        return Rich(err) if err.is_terminal else Lines()

    def note(self, line: str) -> None:
        """Print a note before the work starts; once, not in every process."""
        if LAUNCHER not in os.environ:
            self.progress().say(line)

    def show(
        self, value: Any, lines: Sequence[str], rich: Sequence[RenderableType] | None = None
    ) -> None:
        """Print a result.

        Args:
            value: what ``--json`` prints, JSON-able.
            lines: the same as text; control characters are dropped.
            rich: the same for a terminal, instead of ``lines``.
        """
        if not is_first_rank():
            return
        with translate_os_errors(Path("stdout")):
            if self.as_json:
                text = json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False)
                out.print(text, markup=False, soft_wrap=True)
            elif rich is not None and out.is_terminal:
                for renderable in rich:
                    out.print(renderable)
            else:
                for line in lines:
                    out.print(strip_controls(line), markup=False, soft_wrap=True)
