"""A tokenizer's own chat template: the words that it puts around the turns of a prompt.

The template is rendered once with marks where titles stand.  Prompts are joined from the pieces, so
their text is what ``apply_chat_template`` makes of the same turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from llmrec_cli.errors import ArtefactError
from llmrec_cli.models.loading import first_line, loading

_CUT: Final = "\x1a"  # where a title stands; no wording and no title has this character
_SYSTEM, _USER = "a system's turn", 'a user\'s turn: <b> & "c" {{d}} \\'  # texts to look for
_CLOCK: Final = "strftime_now"  # what a template asks for the time
_THEN: Final = datetime(2024, 7, 26)  # what it is told, on every day: Llama 3's own default
_CODES: Final = [f"%{code}" for code in ("d", "-d", "e", "j", *"aAbBmyYHIMSpcxXFD")]
_BETWEEN: Final = "\n\n"  # system text and user text in one turn


@dataclass(frozen=True)
class Chat:
    """The chat template of a tokenizer."""

    tokenizer: Any
    source: str  # Jinja
    name: str  # of the backbone, for messages
    has_system: bool  # shows a system turn

    def frame(self, system: str, user: Sequence[str]) -> list[str]:
        """The pieces of a prompt: a system turn, a user turn, and the beginning of the answer.

        Without a system turn in the template, its text stands before the user's.

        Args:
            system: text of the turn; empty: there is none.
            user: text of the turn, cut where titles stand.

        Returns:
            As many pieces as ``user`` has; those between titles are the same.

        Raises:
            ArtefactError: the template changes what the user says.
        """
        texts = [system, _CUT.join(user)]
        if not system or not self.has_system:
            texts = ["", _BETWEEN.join(text for text in texts if text)]
        pieces = self._render(*texts).split(_CUT)
        kept = len(pieces) == len(user) and pieces[1:-1] == list(user[1:-1])
        if not kept or user[0].strip() not in pieces[0] or user[-1].strip() not in pieces[-1]:
            raise ArtefactError(
                f"{self.name}: its chat template changes the text of a user's turn: expected one "
                "that shows it as it is; set prompt.chat = false"
            )
        return pieces

    def list_notes(self, *, has_system: bool) -> list[str]:
        """What a person has to know of prompts in this template.

        Args:
            has_system: the wording has a text for the system turn.
        """
        notes = []
        if has_system and not self.has_system:
            notes.append(
                f"{self.name}: its chat template has no system turn; the system text stands before "
                "the user's text, and an empty line between them"
            )
        if self._render("", _USER) == self._render("", _USER, generate=False):
            notes.append(
                f"{self.name}: its chat template has no beginning of an assistant's turn; the "
                "answer follows the user's turn"
            )
        if _CLOCK in self.source:
            notes.append(
                f"{self.name}: its chat template asks for the date, and is told "
                f"{_THEN:%d %b %Y} on every day: prompts stay the same"
            )
        return notes

    def _render(self, system: str, user: str, *, generate: bool = True) -> str:
        """The text of a prompt; an empty system turn is left out."""
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": user})
        try:
            text: str = self.tokenizer.apply_chat_template(
                turns, chat_template=self.source, tokenize=False, add_generation_prompt=generate
            )
        except MemoryError:
            raise
        except Exception as error:  # a template is a program
            kind = type(error).__name__
            raise ArtefactError(
                f"{self.name}: its chat template fails: {kind}: {first_line(error)}"
            ) from error
        return text


def read_chat(tokenizer: Any, name: str) -> Chat:
    """The chat template of a tokenizer.

    Args:
        name: of the backbone, for messages.

    Raises:
        ArtefactError: there is none, or it cannot be rendered.
    """
    if not tokenizer.chat_template:
        raise ArtefactError(
            f"prompt.chat = true: the tokenizer of {name} has no chat template; set prompt.chat = "
            "false, or choose a backbone that was trained on chats"
        )
    with loading(name):  # several templates, and none of them the default
        source = _stop_clock(tokenizer.get_chat_template())
    chat = Chat(tokenizer, source, name, has_system=True)
    plain = chat._render("", _USER)
    if _USER not in plain:
        raise ArtefactError(
            f"{name}: its chat template does not show the user's turn; set prompt.chat = false"
        )
    try:
        shown = chat._render(_SYSTEM, _USER)
    except ArtefactError:  # as Gemma's does: System role not supported
        shown = ""
    return replace(chat, has_system=_SYSTEM in shown and _USER in shown)


def _stop_clock(source: str) -> str:
    """The template with a clock that stands still: a prompt is the same on every day."""
    if _CLOCK not in source:
        return source
    filters = "".join(f" | replace({code!r}, {_THEN.strftime(code)!r})" for code in _CODES)
    macro = f"{{% macro {_CLOCK}(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}"
    return f"{macro}\n{source}"  # Jinja drops the line break behind a block
