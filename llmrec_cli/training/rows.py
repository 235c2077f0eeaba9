"""Rows: histories and targets as token ids, and the encoder that makes prompts of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from itertools import chain, repeat
from typing import Any, Final, NamedTuple, Protocol, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llmrec_cli.data.catalog import has_tokens
from llmrec_cli.data.histories import (
    NOTHING,
    InteractionHistory,
    InteractionWords,
    read_histories,
)
from llmrec_cli.data.prompts import SEQUENCE, Template, find_fields, require_titles
from llmrec_cli.data.schema import DESCRIPTION, HISTORY, ITEM_ID, TARGET, TITLE, TOKENS, USER
from llmrec_cli.errors import DataError
from llmrec_cli.models.base import Histories
from llmrec_cli.models.tokenizer import Codec

# Many token sequences in two arrays, which processes can map without copies.


Tokens = NDArray[np.int32]


@dataclass(frozen=True, eq=False, slots=True)
class Ragged(Sequence[Tokens]):
    """Sequence s is ``token_T[start_S1[s] : start_S1[s + 1]]``; what comes out is a view."""

    token_T: Tokens
    start_S1: NDArray[np.int64]

    @classmethod
    def of(cls, sequences: Iterable[Sequence[int] | Tokens]) -> Ragged:
        """Copied into two arrays; itself where it is one already."""
        if isinstance(sequences, Ragged):
            return sequences
        kept = list(sequences)
        start_S1 = np.cumsum([0, *map(len, kept)])
        tokens = np.fromiter(chain.from_iterable(kept), np.int32, int(start_S1[-1]))
        return cls(tokens, start_S1)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What ``from_arrays`` takes."""
        return {"token_T": self.token_T, "start_S1": self.start_S1}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Ragged:
        return cls(arrays["token_T"], arrays["start_S1"])

    def __len__(self) -> int:
        return len(self.start_S1) - 1

    @overload
    def __getitem__(self, at: int) -> Tokens: ...
    @overload
    def __getitem__(self, at: slice) -> list[Tokens]: ...
    def __getitem__(self, at: int | slice) -> Tokens | list[Tokens]:
        if isinstance(at, slice):
            return [self[s] for s in range(*at.indices(len(self)))]
        s = range(len(self))[at]
        return self.token_T[self.start_S1[s] : self.start_S1[s + 1]]


# Training and decoding rows: a prompt and the catalogue items that follow it.
#
# A row is small: prompt ids and target items.  Response tokens and trie nodes follow from the item,
# and no mask is ever stored.  A *window* has one target.  Two kinds of rows hold many windows of a
# user and equal them (``as_windows``) in loss and gradient: in a *sequence* each target sees
# everything before it in one causal pass; in a *user row* every target has the prompt that a
# template makes for it, and what the prompts begin with is computed once.  A *pair row* belongs to
# the rank-pair task, whose answers are texts rather than items.  A *text row* asks for a title.


IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float64]
_AT_ONCE = 8  # items of a history that is encoded to be checked


@dataclass(frozen=True)
class Row:
    """``prompt`` token ids, then the items of ``targets`` (catalogue indices) in turn.

    With ``prompts``, each target follows its own.  Negatives are alternatives to a target: each
    follows what stands before that target.
    """

    prompt: IntArray
    targets: tuple[int, ...]
    history: tuple[int, ...] = ()  # items that the prompt tells of, oldest first
    user: int = -1  # dense user index
    number: int = -1  # place among the training rows
    prompts: tuple[IntArray, ...] = ()  # of each target of a user row, the first is ``prompt``
    negatives: tuple[tuple[int, ...], ...] = ()  # of each target, equally many; empty: none
    rollouts: tuple[tuple[int, ...], ...] = ()  # in place of each target, equally many; or none
    reference: FloatArray | None = None  # log pi_ref of each answer: a target, then its negatives
    left_out: tuple[int, ...] = ()  # history items not seen, of each target that misses any


@dataclass(frozen=True)
class PairRow:
    """A user of the rank-pair task: one prompt per negative, each with two answers as token ids.

    The chosen answer lists the two candidates liked first, the rejected one the other way round.
    """

    prompts: tuple[IntArray, ...]
    answers: tuple[tuple[IntArray, IntArray], ...]  # (chosen, rejected) after each prompt, with EOS
    user: int = -1
    number: int = -1
    reference: FloatArray | None = None  # log pi_ref: of all chosen answers and rejected, by pair
    left_out: tuple[int, ...] = ()  # history items not shown, of each prompt that misses any


@dataclass(frozen=True)
class TextRow:
    """A prompt and an answer that is a text rather than an item."""

    prompt: IntArray
    answer: IntArray  # with EOS
    number: int = -1


ComparedRow = Row | PairRow  # what a preference method compares answers of
AnyRow = ComparedRow | TextRow


def encode_catalogue(items: pd.DataFrame, codec: Codec) -> list[list[int]]:
    """Token sequence of every item, ending in EOS.

    A semantic ID is its own tokens; a title is encoded in double quotes (BIGRec, MSL), apart from
    any prompt so that no byte-pair merge crosses the boundary.

    Raises:
        DataError: an item has no token (quotes do not count), or contains EOS.
    """
    if has_tokens(items):
        vocabulary, empty = codec.tokenizer.get_vocab(), list[int]()
        sequences = [[vocabulary[token] for token in tokens] for tokens in items[TOKENS]]
    else:
        *sequences, empty = codec.encode([*(f'"{title}"' for title in items[TITLE]), '""'])
    for index, tokens in enumerate(sequences):
        if tokens in ([], empty) or codec.eos in tokens:
            what = "contains EOS" if codec.eos in tokens else "has no tokens"
            name = items.iloc[index][TITLE]
            raise DataError(
                f"item {items.iloc[index]['item_id']!r} ({name!r}) {what} in this tokenizer; "
                "leave the item out, or choose another backbone"
            )
    return [[*tokens, codec.eos] for tokens in sequences]


class Prompts(NamedTuple):
    """Prompts of some histories, and what they leave out."""

    ids: Sequence[IntArray]
    left_out_N: IntArray  # of each prompt: history items, the oldest ones, without room in it


class Encoder(Protocol):
    """Turns histories into prompts."""

    def encode_counted(self, histories: Histories) -> Prompts:
        """The prompt of each history."""
        ...


LEFT_OUT_KEYS: Final = (
    "rows",
    "rows that see a part of their history",
    "history items",
    "history items left out",
)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How much of the histories the rows of a split do not see."""

    rows: int  # targets
    cut_rows: int  # those that do not see their whole history
    items: int  # history items of all of them
    left_out: int  # those that are not seen

    def facts(self) -> dict[str, int]:
        """For manifests and reports."""
        return dict(zip(LEFT_OUT_KEYS, astuple(self), strict=True))

    def line(self, why: str) -> str | None:
        """What a person has to know; None: every row sees its whole history.

        Args:
            why: the setting that leaves no room.
        """
        if not self.left_out:
            return None
        seen, whole = self.items - self.left_out, self.items
        return (
            f"{self.cut_rows:,} of {self.rows:,} rows do not see their whole history: "
            f"{self.left_out:,} of {whole:,} history items are left out, the oldest first ({why}); "
            f"a row sees {seen / self.rows:.1f} of {whole / self.rows:.1f} items on average"
        )


def count_left_out(lengths: Iterable[int], left_out: Iterable[int]) -> LeftOut:
    """Count over targets.

    Args:
        lengths: items of the whole history of each target.
        left_out: those of them that it does not see; targets that see all may be missing.
    """
    items, lost = list(lengths), [n for n in left_out if n]
    return LeftOut(len(items), len(lost), sum(items), sum(lost))


def count_rows_left_out(frame: pd.DataFrame, rows: Sequence[Row]) -> LeftOut:
    """What the rows made of a split (by any of the functions below) leave out of its histories."""
    return count_left_out(map(len, frame[HISTORY]), (n for row in rows for n in row.left_out))


class _Prompt(NamedTuple):
    """A prompt, and how many items of its history it shows: the last ones."""

    ids: IntArray
    n_items: int


class _Words(NamedTuple):
    """Token ids of what stands around the semantic IDs of a text prompt."""

    head: IntArray
    separator: IntArray
    tail: IntArray
    no_history: IntArray  # the whole prompt
    fields: Sequence[IntArray]  # of each item, behind its ID; empty: the template shows none


@dataclass(frozen=True, slots=True)
class ShownFields:
    """How many items have the fields that a template shows."""

    items: int
    lacking: Mapping[str, int]  # by field: items without it
    described: int = 0  # items with a description
    cut: int = 0  # of these, whose description is cut

    def list_lines(self, name: str, budget: int) -> list[str]:
        """What a person has to know, a line each.

        Args:
            name: of the template's file.
            budget: most tokens of a description.
        """
        lines = []
        if lacks := {field: n for field, n in self.lacking.items() if n}:
            listed = ", ".join(f"{field} {n:,}" for field, n in lacks.items())
            lines.append(
                f"{name}: items without a field, whose words are left out there: {listed} of "
                f"{self.items:,}"
            )
        if self.cut:
            lines.append(
                f"{name}: {self.cut:,} of {self.described:,} descriptions are cut to {budget} "
                "tokens (fields.description_tokens)"
            )
        return lines


def _read_fields(
    template: Template, codec: Codec, items: pd.DataFrame
) -> tuple[list[dict[str, str]], ShownFields]:
    """What each item shows besides its title, its description cut to the template's budget."""
    values = find_fields(template, items)
    if not template.item_fields:
        return values, ShownFields(len(items), {})
    described = [value for value in values if DESCRIPTION in value]
    whole = [value[DESCRIPTION] for value in described]
    cut = 0
    for value, text in zip(described, codec.cut(whole, template.description_tokens), strict=True):
        cut += text != value[DESCRIPTION]
        value[DESCRIPTION] = text
        if not text:  # its first character has more tokens
            del value[DESCRIPTION]
    lacking = {name: sum(name not in value for value in values) for name in template.item_fields}
    return values, ShownFields(len(items), lacking, len(described), cut)


class PromptEncoder:
    """Histories to prompt ids, for a text template or for bare item sequences.

    In a text prompt, an item that is known by its semantic ID is its tokens, as in the response
    (LC-Rec, arXiv:2311.09049); any other item is its title.  Behind it stand the fields that the
    template shows.  What a history does not know of its interactions is left out.  A prompt that
    is too long loses its oldest items whole, with their fields.

    Args:
        max_tokens: longest prompt.
        why: what sets that, for messages; None: the recipe.
    """

    def __init__(
        self,
        template: Template | None,
        codec: Codec,
        items: pd.DataFrame,
        catalogue: Iterable[Sequence[int] | IntArray],
        max_tokens: int,
        why: str | None = None,
    ) -> None:
        self.template = template
        self.marked = template and template.map_words(codec.mark_words)
        self.codec = codec
        self.catalogue = Ragged.of(catalogue)
        self.texts, self.words = list[str](), None  # of each item, where it is known by its title
        self.titles, self.values = list[str](), list[dict[str, str]]()  # what these were made from
        self.fields: ShownFields | None = None
        if template is not None and self.marked is not None:
            self.values, self.fields = _read_fields(template, codec, items)
            if has_tokens(items):
                self.words = _encode_words(self.marked, codec, self.values)
            else:
                self.titles = require_titles(template.name, template.render, items)
                pairs = zip(self.titles, self.values, strict=True)
                self.texts = [self.marked.render_item(title, value) for title, value in pairs]
        self._encode_fields = lru_cache(1 << 14)(self._encode_field_text)
        self.max_tokens = max_tokens
        self.why = why or f"prompt.max_tokens = {max_tokens}"

    def encode(self, histories: Histories) -> Sequence[IntArray]:
        """Prompt ids of each history."""
        return self.encode_counted(histories).ids

    def encode_counted(self, histories: Histories) -> Prompts:
        """Prompt ids of each history, and how many of its items have no room in them."""
        if self.marked is None:
            found = [self._bare(history) for history in histories]
        elif self.words is not None:
            found = [self._around_ids(self.words, history) for history in histories]
        else:
            found = self._texts(self.marked, histories)
        left_out = [len(h) - p.n_items for h, p in zip(histories, found, strict=True)]
        return Prompts([prompt.ids for prompt in found], np.array(left_out, dtype=np.int32))

    def _bare(self, history: Sequence[int]) -> _Prompt:
        room, parts = self.max_tokens - 1, list[IntArray]()
        for item in reversed(history):
            room -= len(self.catalogue[item])
            if room < 0:
                break
            parts.append(self.catalogue[item])
        start = np.array([self.codec.start], dtype=np.int32)
        return _Prompt(np.concatenate([start, *reversed(parts)]), len(parts))

    def _around_ids(self, words: _Words, history: Sequence[int]) -> _Prompt:
        """Semantic IDs between the template's words; each piece is encoded on its own."""
        shown = list(self._show_ids(words, history))
        room, n_items = self.max_tokens - len(words.head) - len(words.tail), 0
        for first, later in reversed(shown):
            if len(first) > room:
                break
            room -= len(words.separator) + len(later)
            n_items += 1
        if n_items:
            (first, _), *others = shown[-n_items:]
            behind = (part for _, later in others for part in (words.separator, later))
            return _Prompt(np.concatenate([words.head, first, *behind, words.tail]), n_items)
        if len(words.no_history) > self.max_tokens:
            raise self._too_long(len(words.no_history))
        return _Prompt(words.no_history, 0)

    def _show_ids(
        self, words: _Words, history: Sequence[int]
    ) -> Iterator[tuple[IntArray, IntArray]]:
        """The semantic ID of each item and its fields: where it is shown first, and elsewhere."""
        for item, said in zip(history, self._list_words(history) or repeat(NOTHING), strict=False):
            later = self.show_id(words, item, said)
            first = later if said.gap is None else self.show_id(words, item, said.without_gap())
            yield first, later

    def show_id(self, words: _Words, item: int, said: InteractionWords = NOTHING) -> IntArray:
        """The semantic ID of an item, and its fields."""
        tokens = self.catalogue[item][:-1]  # without EOS
        if said is not NOTHING and self.marked is not None:
            text = self.marked.render_fields({**self.values[item], **said.values()})
            return np.concatenate([tokens, self._encode_fields(text)])
        return np.concatenate([tokens, words.fields[item]]) if words.fields else tokens

    def _encode_field_text(self, text: str) -> IntArray:
        return np.asarray(self.codec.encode_words([text])[0], np.int32)

    def _show_texts(self, template: Template, history: Sequence[int]) -> list[str]:
        """Each item, known by its title, as it stands in the prompt of exactly this history."""
        words = self._list_words(history)
        if words is None:
            return [self.texts[item] for item in history]
        return [
            template.render_item(self.titles[item], {**self.values[item], **said.values()})
            for item, said in zip(history, words, strict=True)
        ]

    def _list_words(self, history: Sequence[int]) -> list[InteractionWords] | None:
        """What the template shows of each interaction; None: it shows, or is told, nothing."""
        if isinstance(history, InteractionHistory) and self.marked is not None:
            if self.marked.interaction_fields:
                return history.list_words()
        return None

    def measure_items(self) -> IntArray:
        """Tokens of each item as it stands in a history; fields apart, as it stands in answers."""
        lengths: IntArray = np.diff(self.catalogue.start_S1).astype(np.int32)
        if self.marked is None or not self.marked.item_fields:
            return lengths
        if self.words is not None:
            added = map(len, self.words.fields or ())
            return lengths + np.fromiter(added, np.int32, len(lengths))
        return np.array([len(ids) for ids in self.codec.encode_words(self.texts)], dtype=np.int32)

    def _too_long(self, tokens: int) -> DataError:
        return DataError(f"{self.why}: the template alone takes {tokens} tokens in this tokenizer")

    def _texts(self, template: Template, histories: Histories) -> list[_Prompt]:
        shown, prompts = list(histories), dict[int, IntArray]()
        waiting = list(range(len(shown)))
        while waiting:
            texts = [template.join(self._show_texts(template, shown[i])) for i in waiting]
            ids = self.codec.encode_prompts(texts, whole=template.whole)
            too_long = []
            for i, tokens in zip(waiting, ids, strict=True):
                prompts[i] = np.asarray(tokens, dtype=np.int32)
                if len(tokens) > self.max_tokens and len(shown[i]):
                    shown[i] = shown[i][1:]
                    too_long.append(i)
                elif len(tokens) > self.max_tokens:
                    raise self._too_long(len(tokens))
            waiting = too_long
        return [_Prompt(prompts[i], len(history)) for i, history in enumerate(shown)]


def _encode_words(template: Template, codec: Codec, values: Sequence[Mapping[str, str]]) -> _Words:
    """Of a template whose special tokens are marked.

    Args:
        values: the fields of each item.
    """
    beginnings = [template.head, template.no_history]
    head, no_history = codec.encode_prompts(beginnings, whole=template.whole)
    separator, tail = codec.encode_words([template.separator, template.tail])
    texts = [template.render_fields(value) for value in values] if template.item_fields else []
    return _Words(
        head=np.asarray(head, np.int32),
        separator=np.asarray(separator, np.int32),
        tail=np.asarray(tail, np.int32),
        no_history=np.asarray(no_history, np.int32),
        fields=Ragged.of(codec.encode_words(texts)),
    )


def require_histories(encoder: PromptEncoder, items: pd.DataFrame) -> None:
    """Refuse prompts from which a history, or one of its items, is missing.

    (Of titles, ``require_titles`` sees to it before they are tokens.)

    Args:
        items: the catalogue; ITEM_ID is read.

    Raises:
        DataError: names template, item and what was expected.
    """
    name = encoder.template.name if encoder.template else SEQUENCE
    lengths = encoder.measure_items()
    shortest = int(lengths.argmin())
    ids, left_out_N = encoder.encode_counted([[shortest], []])
    if left_out_N[0]:
        raise DataError(
            f'[prompt] template = "{name}", {encoder.why}: no history is left, not even the '
            f"shortest item ({lengths[shortest]} tokens) has room behind the template "
            f"({len(ids[1])}): raise prompt.max_tokens"
        )
    if encoder.texts:
        return
    for start in range(0, len(items), _AT_ONCE):
        history = range(start, min(start + _AT_ONCE, len(items)))
        for item in _missing(encoder, history):
            raise DataError(
                f'[prompt] template = "{name}": a history with the item '
                f"{items[ITEM_ID].iloc[item]!r} lacks it: expected the "
                f"{len(encoder.catalogue[item]) - 1} tokens of its name in the prompt"
            )


def _missing(encoder: PromptEncoder, history: Sequence[int]) -> list[int]:
    """Items of a history that have room in its prompt, or alone in one, and are not there."""
    prompts = encoder.encode_counted([history])
    ids, left_out = prompts.ids[0].tobytes(), int(prompts.left_out_N[0])
    shown = history[left_out:]
    missing = [item for item in shown if encoder.catalogue[item][:-1].tobytes() not in ids]
    alone = history[:left_out] if len(history) > 1 else []
    return [*missing, *(lost for item in alone for lost in _missing(encoder, [item]))]


def window_rows(frame: pd.DataFrame, encoder: Encoder) -> list[Row]:
    """One row per (history, target) of a prepared split."""
    known = read_histories(frame)
    histories = [tuple(int(item) for item in history) for history in known]
    prompts = encoder.encode_counted(known)
    left_out = prompts.left_out_N.tolist()
    columns = zip(prompts.ids, histories, frame[TARGET], frame[USER], left_out, strict=True)
    return [
        Row(
            prompt,
            (int(target),),
            history,
            user=int(user),
            number=number,
            left_out=(lost,) if lost else (),
        )
        for number, (prompt, history, target, user, lost) in enumerate(columns)
    ]


Fits = Callable[[Sequence[int], Sequence[int]], bool]
"""Whether a history (catalogue indices) and the targets behind it fit into one causal pass."""


def sequence_rows(
    frame: pd.DataFrame,
    encoder: Encoder,
    longest: int,
    fits: Fits = lambda history, targets: True,
) -> list[Row]:
    """All targets of a user in as few causal passes as possible.

    A user's windows are chained while each history is the one before plus its target.  A pass holds
    at most ``longest`` + 1 items; where a user has more, the next pass starts with the last
    ``longest // 2`` items as its prompt, so every later target sees between ``longest // 2`` and
    ``longest`` items.  Users with at most ``longest`` + 1 training items lose nothing.  A pass
    that would not fit ends earlier.
    """
    rows: list[Row] = []
    columns = zip(frame[USER], frame[HISTORY], frame[TARGET], strict=True)
    user, seen = None, list[int]()  # all items of the user so far
    start = first = 0  # where the open pass begins, and where its targets begin
    lengths = list[int]()  # of the whole histories of its targets

    def close() -> None:
        if user is not None and first < len(seen):
            history, targets = tuple(seen[start:first]), tuple(seen[first:])
            prompts = encoder.encode_counted([history])
            in_prompt = len(history) - int(prompts.left_out_N[0])
            missed = (whole - in_prompt - at for at, whole in enumerate(lengths))
            rows.append(
                Row(
                    prompts.ids[0],
                    targets,
                    history,
                    user=int(user),
                    number=len(rows),
                    left_out=tuple(n for n in missed if n > 0),
                )
            )
        lengths.clear()

    for row_user, history, target in columns:
        continues = user == row_user and list(seen[len(seen) - len(history) :]) == list(history)
        if not continues:
            close()
            user, seen = row_user, [int(item) for item in history]
            start, first = 0, len(seen)
        elif len(seen) - start > longest or not fits(seen[start:first], [*seen[first:], target]):
            close()
            start, first = max(len(seen) - longest // 2, 0), len(seen)
        seen.append(int(target))
        lengths.append(len(history))
    close()
    return rows


def user_rows(frame: pd.DataFrame, encoder: Encoder) -> list[Row]:
    """All targets of a user in as few rows as possible, each behind the prompt of its window.

    A user's windows are joined while each history is the one before plus its target and at least
    half of the prompt is the one before's.
    """
    rows: list[Row] = []
    for window in window_rows(frame, encoder):
        if rows and _continues(rows[-1], window):
            last = rows[-1]
            prompts = (*(last.prompts or (last.prompt,)), window.prompt)
            targets = (*last.targets, *window.targets)
            left_out = (*last.left_out, *window.left_out)
            rows[-1] = replace(last, targets=targets, prompts=prompts, left_out=left_out)
        else:
            rows.append(replace(window, number=len(rows)))
    return rows


def _continues(row: Row, window: Row) -> bool:
    if row.user != window.user or window.history != (*row.history, *row.targets):
        return False
    last = row.prompts[-1] if row.prompts else row.prompt
    return 2 * shared_tokens(last, window.prompt) >= len(window.prompt)


def shared_tokens(a: IntArray, b: IntArray) -> int:
    """Number of tokens that two sequences both begin with."""
    n = min(len(a), len(b))
    differs = np.flatnonzero(a[:n] != b[:n])
    return int(differs[0]) if len(differs) else n


def build_contexts(
    row: Row, tokens_of: Callable[[int], Sequence[int] | IntArray]
) -> list[IntArray]:
    """What stands before each target: its own prompt, or the row's and the targets before it.

    Args:
        tokens_of: token sequence of an item.
    """
    if row.prompts:
        return list(row.prompts)
    before = [row.prompt]
    for target in row.targets[:-1]:
        before.append(np.concatenate([before[-1], np.asarray(tokens_of(target), dtype=np.int32)]))
    return before


def list_answers(row: Row) -> list[tuple[int, ...]]:
    """Items that are laid out for each target: its rollouts, or the target and its negatives."""
    if row.rollouts:
        return list(row.rollouts)
    negatives = row.negatives or ((),) * len(row.targets)
    return [(target, *others) for target, others in zip(row.targets, negatives, strict=True)]


def as_windows(row: Row, catalogue: Sequence[Sequence[int]] | Ragged) -> list[Row]:
    """The windows that a row stands for (negatives and rollouts included, reference left out)."""
    return [
        replace(
            row,
            prompt=prompt,
            prompts=(),
            targets=row.targets[at : at + 1],
            history=(*row.history, *row.targets[:at]),
            negatives=row.negatives[at : at + 1],
            rollouts=row.rollouts[at : at + 1],
            reference=None,
            left_out=(),
        )
        for at, prompt in enumerate(build_contexts(row, catalogue.__getitem__))
    ]
