"""Mining negatives: the first wrong entries that a model itself recommends.

``refresh = 0`` asks the parent, once for every row that comes up; ``refresh = n`` asks the policy
every n updates.  What the policy said is written down, so that a resumed run draws from the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from llmrec_cli.engine.rows import Row
from llmrec_cli.files import read_json, write_atomically

Lists = dict[int, list[list[int]]]  # row number -> for each target, leaves best first
Ask = Callable[[Sequence[Row]], list[list[list[int]]]]


class Miner:
    """Ranked wrong leaves for the rows of an update.

    Args:
        ask: ranks the catalogue for every target of the rows, the user's own entries left out; by
            the parent, or where ``refresh`` > 0 by the policy as it is then.
        upcoming: the rows of ``updates`` updates from a step on.
        refresh: updates between two questions; 0: a row's answer stays for the whole run.
        folder: where refreshed lists are kept.
        writes: whether this process keeps them; all processes ask together.
    """

    def __init__(
        self,
        ask: Ask,
        upcoming: Callable[[int, int], Sequence[Row]],
        *,
        refresh: int,
        folder: Path,
        ahead: int = 16,
        writes: bool = True,
    ) -> None:
        self.ask = ask
        self.upcoming = upcoming
        self.refresh = refresh
        self.folder = folder
        self.ahead = refresh or ahead
        self.writes = writes
        self._known: Lists = {}
        self._from: int | None = None

    def lists(self, rows: Sequence[Row], step: int) -> Lists:
        """The lists of these rows, which belong to update ``step``."""
        begun = step - step % self.ahead
        if begun != self._from:
            self._open(begun)
        return {row.number: self._known[row.number] for row in rows}

    def _open(self, begun: int) -> None:
        self._from = begun
        path = self.folder / f"step-{begun}.json"
        if self.refresh and path.is_file():
            self._known = {int(number): lists for number, lists in read_json(path).items()}
            return
        known = {} if self.refresh else self._known
        asked = {row.number: row for row in self.upcoming(begun, self.ahead)}
        fresh = [row for number, row in asked.items() if number not in known]
        self._known = known | {
            row.number: lists for row, lists in zip(fresh, self.ask(fresh), strict=True)
        }
        if self.refresh and self.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(self._known).encode())
