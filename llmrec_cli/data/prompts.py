"""Prompts: a history of titles becomes text.  The wording is data, one TOML file per domain.

A template file has the keys of ``Wording``.  Titles are put in as they are: nothing in a title is
ever read as a placeholder.  Prompt and response are tokenized separately (docs/methods), so a
prompt ends where the response begins.  Where items are known by semantic IDs, the engine puts their
tokens between the same words (``engine.rows``).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from llmrec_cli.data.columns import ITEM_ID, TITLE
from llmrec_cli.data.leaves import has_tokens
from llmrec_cli.data.rank_wording import RankTemplate, RankWording, take_apart
from llmrec_cli.data.wording import count_placeholders, one_line
from llmrec_cli.errors import DataError, RecipeError
from llmrec_cli.recipe.toml import parse

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


class Wording(BaseModel):
    """The keys of a template file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    instruction: str = Field(min_length=1, description="what the model is asked to do")
    history: str = Field(description="the sentence that lists the history, with one {history}")
    empty: str = Field(min_length=1, description="the sentence for a user without a history")
    item: str = Field(
        default='"{title}"', description="one title, with one {title}; a semantic ID stands bare"
    )
    separator: str = Field(default=", ", min_length=1, description="text between two items")
    layout: str = Field(
        default=ALPACA, description="the whole prompt, with one {instruction} and one {history}"
    )
    rank: RankWording | None = Field(
        default=None, description="a table: the wording of the rank-pair task"
    )

    @field_validator("history", "item", "layout")
    @classmethod
    def _placeholders(cls, text: str, info: Any) -> str:
        wanted = {"history": ["history"], "item": ["title"], "layout": ["history", "instruction"]}
        expected = wanted[info.field_name]
        if count_placeholders(text) != expected:
            listed = " and one ".join(f"{{{name}}}" for name in reversed(expected))
            raise ValueError(f"expected one {listed}, and no other name in braces")
        return text


@dataclass(frozen=True)
class Template:
    """A wording, taken apart at its placeholders: rendering only joins strings."""

    name: str
    head: str  # everything before the history's first item; the same for all users
    tail: str  # everything after its last item
    no_history: str  # the whole prompt of a user without a history
    item_head: str
    item_tail: str
    separator: str
    rank: RankTemplate | None = None  # of the rank-pair task

    def render(self, titles: Sequence[str]) -> str:
        """The prompt for a history of titles, oldest first; the response follows at once."""
        if not titles:
            return self.no_history
        return self.head + self.separator.join(map(self.render_item, titles)) + self.tail

    def render_item(self, title: str) -> str:
        """One item as it stands in histories and as the response, e.g. ``"The Hobbit"``.

        Line breaks and control characters become spaces: no title can leave its line.
        """
        return self.item_head + one_line(title) + self.item_tail


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

    (Semantic IDs and bare items are tokens: ``engine.rows`` looks at them.)

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
    item_head, item_tail = wording.item.split("{title}")

    def instruct(part: str) -> str:
        return part.replace("{instruction}", wording.instruction)

    return Template(
        name=name,
        head=instruct(layout_head) + history_head,
        tail=history_tail + instruct(layout_tail),
        no_history=instruct(layout_head) + wording.empty + instruct(layout_tail),
        item_head=item_head,
        item_tail=item_tail,
        separator=wording.separator,
        rank=take_apart(wording.rank) if wording.rank else None,
    )


def _read_template(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RecipeError(f"{path}: larger than {_MAX_BYTES} bytes, expected a prompt template")
        return path.read_bytes()
    except OSError as error:
        raise RecipeError(
            f"{path}: cannot be read as a prompt template: {error.strerror}"
        ) from None


def _list_problems(error: ValidationError) -> Iterator[str]:
    """One phrase per problem: key, value, what was expected."""
    for problem in error.errors(include_url=False, include_context=False):
        *table, name = map(str, problem["loc"])
        fields = RankWording.model_fields if table else Wording.model_fields
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
