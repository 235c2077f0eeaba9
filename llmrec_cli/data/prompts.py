"""Prompts: the wordings of both tasks, read from templates and filled with titles."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import pandas as pd
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from llmrec_cli.config.data import ITEM_TASKS, ItemTask
from llmrec_cli.data.catalog import has_tokens
from llmrec_cli.data.schema import (
    INTERACTION_FIELDS,
    ITEM_FIELDS,
    ITEM_ID,
    SHOWN_FIELDS,
    TITLE,
)
from llmrec_cli.errors import DataError, RecipeError
from llmrec_cli.utils.toml import parse

# Shared code of templates: placeholders, titles without line breaks, and the frame of a chat.


_PLACEHOLDER: Final = re.compile(r"\{(\w*)\}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

Frame = Callable[[str, Sequence[str]], list[str]]
"""(system turn, user turn cut where titles stand) -> the pieces of the whole prompt, cut there."""


def expect_placeholders(text: str, names: Sequence[str]) -> str:
    """``text`` if it has each of ``names`` in braces once, in this order, and no other.

    Raises:
        ValueError: it has not; says what was expected.
    """
    if _PLACEHOLDER.findall(text) != list(names):
        listed = ", then one ".join(f"{{{name}}}" for name in names)
        raise ValueError(f"expected one {listed}, and no other name in braces")
    return text


def count_placeholders(text: str) -> list[str]:
    """The names in braces, sorted."""
    return sorted(_PLACEHOLDER.findall(text))


def one_line(title: str) -> str:
    """A title with line breaks and control characters as spaces: it cannot leave its line."""
    return title if title.isprintable() else _CONTROL.sub(" ", title)


# The rank-pair task in words: a history, two candidates, and which of them is liked more.
#
# DMPO's released files (arXiv:2405.16127, docs/data.md) consist of this text. It is rendered and
# parsed again, byte for byte.


_PLACEHOLDERS: Final = {
    "history": ("history",),
    "question": ("first", "second"),
    "answer": ("first", "second"),
    "item": ("title",),
}


class RankWording(BaseModel):
    """The keys of a template file's ``[rank]`` table."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    history: str = Field(description="text before the question, with one {history}")
    empty: str = Field(
        min_length=1, description="text before the question for a user without a history"
    )
    question: str = Field(
        description="the question at the end of the prompt, with one {first} and one {second}"
    )
    item: str = Field(default=" <Title:{title}> ", description="one item, with one {title}")
    separator: str = Field(default="", description="text between two items of the history")
    answer: str = Field(
        default="{first}, {second}",
        description="the answer; {first} is the liked item, {second} the other one",
    )
    system: str = Field(
        default="", description="the system turn where the prompt is a chat; empty: no such turn"
    )

    @field_validator("history", "question", "answer", "item")
    @classmethod
    def _placeholders(cls, text: str, info: Any) -> str:
        return expect_placeholders(text, _PLACEHOLDERS[info.field_name])


class Question(NamedTuple):
    """What a prompt of the task shows, as titles."""

    history: tuple[str, ...]  # oldest first
    first: str
    second: str


@dataclass(frozen=True)
class RankTemplate:
    """A wording, taken apart at its placeholders."""

    head: str  # before the history
    empty: str  # instead of head and history
    question: tuple[str, str, str]  # before, between and after the candidates
    answer: tuple[str, str, str]  # before, between and after the answer's titles
    item: tuple[str, str]  # before and after a title
    separator: str
    history_end: str  # between the history and the question
    system: str = ""  # of a chat
    whole: bool = False  # begins and ends as the model's own prompts do: nothing is added

    def render(self, question: Question) -> str:
        """The prompt; the answer follows at once."""
        items = self.separator.join(map(self._item, question.history))
        told = f"{self.head}{items}{self.history_end}" if question.history else self.empty
        before, between, after = self.question
        first, second = self._item(question.first), self._item(question.second)
        return f"{told}{before}{first}{between}{second}{after}"

    def render_history(self, history: Sequence[str]) -> str:
        """The prompt of a history of titles, with nothing for candidates."""
        return self.render(Question(tuple(history), "", ""))

    def render_answer(self, liked: str, other: str) -> str:
        """The answer that puts ``liked`` first."""
        before, between, after = self.answer
        return f"{before}{self._item(liked)}{between}{self._item(other)}{after}"

    def as_chat(self, frame: Frame) -> RankTemplate:
        """The wording as the user turn of a chat."""
        opening, *rest = self.question
        head, *_, end = frame(self.system, [self.head, self.history_end + opening, *rest])
        empty = frame(self.system, [self.empty + opening, *rest])[0].removesuffix(opening)
        question = (opening, rest[0], end)
        return replace(self, head=head, empty=empty, question=question, whole=True)

    def map_words(self, change: Callable[[str], str]) -> RankTemplate:
        """The same template, with ``change`` made to every piece of its wording."""
        before, between, after = map(change, self.question)
        first, then, last = map(change, self.answer)
        opening, closing = map(change, self.item)
        return replace(
            self,
            head=change(self.head),
            empty=change(self.empty),
            question=(before, between, after),
            answer=(first, then, last),
            item=(opening, closing),
            separator=change(self.separator),
            history_end=change(self.history_end),
        )

    def list_words(self) -> list[str]:
        """Every piece of the wording."""
        pieces = [self.head, self.empty, self.separator, self.history_end]
        return [*pieces, *self.question, *self.answer, *self.item]

    def parse(self, prompt: str) -> Question | None:
        """The inverse of ``render``; None where a text is not of this wording, or ambiguous."""
        opening, closing = self.item
        before, between, after = self.question
        start, end = self.head + opening, closing + after
        if not (prompt.startswith(start) and prompt.endswith(end)):
            return None
        inside = prompt[len(start) : -len(end) or None]
        told, *asked = inside.split(closing + self.history_end + before + opening)
        if len(asked) != 1:
            return None
        candidates = asked[0].split(closing + between + opening)
        if len(candidates) != 2:
            return None
        titles = told.split(closing + self.separator + opening)
        return Question(tuple(titles), *candidates)

    def parse_answer(self, answer: str) -> tuple[str, str] | None:
        """The two titles of an answer; None where it is not of this wording, or ambiguous."""
        opening, closing = self.item
        before, between, after = self.answer
        start, end = before + opening, closing + after
        if not (answer.startswith(start) and answer.endswith(end)):
            return None
        titles = answer[len(start) : -len(end) or None].split(closing + between + opening)
        return (titles[0], titles[1]) if len(titles) == 2 else None

    def _item(self, title: str) -> str:
        return self.item[0] + one_line(title) + self.item[1]


def take_apart(wording: RankWording) -> RankTemplate:
    """The template of a wording."""
    head, history_end = wording.history.split("{history}")
    opening, closing = wording.item.split("{title}")
    return RankTemplate(
        head=head,
        empty=wording.empty,
        question=_split_around(wording.question),
        answer=_split_around(wording.answer),
        item=(opening, closing),
        separator=wording.separator,
        history_end=history_end,
        system=wording.system,
    )


def _split_around(text: str) -> tuple[str, str, str]:
    before, rest = text.split("{first}")
    between, after = rest.split("{second}")
    return before, between, after


# Prompts: a history of titles becomes text.  The wording is data, one TOML file per domain.
#
# A template file has the keys of ``Wording``. Titles are inserted unchanged; nothing in a title is
# read as a placeholder. Prompt and response are tokenized separately (docs/methods), so a prompt
# ends where the response begins. Semantic IDs are inserted as tokens (``training.rows``).


SEQUENCE: Final = "sequence"
"""The template without any text: the engine concatenates the items' own tokens."""

ALPACA: Final = """\
Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Input:
{history}

### Response:
"""

_SHIPPED: Final = files("llmrec_cli.data") / "templates"
_MAX_BYTES: Final = 1 << 16
_AT_ONCE: Final = 8  # items of a history that is rendered to be checked


class ChatWording(BaseModel):
    """The keys of a template file's ``[chat]`` table: what the turns of a chat say."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    system: str = Field(
        default="{instruction}",
        description="the system turn, with at most one {instruction}; empty: no such turn",
    )
    user: str = Field(
        default="{history}",
        description="the user turn, with one {history}, and one {instruction} where system has "
        "none",
    )

    @model_validator(mode="after")
    def _placeholders(self) -> ChatWording:
        if count_placeholders(self.user).count("history") != 1 or count_placeholders(
            self.system + self.user
        ) != ["history", "instruction"]:
            raise ValueError(
                "expected one {history} in user, one {instruction} in system or user, and no other "
                "name in braces"
            )
        return self


class FieldsWording(BaseModel):
    """The keys of a template file's ``[fields]`` table: the wording of what an item has.

    A field that an item, or the user's interaction with it, lacks is left out with its wording.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    brand: str = Field(default=" by {brand}", description="with one {brand}")
    category: str = Field(default=", {category}", description="with one {category}")
    price: str = Field(default=", {price}", description="with one {price}")
    description: str = Field(default=": {description}", description="with one {description}")
    rating: str = Field(default=" (rated {rating})", description="with one {rating}")
    gap: str = Field(default=" {gap}", description="with one {gap}, such as `5 days later`")
    description_tokens: int = Field(
        default=32,
        ge=1,
        description="most tokens of a description, without its wording; it is cut behind a token",
    )

    @field_validator(*SHOWN_FIELDS)
    @classmethod
    def _placeholders(cls, text: str, info: Any) -> str:
        return expect_placeholders(text, [info.field_name])


class ItemTasksWording(BaseModel):
    """The keys of a template file's ``[item_tasks]`` table: what is asked of a single item.

    An instruction takes the place of the recommendation's, and what it speaks of that of the
    history.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    title_to_id: str = Field(
        default="Given the title of an item, please name the item.",
        min_length=1,
        description="the instruction of a row that shows a title and asks for the ID",
    )
    id_to_title: str = Field(
        default="Given an item, please tell its title.",
        min_length=1,
        description="the instruction of a row that shows an ID and asks for the title",
    )
    description_to_id: str = Field(
        default="Given the description of an item, please name the item.",
        min_length=1,
        description="the instruction of a row that shows a description and asks for the ID",
    )
    description_tokens: int = Field(
        default=128,
        ge=8,
        description="most tokens of a description that is shown alone; it is cut behind a token",
    )


class Wording(BaseModel):
    """The keys of a template file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    instruction: str = Field(min_length=1, description="the instruction to the model")
    history: str = Field(description="the sentence that lists the history, with one {history}")
    empty: str = Field(min_length=1, description="the sentence for a user without a history")
    item: str = Field(
        default='"{title}"',
        description="the wording of one item: {title}, and what else it shows of data.fields; a "
        "semantic ID stands bare, and these fields behind it",
    )
    separator: str = Field(default=", ", min_length=1, description="text between two items")
    layout: str = Field(
        default=ALPACA, description="the whole prompt, with one {instruction} and one {history}"
    )
    rank: RankWording | None = Field(
        default=None, description="a table: the wording of the rank-pair task"
    )
    chat: ChatWording = Field(
        default=ChatWording(), description="a table: the turns of a prompt that is a chat"
    )
    fields: FieldsWording = Field(
        default=FieldsWording(),
        description="a table: the wording of fields of an item, and of a user's interaction",
    )
    item_tasks: ItemTasksWording = Field(
        default=ItemTasksWording(),
        description="a table: the instructions of rows that teach what semantic IDs mean",
    )

    @field_validator("item")
    @classmethod
    def _item_placeholders(cls, text: str) -> str:
        names = _PLACEHOLDER.findall(text)
        once = len(set(names)) == len(names)
        if TITLE not in names or not once or not {*names} <= {TITLE, *SHOWN_FIELDS}:
            fields = ", ".join(f"{{{name}}}" for name in SHOWN_FIELDS)
            raise ValueError(
                f"expected one {{title}}, at most one each of {fields}, and no other name in braces"
            )
        return text

    @field_validator("fields")
    @classmethod
    def _are_shown(cls, fields: FieldsWording, info: Any) -> FieldsWording:
        shown = _PLACEHOLDER.findall(info.data.get("item", ""))
        for key in sorted(fields.model_fields_set) if "item" in info.data else ():
            name = key.partition("_")[0]  # description_tokens
            if name not in shown:
                raise ValueError(f"{key} is set, and item has no {{{name}}}: expected it there")
        return fields

    @field_validator("history", "layout")
    @classmethod
    def _placeholders(cls, text: str, info: Any) -> str:
        wanted = {"history": ["history"], "layout": ["history", "instruction"]}
        expected = wanted[info.field_name]
        if count_placeholders(text) != expected:
            listed = " and one ".join(f"{{{name}}}" for name in reversed(expected))
            raise ValueError(f"expected one {listed}, and no other name in braces")
        return text


class Turns(NamedTuple):
    """What the turns of a chat say: the wording without its layout."""

    system: str  # empty: no such turn
    head: str  # the user's turn before the first item of a history
    tail: str  # behind the last one
    no_history: str  # the user's turn without a history


class ItemTaskWords(NamedTuple):
    """The words around what a row of an item task shows."""

    head: str
    tail: str
    turns: tuple[str, str, str]  # of a chat: the system's turn, and the user's around it


class FieldWords(NamedTuple):
    """Where an item's wording shows one of its values, and the words around it."""

    name: str  # TITLE, or one of SHOWN_FIELDS
    head: str = ""
    tail: str = ""

    def render(self, values: Mapping[str, str]) -> str:
        """The value on one line, in its words; nothing where there is none."""
        value = values.get(self.name)
        return "" if value is None else self.head + one_line(value) + self.tail


ItemWording = tuple[str | FieldWords, ...]
"""The words and values of an item, in turn."""


@dataclass(frozen=True)
class Template:
    """A wording, taken apart at its placeholders: rendering only joins strings."""

    name: str
    head: str  # everything before the history's first item; the same for all users
    tail: str  # everything after its last item
    no_history: str  # the whole prompt of a user without a history
    item: ItemWording
    separator: str
    turns: Turns
    own_layout: bool  # the file has a layout of its own, which a chat does without
    rank: RankTemplate | None = None  # of the rank-pair task
    whole: bool = False  # begins and ends as the model's own prompts do: nothing is added
    description_tokens: int = 0  # most of a description
    item_tasks: Mapping[ItemTask, ItemTaskWords] = field(default_factory=dict)
    item_description_tokens: int = 0  # most of a description that is shown alone

    @property
    def system(self) -> str:
        """The text of a chat's system turn."""
        return self.turns.system

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that an item shows besides its title, in the order of its wording."""
        return tuple(
            part.name for part in self.item if isinstance(part, FieldWords) and part.name != TITLE
        )

    @property
    def item_fields(self) -> tuple[str, ...]:
        """Those of ``fields`` that are the item's own, whoever has it."""
        return tuple(name for name in self.fields if name in ITEM_FIELDS)

    @property
    def interaction_fields(self) -> tuple[str, ...]:
        """Those of ``fields`` that belong to a user's interaction with the item."""
        return tuple(name for name in self.fields if name in INTERACTION_FIELDS)

    def without_fields(self) -> Template:
        """The same wording of titles alone."""
        fields = self.fields
        kept = (p for p in self.item if isinstance(p, str) or p.name not in fields)
        return replace(self, item=tuple(kept))

    def as_chat(self, frame: Frame) -> Template:
        """The wording as turns of a chat, without its layout."""
        system, *user, no_history = self.turns
        head, tail = frame(system, user)
        (alone,) = frame(system, [no_history])

        def frame_task(words: ItemTaskWords) -> ItemTaskWords:
            own_system, *own_user = words.turns
            own_head, own_tail = frame(own_system, own_user)
            return ItemTaskWords(own_head, own_tail, words.turns)

        return replace(
            self,
            head=head,
            tail=tail,
            no_history=alone,
            whole=True,
            item_tasks={task: frame_task(words) for task, words in self.item_tasks.items()},
        )

    def map_words(self, change: Callable[[str], str]) -> Template:
        """The same template, with ``change`` made to every piece of its wording."""
        return replace(
            self,
            head=change(self.head),
            tail=change(self.tail),
            no_history=change(self.no_history),
            item=tuple(
                change(part)
                if isinstance(part, str)
                else FieldWords(part.name, change(part.head), change(part.tail))
                for part in self.item
            ),
            separator=change(self.separator),
            item_tasks={
                task: ItemTaskWords(change(words.head), change(words.tail), words.turns)
                for task, words in self.item_tasks.items()
            },
        )

    def list_words(self) -> list[str]:
        """Every piece of the wording, apart from the item tasks'."""
        items = [
            word
            for part in self.item
            for word in ([part] if isinstance(part, str) else [part.head, part.tail])
        ]
        return [self.head, self.tail, self.no_history, *items, self.separator]

    def render(self, titles: Sequence[str]) -> str:
        """The prompt for a history of titles, oldest first; the response follows at once."""
        return self.join(list(map(self.render_item, titles)))

    def join(self, items: Sequence[str]) -> str:
        """The prompt for a history of rendered items, oldest first."""
        return self.head + self.separator.join(items) + self.tail if items else self.no_history

    def render_item(self, title: str, values: Mapping[str, str] = MappingProxyType({})) -> str:
        """One item as it stands in histories, e.g. ``"The Hobbit" by Allen & Unwin``.

        Line breaks and control characters become spaces: nothing can leave its line.

        Args:
            values: fields of the item and of the user's interaction with it; one that is absent
                is left out with its wording.
        """
        shown = {**values, TITLE: title}
        return "".join(part if isinstance(part, str) else part.render(shown) for part in self.item)

    def render_fields(self, values: Mapping[str, str]) -> str:
        """The fields of an item in their wording, as they stand behind a semantic ID."""
        parts = (part for part in self.item if isinstance(part, FieldWords))
        return "".join(part.render(values) for part in parts if part.name != TITLE)


def template_names() -> list[str]:
    """Names of the shipped templates, sorted; ``sequence`` is not among them."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in _SHIPPED.iterdir()
        if entry.name.endswith(".toml")
    )


def load_template(name_or_path: str, locate: Callable[[str], Path]) -> Template:
    """The template of a shipped name, or of a TOML file.

    Args:
        name_or_path: a name of ``template_names()``, or a path, which ends in ``.toml``.
        locate: finds a recipe's path on this machine.

    Raises:
        RecipeError: no such template, or a file that is none; the message names file and key.
    """
    if name_or_path.endswith(".toml"):
        path = locate(name_or_path)
        return parse_template(_read_template(path), name=path.stem, where=str(path))
    if name_or_path not in template_names():
        close = difflib.get_close_matches(name_or_path, template_names(), n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise RecipeError(
            f'[prompt] template = "{name_or_path}": expected "{SEQUENCE}", one of '
            f"{', '.join(template_names())}, or the path of a .toml file.{hint}"
        )
    file = f"{name_or_path}.toml"
    return parse_template((_SHIPPED / file).read_bytes(), name=name_or_path, where=file)


def open_template(name_or_path: str) -> Template | None:
    """The template of ``prompt.template``; None: prompts have no words.

    Raises:
        RecipeError: as ``load_template``.
    """
    return None if name_or_path == SEQUENCE else load_template(name_or_path, Path)


def load_rank_template(name_or_path: str, locate: Callable[[str], Path]) -> RankTemplate:
    """The rank-pair wording of a shipped name, or of a TOML file.

    Raises:
        RecipeError: no such template, a file that is none, or one without that wording.
    """
    found = None if name_or_path == SEQUENCE else load_template(name_or_path, locate).rank
    if found is None:
        raise RecipeError(
            f'[prompt] template = "{name_or_path}": has no [rank] wording, which task = '
            f'"rank-pair" needs; expected one of {", ".join(template_names())}, or a .toml file '
            "with a [rank] table"
        )
    return found


def require_titles(
    name: str, render: Callable[[Sequence[str]], str], items: pd.DataFrame
) -> list[str]:
    """The titles of a catalogue, each of which a rendered history shows.

    Args:
        name: of the template, for the message.
        render: makes a prompt of the titles of a history.
        items: ITEM_ID and TITLE are read.

    Raises:
        DataError: a history lacks one of its items, so that no model would see it.
    """
    titles = [title if isinstance(title, str) else "" for title in items[TITLE]]
    blank = render([""])
    for start in range(0, len(titles), _AT_ONCE):
        history = titles[start : start + _AT_ONCE]
        prompt = render(history)
        for at, title in enumerate(map(one_line, history), start):
            if not title.strip() or prompt.count(title) <= blank.count(title):
                raise DataError(
                    f'[prompt] template = "{name}": a history with the item '
                    f"{items[ITEM_ID].iloc[at]!r} (title {titles[at]!r}) does not show it: "
                    "expected every item of a history in its prompt; give the item a title "
                    "(data.metadata, data.untitled) or leave it out"
                )
    return titles


def require_prompts(name: str, items: pd.DataFrame, *, shows_candidates: bool) -> None:
    """Refuse prompts that would not show every item of a history, as far as titles make them.

    (Semantic IDs and bare items are tokens: ``training.rows`` looks at them.)

    Args:
        name: of the template, or its path.
        shows_candidates: prompts are of the template's ``[rank]`` wording.

    Raises:
        RecipeError: no such template.
        DataError: as ``require_titles``.
    """
    if shows_candidates:
        require_titles(name, load_rank_template(name, Path).render_history, items)
    elif name != SEQUENCE:
        template = load_template(name, Path)
        if not has_tokens(items):
            require_titles(name, template.render, items)


def require_fields(template: Template | None, prepared: Sequence[str], table: str) -> None:
    """Refuse a template that shows fields which the data do not have.

    Args:
        template: None shows none.
        prepared: ``data.fields``.
        table: of the recipe where these stand, such as ``data``.

    Raises:
        RecipeError: names the fields, and the key to set.
    """
    shown = template.fields if template else ()
    missing = [f"{{{name}}}" for name in shown if name not in prepared]
    if template is not None and missing:
        wanted = ", ".join(f'"{name}"' for name in SHOWN_FIELDS if name in {*shown, *prepared})
        raise RecipeError(
            f"{template.name}: its item shows {' and '.join(missing)}, which {table}.fields does "
            f"not name: set {table}.fields = [{wanted}], and prepare the data with it"
        )


def find_fields(template: Template, items: pd.DataFrame) -> list[dict[str, str]]:
    """What each item has of the item fields that a template shows.

    Args:
        items: the catalogue, with a column for each of these fields.
    """
    names = template.item_fields
    columns = [items[name].tolist() for name in names]
    return [
        {name: v for name, v in zip(names, values, strict=True) if isinstance(v, str)}
        for values in (zip(*columns, strict=True) if columns else [()] * len(items))
    ]


def parse_template(content: bytes, name: str, where: str) -> Template:
    """The template in the bytes of a TOML file; ``where`` names the file in messages.

    Raises:
        RecipeError: not UTF-8, not TOML, or keys missing, unknown or unusable (all at once).
    """
    try:
        table = parse(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{where}: byte {error.start} is not UTF-8, expected TOML") from None
    except ValueError as error:
        raise RecipeError(f"{where}: not valid TOML: {error}") from None
    try:
        wording = Wording.model_validate(table)
    except ValidationError as error:
        raise RecipeError(f"{where}: " + "; ".join(_list_problems(error))) from None
    return _take_apart(name, wording)


def _take_apart(name: str, wording: Wording) -> Template:
    layout_head, layout_tail = wording.layout.split("{history}")
    history_head, history_tail = wording.history.split("{history}")
    user_head, user_tail = wording.chat.user.split("{history}")

    def instruct(part: str) -> str:
        return part.replace("{instruction}", wording.instruction)

    turns = Turns(
        system=instruct(wording.chat.system),
        head=instruct(user_head) + history_head,
        tail=history_tail + instruct(user_tail),
        no_history=instruct(user_head) + wording.empty + instruct(user_tail),
    )
    return Template(
        name=name,
        head=instruct(layout_head) + history_head,
        tail=history_tail + instruct(layout_tail),
        no_history=instruct(layout_head) + wording.empty + instruct(layout_tail),
        item=_take_item_apart(wording),
        separator=wording.separator,
        turns=turns,
        own_layout="layout" in wording.model_fields_set,
        rank=take_apart(wording.rank) if wording.rank else None,
        description_tokens=wording.fields.description_tokens,
        item_tasks={task: _frame_item_task(wording, task) for task in ITEM_TASKS},
        item_description_tokens=wording.item_tasks.description_tokens,
    )


def _frame_item_task(wording: Wording, task: ItemTask) -> ItemTaskWords:
    """Layout and turns of the recommendation, with the task's instruction."""
    instruction = getattr(wording.item_tasks, task)
    head, tail, system, *user = (
        part.replace("{instruction}", instruction)
        for part in (
            *wording.layout.split("{history}"),
            wording.chat.system,
            *wording.chat.user.split("{history}"),
        )
    )
    return ItemTaskWords(head, tail, (system, user[0], user[1]))


def _take_item_apart(wording: Wording) -> ItemWording:
    """Its words, empty ones left out, and its values."""
    parts: list[str | FieldWords] = []
    for at, piece in enumerate(_PLACEHOLDER.split(wording.item)):  # words, name, words, ...
        if at % 2 == 0:
            parts += [piece] if piece else []
        elif piece == TITLE:
            parts.append(FieldWords(TITLE))
        else:
            head, tail = getattr(wording.fields, piece).split(f"{{{piece}}}")
            parts.append(FieldWords(piece, head, tail))
    return tuple(parts)


def _read_template(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RecipeError(f"{path}: larger than {_MAX_BYTES} bytes, expected a prompt template")
        return path.read_bytes()
    except OSError as error:
        raise RecipeError(
            f"{path}: cannot be read as a prompt template: {error.strerror}"
        ) from None


_TABLES: Final[dict[str, type[BaseModel]]] = {
    "rank": RankWording,
    "chat": ChatWording,
    "fields": FieldsWording,
    "item_tasks": ItemTasksWording,
}


def _list_problems(error: ValidationError) -> Iterator[str]:
    """One phrase per problem: key, value, what was expected."""
    for problem in error.errors(include_url=False, include_context=False):
        *table, name = map(str, problem["loc"])
        fields = _TABLES[table[0]].model_fields if table else Wording.model_fields
        key, field = ".".join([*table, name]), fields.get(name)
        if field is None:
            close = difflib.get_close_matches(name, fields, n=1)
            yield f"{key}: unknown key." + (f" Did you mean {close[0]}?" if close else "")
        elif problem["type"] == "missing":
            yield f"{key}: missing ({field.description})"
        else:
            reason = problem["msg"].removeprefix("Value error, ").replace("Input should", "must")
            yield f"{key} = {_show_value(problem['input'])}: {reason} ({field.description})"


def _show_value(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
