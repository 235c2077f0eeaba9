"""Rows: prompts, windows, and sequences that equal their windows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from llmrec_cli.data.prompts import Template, load_template
from llmrec_cli.errors import ArtefactError, DataError
from llmrec_cli.models.tokenizer import Codec, add_item_tokens, make_codec, train_tokenizer
from llmrec_cli.training.rows import (
    LeftOut,
    PromptEncoder,
    Prompts,
    Row,
    as_windows,
    count_left_out,
    count_rows_left_out,
    encode_catalogue,
    require_histories,
    sequence_rows,
    user_rows,
    window_rows,
)

TITLES = ["Red kite", "Blue kite", "Red kite, large", "Sledge & rope", "Ä", "Top", "Yo-yo", "Ball"]


@pytest.fixture(scope="module")
def items() -> pd.DataFrame:
    return pd.DataFrame(
        {"item_id": [f"B{i}" for i in range(len(TITLES))], "title": TITLES, "tokens": None}
    )


@pytest.fixture(scope="module")
def codec() -> Codec:
    return make_codec(train_tokenizer(TITLES, vocabulary=400))


def split(users: dict[int, list[int]], longest: int) -> pd.DataFrame:
    """Sliding prefixes of every user's items, as prepare writes them."""
    rows = [
        {"user": user, "history": np.array(items[max(0, t - longest) : t]), "target": items[t]}
        for user, items in users.items()
        for t in range(1, len(items))
    ]
    return pd.DataFrame(rows)


def bare(codec: Codec, items: pd.DataFrame, max_tokens: int = 512) -> PromptEncoder:
    return PromptEncoder(None, codec, items, encode_catalogue(items, codec), max_tokens)


def test_titles_are_quoted_and_end_in_eos(items: pd.DataFrame, codec: Codec) -> None:
    for tokens, title in zip(encode_catalogue(items, codec), TITLES, strict=True):
        assert tokens[-1] == codec.eos
        assert codec.tokenizer.decode(tokens[:-1]) == f'"{title}"'


def test_semantic_ids_are_their_own_tokens(codec: Codec) -> None:
    tokenizer = train_tokenizer([], vocabulary=300)
    tokenizer.add_tokens(["<a_1>", "<a_2>", "<b_1>"])
    items = pd.DataFrame(
        {"item_id": ["1", "2"], "title": None, "tokens": [["<a_1>", "<b_1>"], ["<a_2>", "<b_1>"]]}
    )
    vocabulary = tokenizer.get_vocab()
    expected = [
        [vocabulary[t] for t in tokens] + [tokenizer.eos_token_id] for tokens in items.tokens
    ]
    assert encode_catalogue(items, make_codec(tokenizer)) == expected


def test_what_reads_like_a_special_token_in_a_title_is_spelt_out(codec: Codec) -> None:
    title = "a</s>b<s><pad>"
    items = pd.DataFrame({"item_id": ["X"], "title": [title], "tokens": [None]})
    (tokens,) = encode_catalogue(items, codec)
    assert tokens[-1] == codec.eos
    assert not set(tokens[:-1]) & set(codec.tokenizer.all_special_ids)
    assert codec.tokenizer.decode(tokens[:-1]) == f'"{title}"'
    (prompt,) = codec.encode_prompts([title])
    assert codec.eos not in prompt


def test_an_item_that_ends_early_is_refused(codec: Codec) -> None:
    codec.tokenizer.add_tokens(["<a_1>"])
    ends = codec.tokenizer.eos_token
    items = pd.DataFrame({"item_id": ["X"], "title": [None], "tokens": [["<a_1>", ends]]})
    with pytest.raises(DataError, match=r"'X' .*contains EOS"):
        encode_catalogue(items, codec)


def test_a_tokenizer_without_eos_is_refused() -> None:
    tokenizer = train_tokenizer([], vocabulary=300)
    tokenizer.eos_token = None
    with pytest.raises(ArtefactError, match="no EOS"):
        make_codec(tokenizer)


def test_a_long_prompt_loses_its_oldest_items_whole(items: pd.DataFrame, codec: Codec) -> None:
    encoder = bare(codec, items, max_tokens=20)
    (prompt,) = encoder.encode([[0, 1, 2, 3, 4, 5, 6, 7]])
    catalogue = encode_catalogue(items, codec)
    kept: list[int] = []
    for item in [7, 6, 5, 4, 3, 2, 1, 0]:
        if 1 + len(kept) + len(catalogue[item]) > 20:
            break
        kept = catalogue[item] + kept
    assert prompt.tolist() == [codec.start, *kept]
    assert len(prompt) <= 20


def test_a_long_text_prompt_loses_its_oldest_items_whole(items: pd.DataFrame, codec: Codec) -> None:
    template: Template = load_template("items", lambda name: None)  # type: ignore[arg-type,return-value]  # shipped
    whole = len(codec.encode_prompts([template.render(TITLES)])[0])
    encoder = PromptEncoder(template, codec, items, encode_catalogue(items, codec), whole - 1)
    (prompt,) = encoder.encode([list(range(8))])
    assert prompt.tolist() == codec.encode_prompts([template.render(TITLES[1:])])[0]
    with pytest.raises(DataError, match="the template alone"):
        PromptEncoder(template, codec, items, [], 8).encode([[0]])


def test_sequences_of_short_users_are_exactly_their_windows(
    items: pd.DataFrame, codec: Codec
) -> None:
    frame = split({0: [0, 1, 2, 3, 4], 1: [5, 6], 2: [7, 7, 0]}, longest=6)
    encoder = bare(codec, items)
    rows = sequence_rows(frame, encoder, longest=6)
    assert len(rows) == 3
    windows = [w for row in rows for w in as_windows(row, encode_catalogue(items, codec))]
    for ours, prepared in zip(windows, window_rows(frame, encoder), strict=True):
        assert ours.targets == prepared.targets
        assert ours.prompt.tolist() == prepared.prompt.tolist()


def test_sequences_of_long_users_keep_every_target_and_at_least_half_the_history(
    items: pd.DataFrame, codec: Codec
) -> None:
    rng = np.random.default_rng(0)
    history = rng.integers(0, 8, 40).tolist()
    frame = split({0: history}, longest=6)
    catalogue = encode_catalogue(items, codec)
    rows = sequence_rows(frame, bare(codec, items), longest=6)
    windows = [w for row in rows for w in as_windows(row, catalogue)]
    assert [w.targets[0] for w in windows] == history[1:]
    for t, window in enumerate(windows, start=1):
        counts = [
            n
            for n in range(t + 1)
            if window.prompt.tolist()
            == [codec.start, *(x for i in history[t - n : t] for x in catalogue[i])]
        ]
        assert counts, "the prompt is not the end of the user's history"
        assert min(3, t) <= counts[0] <= 6


def test_rows_that_do_not_continue_start_a_new_pass(items: pd.DataFrame, codec: Codec) -> None:
    frame = split({0: [0, 1, 2, 3, 4, 5]}, longest=6).drop(index=2)  # as data.sample does
    rows = sequence_rows(frame, bare(codec, items), longest=6)
    assert [row.targets for row in rows] == [(1, 2), (4, 5)]


def wording(codec: Codec, items: pd.DataFrame, max_tokens: int = 512) -> PromptEncoder:
    template: Template = load_template("items", lambda name: None)  # type: ignore[arg-type,return-value]  # shipped
    return PromptEncoder(template, codec, items, encode_catalogue(items, codec), max_tokens)


def test_user_rows_are_exactly_their_windows(items: pd.DataFrame, codec: Codec) -> None:
    frame = split({0: [0, 1, 2, 3, 4], 1: [5, 6], 2: [7, 7, 0]}, longest=6)
    encoder = wording(codec, items)
    rows = user_rows(frame, encoder)
    assert [row.targets for row in rows] == [(1, 2, 3, 4), (6,), (7, 0)]
    assert [row.number for row in rows] == [0, 1, 2]
    windows = [w for row in rows for w in as_windows(row, encode_catalogue(items, codec))]
    for ours, prepared in zip(windows, window_rows(frame, encoder), strict=True):
        assert (ours.targets, ours.history, ours.user) == (
            prepared.targets,
            prepared.history,
            prepared.user,
        )
        assert ours.prompt.tolist() == prepared.prompt.tolist()


def test_windows_that_slide_start_a_new_user_row(items: pd.DataFrame, codec: Codec) -> None:
    frame = split({0: [0, 1, 2, 3, 4, 5]}, longest=3)
    rows = user_rows(frame, wording(codec, items))
    assert [row.targets for row in rows] == [(1, 2, 3), (4,), (5,)]


def test_prompts_that_lost_their_oldest_items_share_too_little(
    items: pd.DataFrame, codec: Codec
) -> None:
    frame = split({0: [0, 1, 2, 3, 4]}, longest=6)
    longest = max(len(row.prompt) for row in window_rows(frame, bare(codec, items)))
    rows = user_rows(frame, bare(codec, items, max_tokens=longest - 1))
    assert [row.targets for row in rows] == [(1, 2, 3), (4,)]


def shown_items(row: Row, catalogue: list[list[int]]) -> int:
    """How many items stand in a bare prompt, by its tokens."""
    lengths = [len(catalogue[item]) for item in reversed(row.history)]
    fits = [n for n in range(len(lengths) + 1) if sum(lengths[:n]) == len(row.prompt) - 1]
    assert len(fits) == 1
    return fits[0]


@pytest.mark.parametrize("max_tokens", [512, 40, 20])
def test_what_bare_prompts_leave_out_is_counted_window_by_window(
    items: pd.DataFrame, codec: Codec, max_tokens: int
) -> None:
    frame = split({0: [0, 1, 2, 3, 4, 5, 6, 7], 1: [5, 6]}, longest=6)
    catalogue = encode_catalogue(items, codec)
    rows = window_rows(frame, bare(codec, items, max_tokens))
    missed = [len(row.history) - shown_items(row, catalogue) for row in rows]
    found = count_rows_left_out(frame, rows)
    assert found == LeftOut(
        rows=len(frame),
        cut_rows=sum(n > 0 for n in missed),
        items=sum(map(len, frame["history"])),
        left_out=sum(missed),
    )
    assert (found.line("why") is None) == (not any(missed))
    assert any(missed) == (max_tokens == 20)
    assert count_rows_left_out(frame, user_rows(frame, bare(codec, items, max_tokens))) == found


def test_what_texts_leave_out_is_counted(items: pd.DataFrame, codec: Codec) -> None:
    template: Template = load_template("items", lambda name: None)  # type: ignore[arg-type,return-value]  # shipped
    three = len(codec.encode_prompts([template.render(TITLES[5:])])[0])
    prompts = wording(codec, items, three).encode_counted([list(range(8)), [5, 6, 7], []])
    assert prompts.left_out_N.tolist() == [5, 0, 0]
    line = count_left_out([8, 3, 0], prompts.left_out_N.tolist()).line("prompt.max_tokens = 9")
    assert line == (
        "1 of 3 rows do not see their whole history: 5 of 11 history items are left out, the "
        "oldest first (prompt.max_tokens = 9); a row sees 2.0 of 3.7 items on average"
    )


def test_what_the_passes_of_a_sequence_leave_out_is_counted(
    items: pd.DataFrame, codec: Codec
) -> None:
    history = np.random.default_rng(0).integers(0, 8, 40).tolist()
    frame = split({0: history}, longest=6)
    catalogue = encode_catalogue(items, codec)
    rows = sequence_rows(frame, bare(codec, items), longest=6)
    windows = [w for row in rows for w in as_windows(row, catalogue)]
    whole = frame["history"].map(len).tolist()
    missed = [n - min(n, len(w.history)) for n, w in zip(whole, windows, strict=True)]
    assert sum(missed)
    found = count_rows_left_out(frame, rows)
    assert (found.cut_rows, found.left_out) == (sum(n > 0 for n in missed), sum(missed))


IDS = [[f"<a_{i % 3}>", f"<b_{i // 3}>", "<a_12>"] for i in range(len(TITLES))]


@pytest.fixture(scope="module")
def id_codec() -> Codec:
    tokenizer = train_tokenizer(TITLES, vocabulary=400)
    add_item_tokens(tokenizer, sorted({token for tokens in IDS for token in tokens}))
    return make_codec(tokenizer)


def by_ids(codec: Codec, titles: list[str] | None, max_tokens: int = 512) -> PromptEncoder:
    """An encoder of items known by their semantic IDs, which may have titles, too."""
    items = pd.DataFrame({"item_id": [f"B{i}" for i in range(8)], "title": titles, "tokens": IDS})
    template: Template = load_template("items", lambda name: None)  # type: ignore[arg-type,return-value]  # shipped
    return PromptEncoder(template, codec, items, encode_catalogue(items, codec), max_tokens)


@pytest.mark.parametrize("titles", [None, TITLES])
def test_a_semantic_id_is_its_tokens_in_a_text_prompt_as_in_the_answer(
    id_codec: Codec, titles: list[str] | None
) -> None:
    encoder = by_ids(id_codec, titles)
    vocabulary, template = id_codec.tokenizer.get_vocab(), encoder.template
    assert template is not None
    (prompt,) = encoder.encode([[2, 5, 2]])
    expected = id_codec.encode_prompts([template.head])[0]
    for place, item in enumerate([2, 5, 2]):
        expected += id_codec.encode([", "])[0] if place else []
        ids = [vocabulary[token] for token in IDS[item]]
        assert encoder.catalogue[item].tolist() == [*ids, id_codec.eos]
        expected += ids
    assert prompt.tolist() == expected + id_codec.encode([template.tail])[0]
    assert len({p.tobytes() for p in encoder.encode([[0, 1], [1, 0], [2, 3]])}) == 3
    assert encoder.encode([[]])[0].tolist() == id_codec.encode_prompts([template.render([])])[0]
    require_histories(encoder, pd.DataFrame({"item_id": range(8)}))


def test_prompts_of_ids_are_what_the_tokenizer_makes_of_the_whole_text(id_codec: Codec) -> None:
    encoder = by_ids(id_codec, None)
    assert encoder.template is not None
    inside = ", ".join("".join(IDS[item]) for item in [4, 7])
    text = encoder.template.head + inside + encoder.template.tail
    assert encoder.encode([[4, 7]])[0].tolist() == id_codec.tokenizer(text)["input_ids"]


def test_the_text_of_a_semantic_id_stays_letters(id_codec: Codec) -> None:
    added = {id_codec.tokenizer.get_vocab()[token] for tokens in IDS for token in tokens}
    title = "A <a_1> & <b_0><a_12>"
    items = pd.DataFrame({"item_id": ["X"], "title": [title], "tokens": [None]})
    (tokens,) = encode_catalogue(items, id_codec)
    (prompt,) = wording(id_codec, items).encode([[0]])
    assert not added & {*tokens, *prompt.tolist()}
    assert title in id_codec.tokenizer.decode(prompt)


def test_a_long_prompt_of_ids_loses_its_oldest_items_whole(id_codec: Codec) -> None:
    history, whole = [0, 1, 2, 3], len(by_ids(id_codec, None).encode([[0, 1, 2, 3]])[0])
    for room in range(whole, whole - 12, -1):
        (prompt,), left_out_N = by_ids(id_codec, None, room).encode_counted([history])
        kept = next(history[n:] for n in range(5) if len(prompt) == length(id_codec, history[n:]))
        assert prompt.tolist() == by_ids(id_codec, None).encode([kept])[0].tolist()
        assert len(prompt) <= room
        assert left_out_N.tolist() == [len(history) - len(kept)]
        longer = history[len(history) - len(kept) - 1 :]
        assert kept == history or length(id_codec, longer) > room, "no more items than needed"


def length(codec: Codec, history: list[int]) -> int:
    return len(by_ids(codec, None).encode([history])[0])


def test_user_rows_of_ids_are_exactly_their_windows(id_codec: Codec) -> None:
    frame, encoder = split({0: [0, 1, 2, 3, 4], 1: [5, 6]}, longest=6), by_ids(id_codec, None)
    rows = user_rows(frame, encoder)
    assert [row.targets for row in rows] == [(1, 2, 3, 4), (6,)]
    windows = [window for row in rows for window in as_windows(row, encoder.catalogue)]
    for ours, prepared in zip(windows, window_rows(frame, encoder), strict=True):
        assert ours.prompt.tolist() == prepared.prompt.tolist()


@pytest.mark.parametrize("kind", ["bare", "titles", "ids"])
def test_a_prompt_without_room_for_any_item_is_refused(
    kind: str, items: pd.DataFrame, codec: Codec, id_codec: Codec
) -> None:
    makers: dict[str, Callable[[int], PromptEncoder]] = {
        "bare": lambda room: bare(codec, items, room),
        "titles": lambda room: wording(codec, items, room),
        "ids": lambda room: by_ids(id_codec, None, room),
    }
    make = makers[kind]
    alone = len(make(512).encode([[]])[0])
    with pytest.raises(DataError, match="no history is left, not even the shortest item") as error:
        require_histories(make(alone + 1), items)
    assert f"prompt.max_tokens = {alone + 1}" in str(error.value)
    require_histories(make(512), items)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("leaves_a_trace", [True, False])
@pytest.mark.parametrize("lost", [0, 5, 7])
def test_a_prompt_that_lacks_an_item_of_its_history_is_refused(
    lost: int, leaves_a_trace: bool, narrow: bool, id_codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All items have room in a prompt together, or not."""
    encoder = by_ids(id_codec, None, length(id_codec, [0, 1]) if narrow else 512)
    require_histories(encoder, pd.DataFrame({"item_id": range(8)}))
    whole = encoder.encode_counted

    def forgetful(histories: list[list[int]]) -> Prompts:
        """Renders one item as nothing, as titles that were missing once were."""
        prompts = whole(histories)
        if leaves_a_trace:  # its separator
            name = encoder.catalogue[lost][:-1].tobytes()
            shorter = [prompt.tobytes().replace(name, b"") for prompt in prompts.ids]
            return Prompts([np.frombuffer(p, np.int32) for p in shorter], prompts.left_out_N)
        kept = [[item for item in history if item != lost] for history in histories]
        return Prompts(whole(kept).ids, prompts.left_out_N)

    monkeypatch.setattr(encoder, "encode_counted", forgetful)
    with pytest.raises(DataError) as error:
        require_histories(encoder, pd.DataFrame({"item_id": [f"B{i}" for i in range(8)]}))
    assert str(error.value) == (
        f"[prompt] template = \"items\": a history with the item 'B{lost}' lacks it: expected the "
        "3 tokens of its name in the prompt"
    )
