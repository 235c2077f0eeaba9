"""DMPO's released files: every genuine row comes out as it went in, and wrong files say so."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llmrec_cli.config.data import DataSection
from llmrec_cli.data.formats import read_source
from llmrec_cli.data.formats.rank_pairs import read_pair_file, render, user_of
from llmrec_cli.data.prompts import load_rank_template
from llmrec_cli.data.schema import CHOSEN_FIRST, HISTORY, ITEM_ID, NEGATIVES, TARGET, TITLE
from llmrec_cli.errors import DataError

GAMES = load_rank_template("games", Path)
FILES = {"sft_ranking": 100, "dpo_ranking_1": 200, "dpo_ranking_3": 300, "eval_ranking": 1000}


def row(
    history: tuple[str, ...] = ("Halo",), liked: str = "Doom", other: str = "Myst", **changes: Any
) -> dict[str, Any]:
    from llmrec_cli.data.prompts import Question

    answers = [GAMES.render_answer(liked, other), GAMES.render_answer(other, liked)]
    prompt = GAMES.render(Question(history, other, liked))
    return {"instruction": prompt, "input": "", "output": answers} | changes


def write(path: Path, *rows: object) -> Path:
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("name", FILES)
def test_every_genuine_row_renders_to_its_own_bytes(shared_data: Path, name: str) -> None:
    """Seen to fail with one space less in the wording."""
    path = shared_data / f"dmpo-games/rec_Amazon_Game_{name}.json.gz"
    pairs, wording = read_pair_file(
        path, {"movies": load_rank_template("movies", Path), "games": GAMES}
    )
    released = json.loads(gzip.open(path).read())
    assert wording == "games"
    assert len(pairs) == len(released) == FILES[name]
    for pair, original in zip(pairs, released, strict=True):
        prompt, chosen, rejected = render(pair, GAMES)
        assert prompt == original["instruction"]
        expected = chosen if name == "sft_ranking" else [chosen, rejected]
        assert original["output"] == expected


def section(folder: Path, **splits: Path) -> DataSection:
    paths = {name: str(path) for name, path in splits.items()}
    return DataSection.model_validate({"format": "rank-pairs", "split": "given", "splits": paths})


def test_pairs_of_one_history_and_liked_title_are_one_row(tmp_path: Path) -> None:
    train = write(
        tmp_path / "train.json",
        row(other="A"),
        row(("Wii",), other="B"),
        row(other="C"),
        row(liked="Quake", other="D"),
        row(("Wii",), other="E", output=GAMES.render_answer("Doom", "E")),
    )
    test = write(tmp_path / "test.json", row(("Zelda", "Halo"), "Doom", "F"))
    source = read_source(section(tmp_path, train=train, test=test), Path, tmp_path)
    assert source.rows is not None
    frame = source.rows["train"]
    assert frame.select(HISTORY, TARGET, NEGATIVES).rows() == [
        (["Halo"], "Doom", ["A", "C"]),
        (["Wii"], "Doom", ["B", "E"]),
        (["Halo"], "Quake", ["D"]),
    ]
    assert frame["user_id"].to_list() == [user_of([t]) for t in ("Halo", "Wii", "Halo")]
    assert frame[CHOSEN_FIRST].to_list() == [[False, False], [False, False], [False]]
    assert set(source.rows) == {"train", "test"}
    titles = sorted(["Halo", "Wii", "Doom", "Quake", "Zelda", *"ABCDEF"])
    assert source.items.select(ITEM_ID, TITLE).rows() == [(t, t) for t in titles]


def test_titles_stay_as_they_stand_in_the_prompt(tmp_path: Path) -> None:
    """No entity is decoded, no space trimmed: the text would not come out again."""
    train = write(tmp_path / "t.json", row((" Wii",), "A &amp; B", "C  D "))
    source = read_source(section(tmp_path, train=train, test=train), Path, tmp_path)
    assert source.items[TITLE].to_list() == [" Wii", "A &amp; B", "C  D "]


GOOD = row()
PROMPT = str(GOOD["instruction"])
LIKED = GAMES.render_answer("Doom", "Myst")
CASES: dict[str, tuple[str, str]] = {
    "not JSON": ("[{,", "bad.json:1: invalid JSON"),
    "an object": ('{"instruction": ""}', "bad.json:1: Expected array, got object"),
    "JSON lines": (f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}\n", "bad.json:1: "),
    "empty": ("[]", "bad.json:1: the array is empty"),
    "no instruction": (
        json.dumps([GOOD, {"output": "x"}]),
        "bad.json: row 2: Object missing required field instruction",
    ),
    "no output": (
        json.dumps([{"instruction": PROMPT}]),
        "bad.json: row 1: Object missing required field output",
    ),
    "output is a number": (json.dumps([row(output=5)]), "bad.json: row 1: Expected"),
    "three answers": (json.dumps([GOOD, row(output=[LIKED] * 3)]), 'row 2: "output" has 3 answ'),
    "one answer in a list": (json.dumps([row(output=[LIKED])]), 'row 1: "output" has 1 answers'),
    "the same answer twice": (json.dumps([row(output=[LIKED] * 2)]), "both answers are the same"),
    "another title": (
        json.dumps([row(output=GAMES.render_answer("Doom", "Quake"))]),
        "expected the prompt's candidates ['Doom', 'Myst']",
    ),
    "one candidate": (json.dumps([row(liked="Doom", other="Doom")]), "expected the prompt's cand"),
    "no answer": (json.dumps([row(output="Doom")]), "row 1: \"output\" is 'Doom', expected"),
    "input": (json.dumps([GOOD, row(input="more")]), "row 2: \"input\" is 'more', expected an emp"),
    "other words": (json.dumps([row(instruction="Rank these")]), "not in the wording of any of"),
    "words change": (
        json.dumps([GOOD, row(instruction=PROMPT.replace("Rank", "rank"))]),
        'row 2: "instruction" is \'You are an assistant',
    ),
    "a bell in a title": (
        json.dumps([row(liked="Do\x07om", instruction=PROMPT.replace("Doom", "Do\x07om"))]),
        "expected the prompt's candidates",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    content, words = CASES[case]
    bad = tmp_path / "bad.json"
    bad.write_text(content)
    with pytest.raises(DataError) as caught:
        read_source(section(tmp_path, train=bad, test=bad), Path, tmp_path)
    message = str(caught.value)
    assert words in message
    assert message.startswith(str(tmp_path))
    assert message.isprintable()


def test_a_text_that_does_not_come_out_again_is_refused(tmp_path: Path) -> None:
    """A control character in the history would be shown as a space."""
    bad = write(tmp_path / "bad.json", row(instruction=PROMPT.replace("Halo", "Ha\x07lo")))
    with pytest.raises(DataError, match="row 1: rendered again from its titles"):
        read_source(section(tmp_path, train=bad, test=bad), Path, tmp_path)


def test_a_truncated_gzip_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json.gz"
    bad.write_bytes(gzip.compress(json.dumps([GOOD] * 50).encode())[:-20])
    with pytest.raises(DataError, match=r"bad\.json\.gz:1: the gzip data ends early"):
        read_source(section(tmp_path, train=bad, test=bad), Path, tmp_path)


def test_the_frame_has_the_promised_types(tmp_path: Path) -> None:
    train = write(tmp_path / "t.json", GOOD)
    source = read_source(section(tmp_path, train=train, test=train), Path, tmp_path)
    assert source.rows is not None
    assert source.rows["train"].schema[NEGATIVES] == pl.List(pl.String)
    assert source.rows["train"].schema[CHOSEN_FIRST] == pl.List(pl.Boolean)
