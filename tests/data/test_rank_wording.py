"""The rank-pair wording: exact strings, its own inverse, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_cli.data.prompts import (
    Question,
    RankTemplate,
    load_rank_template,
    parse_template,
    template_names,
)
from llmrec_cli.errors import RecipeError

MINIMAL = 'instruction = "Go on."\nhistory = "Seen: {history}."\nempty = "Nothing."\n'
RANK = (
    '[rank]\nhistory = "Had {history}"\nempty = "Had none"\nquestion = ": {first} or {second}?"\n'
)


def games() -> RankTemplate:
    return load_rank_template("games", Path)


def test_games_say_exactly_what_was_released() -> None:
    assert games().render(Question(("Halo 3", " Wii"), "Doom", "Myst")) == (
        "You are an assistant working on Video Games recommendations. Here is the user's history "
        "of Video Games they have shopped:  <Title:Halo 3>  <Title: Wii> . Rank the likelihood of "
        "the user shopping the two Video Games  <Title:Doom>  and  <Title:Myst> ."
    )
    assert games().render_answer("Myst", "Doom") == " <Title:Myst> ,  <Title:Doom> "


def test_an_empty_history_says_exactly_this() -> None:
    assert games().render(Question((), "Doom", "Myst")) == (
        "You are an assistant working on Video Games recommendations. The user has not shopped any "
        "Video Games yet. Rank the likelihood of the user shopping the two Video Games "
        " <Title:Doom>  and  <Title:Myst> ."
    )


@pytest.mark.parametrize("name", template_names())
def test_every_shipped_wording_is_its_own_inverse(name: str) -> None:
    wording = load_rank_template(name, Path)
    question = Question(("One", "Two <b>", "Three, and  four."), "First", "Second")
    assert wording.parse(wording.render(question)) == question
    assert wording.parse_answer(wording.render_answer("A", "B > C")) == ("A", "B > C")
    assert "{" not in wording.render(question) + wording.render_answer("A", "B")


titles = st.text(st.characters(exclude_categories=("C", "Z")) | st.just(" "), max_size=12)


@settings(max_examples=60)
@given(st.lists(titles, min_size=1, max_size=4), titles, titles)
def test_what_is_parsed_renders_to_the_same_bytes(
    history: list[str], first: str, second: str
) -> None:
    prompt = games().render(Question(tuple(history), first, second))
    parsed = games().parse(prompt)
    assert parsed is None or games().render(parsed) == prompt


def test_a_title_that_looks_like_the_wording_is_refused_rather_than_misread() -> None:
    wording = games()
    inside = "x> . Rank the likelihood of the user shopping the two Video Games  <Title:y"
    assert wording.parse(wording.render(Question((inside,), "a", "b"))) is None
    assert wording.parse(wording.render(Question(("h",), "a>  and  <Title:b", "c"))) is None
    assert wording.parse_answer(wording.render_answer("a> ,  <Title:b", "c")) is None
    assert wording.parse("Something else") is None
    assert wording.parse_answer("") is None


def test_a_title_cannot_leave_its_line() -> None:
    assert "\n" not in games().render(Question(("a\nb",), "c\x07", "d"))


def test_a_template_file_may_bring_its_own_wording() -> None:
    template = parse_template((MINIMAL + RANK).encode(), "own", "own.toml")
    assert template.rank is not None
    assert template.rank.render(Question(("X",), "A", "B")) == (
        "Had  <Title:X> :  <Title:A>  or  <Title:B> ?"
    )
    assert parse_template(MINIMAL.encode(), "own", "own.toml").rank is None


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('[rank]\nhistory = "Had {history}"\nempty = "-"\n', "rank.question: missing"),
        (RANK.replace("question", "questoin"), "questoin: unknown key. Did you mean question?"),
        (RANK.replace("{second}", "{first}"), "expected one {first}, then one {second}"),
        (RANK + "item = 5\n", "rank.item = 5: must be a valid string"),
        (RANK + 'item = "none"\n', "expected one {title}"),
    ],
)
def test_a_wrong_wording_says_what_was_expected(lines: str, words: str) -> None:
    with pytest.raises(RecipeError, match=r"own\.toml: ") as caught:
        parse_template((MINIMAL + lines).encode(), "own", "own.toml")
    assert words in str(caught.value)


def test_a_template_without_the_wording_cannot_ask_for_pairs(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(MINIMAL)
    for name in (str(own), "sequence"):
        with pytest.raises(RecipeError, match=r"has no \[rank\] wording"):
            load_rank_template(name, Path)
