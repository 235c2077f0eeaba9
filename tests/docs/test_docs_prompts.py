"""The templates of the page of prompts, and what its examples read like."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from llmrec_cli.data.histories import InteractionHistory, word_gap
from llmrec_cli.data.prompts import (
    FieldWords,
    ItemTasksWording,
    load_template,
    parse_template,
)
from llmrec_cli.models.chat import read_chat
from llmrec_cli.models.tokenizer import train_tokenizer
from llmrec_cli.utils.toml import parse
from tests.docs.doc_pages import DOCS, blocks, read
from tests.models.test_chat import CHATS

PAGE = list(blocks(read(DOCS / "prompts.md")))
LAYOUT, FIELDS, RATED, TURNS = (b for b in PAGE if b.mark.endswith("test_docs_prompts.py"))


def test_a_template_of_ones_own_renders() -> None:
    own = parse_template(LAYOUT.text.encode(), "own", "own.toml")
    assert own.render(["A", "B"]) == (
        "Given the books a user has read, name the next one.\n\n"
        'The user has read: "A"; "B"\n\nNext book: '
    )
    assert own.render([]).count("The user has read no book yet.") == 1


def test_item_tasks_are_worded_as_the_page_says() -> None:
    page = blocks(read(DOCS / "semantic-ids.md"))
    (shown,) = (block.text for block in page if block.mark.endswith("test_docs_prompts.py"))
    assert ItemTasksWording(**parse(shown)["item_tasks"]) == ItemTasksWording()
    assert set(parse(shown)["item_tasks"]) == set(ItemTasksWording.model_fields)


def test_fields_stand_in_an_item_as_shown() -> None:
    own = parse_template(FIELDS.text.encode(), "own", "own.toml")
    shown = next(b.text for b in PAGE if b.text.startswith('"Denny'))
    values = {
        "brand": "Denny's",
        "category": "Gift Cards",
        "price": "$25.00",
        "description": "Denny's is America's diner. This is where Americans have come for",
    }
    assert own.render_item("Denny's Gift Card", values) == shown.rstrip("\n")
    by_default = parse_template(FIELDS.text.partition("[fields]")[0].encode(), "own", "own.toml")
    assert by_default.item == own.item
    table = read(DOCS / "prompts.md")
    for part in own.item[1:]:
        if isinstance(part, FieldWords) and part.name in values:
            words = f"{part.head}{{{part.name}}}{part.tail}"
            assert f"| `{{{part.name}}}` |" in table
            assert f'| `"{words}"` |' in table
    assert f"cut to `description_tokens` ({by_default.description_tokens})" in table


def test_interactions_stand_in_a_history_as_shown() -> None:
    own = parse_template(RATED.text.encode(), "own", "own.toml")
    shown = next(b.text for b in PAGE if b.text.startswith('"Amazon.com Gift Card in a Greeting'))
    days = [0, 0, 5, 192, 0]
    known = InteractionHistory(
        np.arange(5, dtype=np.int32),
        np.array([5.0, 4.0, 4.0, 4.0, 5.0]),
        np.cumsum(days).astype(np.int64) * 86_400_000,
    )
    titles = re.findall(r'"([^"]*)"', shown)
    said = known.list_words()
    items = [own.render_item(title, s.values()) for title, s in zip(titles, said, strict=True)]
    assert own.join(items) == own.join([shown.rstrip("\n")])
    page = read(DOCS / "prompts.md")
    for part in own.item:
        if isinstance(part, FieldWords) and part.name != "title":
            assert f"| `{{{part.name}}}` |" in page
            assert f'| `"{part.head}{{{part.name}}}{part.tail}"` |' in page
    edges = {0: "0 |", 1: "1 to 60 |", 60: "1 to 60 |", 61: "61 to 730 |", 730: "61 to 730 |"}
    for day, row in {**edges, 731: "from 731 on |"}.items():
        (line,) = [found for found in page.splitlines() if found.startswith(f"| {row}")]
        unit = word_gap(day).split()[-2]  # "same", "day", "days", "months", "years"
        assert unit in line, (day, line)
    assert [word_gap(day) for day in (61, 730, 731)] == [
        "2 months later",
        "23 months later",
        "2 years later",
    ]


def test_turns_are_worded_apart() -> None:
    own = parse_template(TURNS.text.encode(), "own", "own.toml")
    assert own.turns.system == "You are a librarian."
    assert own.turns.head == "Name the next book. I have read: "
    assert own.turns.no_history == "Name the next book. I have read no book yet."


def test_a_chat_reads_as_shown() -> None:
    tokenizer = train_tokenizer([], vocabulary=300)
    tokenizer.chat_template = CHATS["ChatML"][0]
    template = load_template("gift-cards", Path).as_chat(read_chat(tokenizer, "base").frame)
    shown = next(b.text for b in PAGE if b.text.startswith("<|im_start|>system"))
    titles = ["Burger King Gift Card", "Southwest Airlines Gift Card"]
    assert template.render(titles) == shown.rstrip("\n") + "\n"
