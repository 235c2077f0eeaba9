"""DMPO's released files: JSON arrays of prompts that show a history and two candidates.

The text is all there is, so it is taken apart: titles are the items' ids, and rows of one history
are one user's.  Every row must come out byte for byte when it is rendered again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import polars as pl

from llmrec_cli.config.data import DataSection
from llmrec_cli.data.formats.base import ITEM_SCHEMA, PAIR_SCHEMA, Locate, Notes, Source
from llmrec_cli.data.formats.parsing import make_fault, printable, read_document, show_text
from llmrec_cli.data.prompts import Question, RankTemplate, load_template, template_names
from llmrec_cli.data.schema import (
    BRAND,
    CHOSEN_FIRST,
    HISTORY,
    ITEM_ID,
    NEGATIVES,
    PREFERENCE,
    RATING,
    SPLITS,
    TARGET,
    TIMESTAMP,
    TITLE,
    TOKENS,
    USER_ID,
)
from llmrec_cli.errors import DataError

WHAT: Final = 'a JSON array of objects with "instruction", "input" and "output"'
_KEY: Final = (USER_ID, TARGET)


class Record(msgspec.Struct):
    """One row as released."""

    instruction: str
    output: str | list[str]  # the answer, or [chosen, rejected]
    input: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """One row, taken apart."""

    history: tuple[str, ...]
    liked: str
    other: str
    liked_first: bool  # in the prompt


def read(section: DataSection, locate: Locate, scratch: Path) -> Source:
    """Read every split's files; a user's pairs of one liked title become one row.

    Raises:
        DataError: anything wrong in a file, as ``path: row n: problem``, rows counted from 1.
    """
    del scratch  # these sources fit in memory
    wordings = _load_wordings()
    rows: dict[str, pl.DataFrame] = {}
    notes: Notes = {}
    for split in (*SPLITS, PREFERENCE):
        names: tuple[str, ...] = getattr(section.splits, split)
        parts = {name: read_pair_file(locate(name), wordings) for name in names}
        if parts:
            rows[split] = _group_pairs([pair for pairs, _ in parts.values() for pair in pairs])
        notes[split] = {
            name: {"pairs": len(pairs), "wording": wording}
            for name, (pairs, wording) in parts.items()
        }
    return Source(None, _list_items(rows), rows, {"splits": notes})


def read_pair_file(path: Path, wordings: Mapping[str, RankTemplate]) -> tuple[list[Pair], str]:
    """The pairs of one file in file order, and the shipped template that its wording is of.

    Raises:
        DataError: see ``read``.
    """
    records = _read_records(path)
    if not records:
        raise make_fault(path, 1, f"the array is empty; expected {WHAT}")
    name = _wording_of(path, records[0], wordings)
    wording = wordings[name]
    return [_parse_pair(path, n, record, wording) for n, record in enumerate(records, 1)], name


def _load_wordings() -> dict[str, RankTemplate]:
    found = {name: load_template(name, Path).rank for name in template_names()}
    return {name: rank for name, rank in found.items() if rank is not None}


def _read_records(path: Path) -> list[Record]:
    data = read_document(path)
    try:
        return msgspec.json.decode(data, type=list[Record])
    except msgspec.ValidationError as error:
        place = re.search(r"\$\[(\d+)\]", str(error))
        problem = f"{str(error).split(' - at ')[0].replace('`', '')}; expected {WHAT}"
        if place is None:
            raise make_fault(path, 1, problem) from None
        raise _row_fault(path, int(place[1]) + 1, problem) from None
    except (msgspec.DecodeError, RecursionError) as error:
        found = re.search(r"byte (\d+)", str(error))
        line = 1 + data.count(b"\n", 0, int(found[1])) if found else 1
        raise make_fault(path, line, f"invalid JSON ({error}); expected {WHAT}") from None


def _wording_of(path: Path, record: Record, wordings: Mapping[str, RankTemplate]) -> str:
    for name, wording in wordings.items():
        if wording.parse(record.instruction):
            return name
    known = ", ".join(wordings)
    problem = (
        f'"instruction" is {show_text(record.instruction)}, not in the wording of any of {known}'
    )
    raise _row_fault(path, 1, problem)


def _parse_pair(path: Path, number: int, record: Record, wording: RankTemplate) -> Pair:
    question = wording.parse(record.instruction)
    if question is None:
        problem = f'"instruction" is {show_text(record.instruction)}, not in the wording of row 1'
        raise _row_fault(path, number, problem)
    if record.input:
        raise _row_fault(
            path, number, f'"input" is {show_text(record.input)}, expected an empty text'
        )
    answers = [record.output] if isinstance(record.output, str) else record.output
    if isinstance(record.output, list) and len(answers) != 2:
        problem = f'"output" has {len(answers)} answers, expected a text or [chosen, rejected]'
        raise _row_fault(path, number, problem)
    liked, other = _parse_ranking(path, number, answers, question, wording)
    pair = Pair(question.history, liked, other, liked_first=liked == question.first)
    if render(pair, wording)[: 1 + len(answers)] != (record.instruction, *answers):
        raise _row_fault(path, number, "rendered again from its titles, the text is another one")
    return pair


def render(pair: Pair, wording: RankTemplate) -> tuple[str, ...]:
    """The texts of a row as released: the prompt, the chosen answer, the rejected one."""
    both = (pair.liked, pair.other)
    first, second = both if pair.liked_first else both[::-1]
    return (
        wording.render(Question(pair.history, first, second)),
        wording.render_answer(pair.liked, pair.other),
        wording.render_answer(pair.other, pair.liked),
    )


def _parse_ranking(
    path: Path, number: int, answers: Sequence[str], question: Question, wording: RankTemplate
) -> tuple[str, str]:
    """The chosen answer's titles, after checking that the answers rank the two candidates."""
    shown_titles = {question.first, question.second}
    parsed = []
    for answer in answers:
        titles = wording.parse_answer(answer)
        if titles is None or set(titles) != shown_titles or len(shown_titles) < 2:
            expected = f"expected the prompt's candidates {show_text(sorted(shown_titles), 160)}"
            raise _row_fault(path, number, f'"output" is {show_text(answer)}, {expected}')
        parsed.append(titles)
    chosen = parsed[0]
    if parsed[-1] != (chosen if len(parsed) == 1 else chosen[::-1]):
        raise _row_fault(path, number, "both answers are the same, expected [chosen, rejected]")
    return chosen


def _row_fault(path: Path, number: int, problem: str) -> DataError:
    return DataError(printable(f"{path}: row {number}: {problem}"))


def _group_pairs(pairs: Sequence[Pair]) -> pl.DataFrame:
    """Pairs grouped by user and liked title, both in order of first appearance."""
    columns = {
        USER_ID: [user_of(pair.history) for pair in pairs],
        HISTORY: [list(pair.history) for pair in pairs],
        TARGET: [pair.liked for pair in pairs],
        NEGATIVES: [pair.other for pair in pairs],
        CHOSEN_FIRST: [pair.liked_first for pair in pairs],
    }
    schema = PAIR_SCHEMA | {NEGATIVES: pl.String(), CHOSEN_FIRST: pl.Boolean()}
    flat = pl.DataFrame(columns, schema={name: schema[name] for name in columns})
    grouped = flat.group_by(*_KEY, maintain_order=True).agg(
        pl.col(HISTORY).first(), pl.col(NEGATIVES), pl.col(CHOSEN_FIRST)
    )
    unknown = [pl.lit(None, PAIR_SCHEMA[name]).alias(name) for name in (TIMESTAMP, RATING)]
    return grouped.with_columns(unknown).select(*PAIR_SCHEMA)


def user_of(history: Sequence[str]) -> str:
    """A name for the user behind a history: the files have none."""
    return hashlib.sha256("\x1f".join(history).encode()).hexdigest()[:16]


def _list_items(rows: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Every distinct title is an item; it is its own id."""
    titles = pl.Series(sorted(set(_list_titles(rows))), dtype=pl.String)
    missing = [pl.lit(None, ITEM_SCHEMA[name]).alias(name) for name in (BRAND, TOKENS)]
    return pl.DataFrame({ITEM_ID: titles, TITLE: titles}).with_columns(missing)


def _list_titles(rows: Mapping[str, pl.DataFrame]) -> Iterator[str]:
    for frame in rows.values():
        yield from frame[TARGET]
        for column in (HISTORY, NEGATIVES):
            yield from frame[column].explode()
