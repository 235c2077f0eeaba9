"""Item tasks: rows that teach what semantic IDs mean, beside the rows that recommend.

    items + template -> prompt and answer of each task -> Row (an ID) or TextRow (a title)

After the mutual prediction of LC-Rec (arXiv:2311.09049, section III-C): the ID of a title, the
title of an ID, the ID of a description.  A row that asks for an ID is a row like any other: its
target is an item of the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llmrec_cli.config.data import ITEM_TASKS, ItemTask
from llmrec_cli.data.prompts import ItemTaskWords, Template, one_line
from llmrec_cli.data.schema import DESCRIPTION, TITLE
from llmrec_cli.errors import DataError
from llmrec_cli.models.tokenizer import Codec
from llmrec_cli.training.rows import Ragged, Row, TextRow

_SHOWN: Final[Mapping[ItemTask, str]] = {
    "title_to_id": TITLE,
    "id_to_title": TITLE,
    "description_to_id": DESCRIPTION,
}
"""The column of the catalogue that a task needs, as text."""


@dataclass(frozen=True)
class ItemTaskRows:
    """The rows of one task."""

    task: ItemTask
    rows: Sequence[Row | TextRow]
    items: int  # of the catalogue that have a row
    lacking: int  # that have no title, or no description
    too_long: int  # whose prompt, or title behind it, has no room

    def describe(self) -> str:
        """In words, such as ``title_to_id 620 (147 items)``."""
        left_out = [
            f"{count:,} {why}"
            for count, why in (
                (self.lacking, f"without a {_SHOWN[self.task]}"),
                (self.too_long, "too long"),
            )
            if count
        ]
        listed = f"; {', '.join(left_out)}" if left_out else ""
        return f"{self.task} {len(self.rows):,} ({self.items:,} items{listed})"


@dataclass(frozen=True)
class ItemTaskEncoder:
    """Rows of item tasks, for one template and tokenizer.

    Attributes:
        template: its special tokens marked, as ``PromptEncoder.marked``.
        items: the catalogue; TITLE is read, and DESCRIPTION for its task.
        catalogue: the token sequence of every item, EOS included.
        most: longest prompt, tokens.
        positions: of the backbone, for prompt and answer together; None: no limit.
    """

    template: Template
    codec: Codec
    items: pd.DataFrame
    catalogue: Ragged
    most: int
    positions: int | None = None

    def make_rows(
        self, shares: Mapping[ItemTask, float], n_answers: int, first: int, seed: int
    ) -> list[ItemTaskRows]:
        """As many rows of each task as make its share of all answers.

        Every item has a row of a task before one has a second, and so on.

        Args:
            shares: of each task; the rest is that of the answers that recommend.
            n_answers: how many of these there are.
            first: number of the first row.
            seed: which items come first, where a share does not reach all.

        Raises:
            DataError: no item serves for a task.
        """
        rest, made = 1 - sum(shares.values()), list[ItemTaskRows]()
        for task, share in shares.items():
            wanted = max(round(n_answers * share / rest), 1)
            rng = np.random.default_rng([seed, ITEM_TASKS.index(task)])
            found = self._make_task(task, wanted, first, rng)
            first += len(found.rows)
            made.append(found)
        return made

    def show_first(self, task: ItemTask) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Prompt and answer of a task for the first item that serves, as token ids."""
        for item in self._find_items(task):
            (row,) = self.encode(task, [item])
            if self._has_room(row):
                return row.prompt, self._answer(row)
        raise self._no_items(task)

    def encode(self, task: ItemTask, items: Sequence[int]) -> list[Row | TextRow]:
        """A row for each of some items, whose text for the task is there."""
        words, whole = self.template.item_tasks[task], self.template.whole
        texts = self._read_texts(task, items)
        if task == "id_to_title":
            answers = self.codec.encode([f'"{text}"' for text in texts])
            return [
                TextRow(prompt, np.array([*answer, self.codec.eos], np.int32))
                for prompt, answer in zip(
                    self._encode_around_ids(words, items), answers, strict=True
                )
            ]
        shown = [f'"{text}"' if task == "title_to_id" else text for text in map(one_line, texts)]
        asked = [words.head + text + words.tail for text in shown]
        return [
            Row(np.asarray(prompt, np.int32), (int(item),))
            for prompt, item in zip(
                self.codec.encode_prompts(asked, whole=whole), items, strict=True
            )
        ]

    def _make_task(
        self, task: ItemTask, wanted: int, first: int, rng: np.random.Generator
    ) -> ItemTaskRows:
        there = self._find_items(task)
        order, usable, looked_at = rng.permutation(there), list[int](), 0
        encoded = dict[int, Row | TextRow]()
        while len(usable) < wanted and looked_at < len(order):  # as many as are wanted, not all
            some = order[looked_at : looked_at + wanted - len(usable)].tolist()
            found = dict(zip(some, self.encode(task, some), strict=True))
            encoded |= {item: row for item, row in found.items() if self._has_room(row)}
            usable, looked_at = list(encoded), looked_at + len(some)
        if not usable:
            raise self._no_items(task)
        drawn = [*usable, *_draw_in_turns(np.array(usable), wanted - len(usable), rng)]
        return ItemTaskRows(
            task,
            [replace(encoded[item], number=first + at) for at, item in enumerate(drawn)],
            items=len(usable),
            lacking=len(self.items) - len(there),
            too_long=looked_at - len(usable),
        )

    def _find_items(self, task: ItemTask) -> NDArray[np.int64]:
        """Items that have what the task shows."""
        texts = self.items[_SHOWN[task]]
        there = [isinstance(text, str) and bool(text.strip()) for text in texts]
        return np.flatnonzero(np.array(there, dtype=bool))

    def _read_texts(self, task: ItemTask, items: Sequence[int]) -> list[str]:
        column = self.items[_SHOWN[task]]
        texts = [str(column.iloc[item]) for item in items]
        if task == "description_to_id":
            return self.codec.cut(texts, self.template.item_description_tokens)
        return texts

    def _encode_around_ids(
        self, words: ItemTaskWords, items: Sequence[int]
    ) -> Iterator[NDArray[np.int32]]:
        (head,) = self.codec.encode_prompts([words.head], whole=self.template.whole)
        (tail,) = self.codec.encode_words([words.tail])
        for item in items:
            yield np.concatenate([head, self.catalogue[item][:-1], tail]).astype(np.int32)

    def _answer(self, row: Row | TextRow) -> NDArray[np.int32]:
        return row.answer if isinstance(row, TextRow) else self.catalogue[row.targets[0]]

    def _has_room(self, row: Row | TextRow) -> bool:
        whole = len(row.prompt) + len(self._answer(row))
        return len(row.prompt) <= self.most and (self.positions is None or whole <= self.positions)

    def _no_items(self, task: ItemTask) -> DataError:
        return DataError(
            f"item_tasks.{task}: no item serves: expected a {_SHOWN[task]} whose prompt has room "
            f"in {self.most:,} tokens"
        )


def _draw_in_turns(items: NDArray[np.int64], count: int, rng: np.random.Generator) -> Iterator[int]:
    """``count`` items: each once in random order, then each a second time, and so on."""
    while count > 0 and len(items):
        for item in rng.permutation(items)[:count]:
            yield int(item)
        count -= len(items)
