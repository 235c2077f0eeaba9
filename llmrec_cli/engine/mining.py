"""Mining negatives: the first wrong entries that a model itself recommends.

``refresh = 0`` asks the parent, once for every row that comes up; ``refresh = n`` asks the policy
every n updates.  What was said is written down: a resumed run draws from the same, to the last bit
(a score depends, in its last bits, on the rows that are ranked together).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from llmrec_cli.engine.rows import Row
from llmrec_cli.errors import ArtefactError
from llmrec_cli.files import check_folder, read_json, write_folder, write_json

Lists = dict[int, list[list[int]]]  # row number -> for each target, leaves best first
LISTS = "lists.json"
Ask = Callable[[Sequence[Row]], list[list[list[int]]]]


class Miner:
    """Ranked wrong leaves for the rows of an update.

    Args:
        ask: ranks the catalogue for every target of the rows, the user's own entries left out; by
            the parent, or where ``refresh`` > 0 by the policy as it is then.
        upcoming: the rows of ``updates`` updates from a step on.
        refresh: updates between two questions; 0: a row's answer stays for the whole run.
        folder: where the lists are kept.
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
        """The lists of these rows, which belong to update ``step``.

        Raises:
            ArtefactError: what was written down is damaged, or lacks one of them.
        """
        begun = step - step % self.ahead
        if begun != self._from:
            all_count = self._from is None and not self.refresh  # a resumed run's earlier ones too
            for at in range(0 if all_count else begun, begun + 1, self.ahead):
                self._open(at)
        lost = [row.number for row in rows if row.number not in self._known]
        if lost:
            raise ArtefactError(
                f"{self.folder}: nothing is written down for row {lost[0]}: of another run? "
                "delete the folder"
            )
        return {row.number: self._known[row.number] for row in rows}

    def _open(self, begun: int) -> None:
        """Know the lists of the updates from ``begun`` on.

        Raises:
            ArtefactError: what was written down is damaged.
        """
        known = {} if self.refresh else self._known
        path = self.folder / f"step-{begun}"
        if path.is_dir():
            check_folder(path)
            said = _read(path / LISTS)
        else:
            said = self._asked(begun, known)
            if said and self.writes:
                write_folder(path, lambda temporary: write_json(temporary / LISTS, said))
        self._from, self._known = begun, known | said

    def _asked(self, begun: int, known: Lists) -> Lists:
        asked = {row.number: row for row in self.upcoming(begun, self.ahead)}
        fresh = [row for number, row in asked.items() if number not in known]
        answers = self.ask(fresh) if fresh else []
        return {row.number: lists for row, lists in zip(fresh, answers, strict=True)}


def _read(path: Path) -> Lists:
    try:
        return {int(number): lists for number, lists in read_json(path).items()}
    except (AttributeError, ValueError):
        raise ArtefactError(f"{path}: not the lists that were written here") from None
