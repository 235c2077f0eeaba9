"""The rank-pair task in words: a history, two candidates, and which of them is liked more.

DMPO's released files (arXiv:2405.16127, docs/data.md) are made of this text; it is rendered,
and taken apart again, byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from llmrec_cli.data.wording import expect_placeholders, one_line

_PLACEHOLDERS: Final = {
    "history": ("history",),
    "question": ("first", "second"),
    "answer": ("first", "second"),
    "item": ("title",),
}


class RankWording(BaseModel):
    """The keys of a template file's ``[rank]`` table."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    history: str = Field(description="what comes before the question, with one {history}")
    empty: str = Field(min_length=1, description="the same for a user without a history")
    question: str = Field(description="the end of the prompt, with one {first}, one {second}")
    item: str = Field(default=" <Title:{title}> ", description="one item, with one {title}")
    separator: str = Field(default="", description="text between two items of the history")
    answer: str = Field(
        default="{first}, {second}",
        description="the answer: the liked item {first}, the other {second}",
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
    )


def _split_around(text: str) -> tuple[str, str, str]:
    before, rest = text.split("{first}")
    between, after = rest.split("{second}")
    return before, between, after
