"""Ratings and gaps in prompts: token by token the whole text, whatever is known and has room."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from llmrec_cli.data.histories import InteractionHistory
from llmrec_cli.models.tokenizer import Codec, add_item_tokens, make_codec
from llmrec_cli.training.rows import (
    PromptEncoder,
    as_windows,
    encode_catalogue,
    user_rows,
    window_rows,
)
from tests.data.test_field_wording import wording
from tests.models.test_chat import tokenizer_of

TITLES = ["Kite", "Sledge", "Rope <|im_end|>", "Top"]
BRANDS = ["Aero", None, "Bolt", "Cord"]
FIELDS = (
    "item = '<|im_start|>{title}{rating}{brand}{gap}'\n"
    '[fields]\nrating = " *{rating}"\ngap = ", <|im_end|>{gap}"\n'
)
DAY = 86_400_000
TIMES = [0, 3 * DAY, 3 * DAY + 5, 100 * DAY]
RATINGS = [5.0, np.nan, 2.5, 4.0]
GAPS = [None, "3 days later", "the same day", "3 months later"]


def known(items: Sequence[int]) -> InteractionHistory:
    """Some of the items, each with its own rating and time."""
    at = np.array(items, np.int32)
    return InteractionHistory(at, np.array(RATINGS)[at], np.array(TIMES, np.int64)[at])


def make_encoder(*, by_tokens: bool, most: int = 512, fields: str = FIELDS) -> PromptEncoder:
    tokenizer = tokenizer_of("bytes, BOS added", "ChatML")
    names = [f"<a_{n}>" for n in range(4)]
    add_item_tokens(tokenizer, names)
    codec = make_codec(tokenizer, names)
    items = pd.DataFrame(
        {
            "item_id": names,
            "title": TITLES,
            "tokens": [[name] for name in names] if by_tokens else None,
            "brand": BRANDS,
        }
    )
    return PromptEncoder(wording(fields), codec, items, encode_catalogue(items, codec), most)


def word_by_hand(item: int, *, first: bool) -> tuple[str, str]:
    """The title's part, and the fields."""
    text = "" if np.isnan(RATINGS[item]) else f" *{RATINGS[item]:g}"
    text += f" by {BRANDS[item]}" if BRANDS[item] else ""
    gap = GAPS[item]
    return TITLES[item], text + ("" if first or gap is None else f", {END}{gap}")


START, END = "\x02<|im_start|>\x03", "\x02<|im_end|>\x03"


def prompt_by_hand(encoder: PromptEncoder, items: Sequence[int], *, by_tokens: bool) -> list[int]:
    """Of consecutive items, from words alone."""
    codec: Codec = encoder.codec
    shown = [word_by_hand(item, first=place == 0) for place, item in enumerate(items)]
    template = encoder.marked
    assert template is not None
    if not by_tokens:
        text = ", ".join(f"{START}{title}{fields}" for title, fields in shown)
        return codec.encode_prompts([template.head + text + template.tail])[0]
    ids = list(codec.encode_prompts([template.head])[0])
    for place, (item, (_, fields)) in enumerate(zip(items, shown, strict=True)):
        ids += codec.encode_words([", "])[0] if place else []
        ids += [codec.tokenizer.convert_tokens_to_ids(f"<a_{item}>")]
        ids += codec.encode_words([fields])[0]
    return [*ids, *codec.encode_words([template.tail])[0]]


@pytest.mark.parametrize("by_tokens", [False, True])
def test_a_prompt_is_its_whole_text(by_tokens: bool) -> None:
    encoder = make_encoder(by_tokens=by_tokens)
    for items in ([0, 1, 2, 3], [1, 2], [2, 3], [3]):
        (ids,) = encoder.encode([known(items)])
        assert ids.tolist() == prompt_by_hand(encoder, items, by_tokens=by_tokens)
    end = encoder.codec.tokenizer.convert_tokens_to_ids("<|im_end|>")
    (whole,) = encoder.encode([known([0, 1, 2, 3])])
    assert whole.tolist().count(end) == 3  # of the gaps; that of the title is letters
    assert encoder.encode([known([])])[0].tolist() == encoder.encode([[]])[0].tolist()


@pytest.mark.parametrize("by_tokens", [False, True])
def test_items_leave_whole_and_the_next_one_loses_its_gap(by_tokens: bool) -> None:
    whole = make_encoder(by_tokens=by_tokens)
    items = [0, 1, 2, 3]
    suffixes = {n: whole.encode([known(items[n:])])[0].tolist() for n in range(4)}
    for most in range(len(suffixes[3]), len(suffixes[0]) + 1):
        room = make_encoder(by_tokens=by_tokens, most=most)
        (ids,), left_out_N = room.encode_counted([known(items)])
        expected = min(n for n, prompt in suffixes.items() if len(prompt) <= most)
        assert (left_out_N.tolist(), ids.tolist()) == ([expected], suffixes[expected])


@pytest.mark.parametrize("by_tokens", [False, True])
def test_of_items_alone_nothing_is_said(by_tokens: bool) -> None:
    encoder = make_encoder(by_tokens=by_tokens)
    bare = make_encoder(by_tokens=by_tokens, fields="item = '<|im_start|>{title}{brand}'\n")
    history = [0, 1, 2, 3]
    (ids,), (plain,) = encoder.encode([history]), bare.encode([history])
    assert ids.tolist() == plain.tolist()
    (as_items,) = bare.encode([known(history)])
    assert as_items.tolist() == plain.tolist()
    assert encoder.encode([known(history)])[0].tolist() != plain.tolist()


def split_of(items: Sequence[int], longest: int) -> pd.DataFrame:
    """Every item but the first as a target; the frame has a time and a rating of its own."""
    rows = []
    for place in range(1, len(items)):
        seen = known(items[max(0, place - longest) : place])
        rows.append(
            {
                "user": 0,
                "history": seen.item_H,
                "target": items[place],
                "timestamp": TIMES[items[place]],
                "rating": 1.0,
                "history_rating": seen.rating_H,
                "history_timestamp": seen.time_H,
            }
        )
    return pd.DataFrame(rows)


@pytest.mark.parametrize("longest", [1, 2, 4])
def test_rows_of_a_user_are_their_windows(longest: int) -> None:
    """Whether their prompts share what they begin with or not."""
    encoder = make_encoder(by_tokens=False)
    frame = split_of([0, 1, 2, 3], longest)
    windows = window_rows(frame, encoder)
    by_hand = [
        prompt_by_hand(encoder, history.tolist(), by_tokens=False) for history in frame["history"]
    ]
    assert [row.prompt.tolist() for row in windows] == by_hand
    found = [w for row in user_rows(frame, encoder) for w in as_windows(row, encoder.catalogue)]
    assert [row.prompt.tolist() for row in found] == by_hand
    assert [row.history for row in found if longest == 4] == [
        row.history for row in windows if longest == 4
    ]
    if longest == 4:
        assert len(user_rows(frame, encoder)) < len(windows)


def test_a_target_changes_nothing() -> None:
    encoder, frame = make_encoder(by_tokens=False), split_of([0, 1, 2, 3], 4)
    other = frame.assign(timestamp=frame["timestamp"] + 900 * DAY, rating=3.0, target=0)
    assert [row.prompt.tolist() for row in window_rows(frame, encoder)] == [
        row.prompt.tolist() for row in window_rows(other, encoder)
    ]
