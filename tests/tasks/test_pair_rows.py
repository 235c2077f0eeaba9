"""Pair rows: the very text, pure draws, and scores equal to a plain forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator

from llmrec_cli.config.model import ScratchModel
from llmrec_cli.data.prompts import load_rank_template
from llmrec_cli.data.schema import CHOSEN_FIRST, HISTORY, NEGATIVES, ROW, TARGET, USER
from llmrec_cli.errors import DataError
from llmrec_cli.models.language_model import Policy
from llmrec_cli.models.loading import build_scratch
from llmrec_cli.models.tokenizer import Codec, make_codec
from llmrec_cli.tasks.rank_pair_operations import (
    DrawPairs,
    PairEncoder,
    UserPairs,
    draw_pairs,
    fix_pairs,
    make_question_rows,
    parse_pairs,
    require_history_room,
    require_pair_count,
    score_pairs,
    toss_order,
)
from llmrec_cli.tensors.trie import Trie, build_trie
from llmrec_cli.training.distributed import Ranks
from llmrec_cli.training.rows import PairRow, Row, encode_catalogue

TITLES = ["Halo", "Doom", "Myst", "Wii Sports", "Zelda", "Quake"]
GAMES = load_rank_template("games", Path)
USER_7 = UserPairs((0, 3), 1, (2, 4, 5), (True, False, True), user=7, number=2)


@pytest.fixture(scope="module")
def scratch() -> tuple[Policy, Codec, Trie]:
    section = ScratchModel(hidden=16, layers=2, heads=2, feed_forward=16, vocabulary=300)
    model, tokenizer = build_scratch(section, TITLES, [], 0)
    codec = make_codec(tokenizer)
    items = pd.DataFrame({"item_id": TITLES, "title": TITLES, "tokens": None})
    return Policy(model).eval(), codec, build_trie(encode_catalogue(items, codec))


def encoder(codec: Codec, max_tokens: int = 2000) -> PairEncoder:
    return PairEncoder(GAMES, codec, TITLES, max_tokens)


def text(codec: Codec, ids: Any) -> str:
    return str(codec.tokenizer.decode(ids, skip_special_tokens=True))


def test_prompts_and_answers_read_as_released(scratch: tuple[Policy, Codec, Trie]) -> None:
    _, codec, _ = scratch
    (row,) = encoder(codec).encode([USER_7])
    assert (row.user, row.number) == (7, 2)
    shown = ("<Title:Doom>  and  <Title:Myst> .", "<Title:Zelda>  and  <Title:Doom> .")
    for prompt, end in zip(row.prompts[:2], shown, strict=True):
        assert text(codec, prompt).endswith(end)
    assert "shopped:  <Title:Halo>  <Title:Wii Sports> . Rank" in text(codec, row.prompts[2])
    chosen, rejected = row.answers[1]
    assert text(codec, chosen) == " <Title:Doom> ,  <Title:Zelda> "
    assert text(codec, rejected) == " <Title:Zelda> ,  <Title:Doom> "
    assert chosen[-1] == rejected[-1] == codec.eos
    assert codec.eos not in chosen[:-1]


def test_prompts_without_room_for_any_title_are_refused(
    scratch: tuple[Policy, Codec, Trie],
) -> None:
    """Every history would be empty, and nobody would see it but for a count."""
    _, codec, _ = scratch
    alone = len(encoder(codec).encode([UserPairs((), 0, (0,), (True,))])[0].prompts[0])
    require_history_room(encoder(codec), "games")
    with pytest.raises(DataError, match=r"template = \"games\".*no history is left.*'Halo'"):
        require_history_room(encoder(codec, alone + 1), "games")


def test_a_long_prompt_loses_its_oldest_items_whole(scratch: tuple[Policy, Codec, Trie]) -> None:
    _, codec, _ = scratch
    whole = UserPairs((0, 3, 4), 1, (2,), (True,))
    longest = len(encoder(codec).encode([whole])[0].prompts[0])
    (row,) = encoder(codec, longest - 1).encode([whole])
    assert row.left_out == (1,)
    assert encoder(codec).encode([whole])[0].left_out == ()
    assert "shopped:  <Title:Wii Sports>  <Title:Zelda> ." in text(codec, row.prompts[0])
    assert len(row.prompts[0]) < longest
    with pytest.raises(DataError, match=r"max_tokens = 10: without any history, .*'Doom'"):
        encoder(codec, 10).encode([whole])


def test_prompt_and_answer_fit_into_the_context_together(
    scratch: tuple[Policy, Codec, Trie],
) -> None:
    _, codec, _ = scratch
    whole = UserPairs((0, 3, 4), 1, (2,), (True,))
    (row,) = encoder(codec).encode([whole])
    longest, answer = len(row.prompts[0]), max(map(len, row.answers[0]))
    for context in (longest + answer, longest + answer - 1):
        (cut,) = PairEncoder(GAMES, codec, TITLES, 2000, context).encode([whole])
        assert (len(cut.prompts[0]) == longest) == (context == longest + answer)
        assert len(cut.prompts[0]) + answer <= context
    with pytest.raises(DataError, match=rf"30 positions of the backbone less {answer} for the"):
        PairEncoder(GAMES, codec, TITLES, 2000, 30).encode([whole])


def test_given_pairs_are_what_the_split_says() -> None:
    columns = {HISTORY: [[0, 3]], TARGET: [1], NEGATIVES: [[2, 4, 5]], USER: [7]}
    frame = pd.DataFrame(columns | {CHOSEN_FIRST: [[True, False, True]]})
    assert parse_pairs(frame) == [UserPairs((0, 3), 1, (2, 4, 5), (True, False, True), 7, 0)]


def test_the_order_is_a_fair_and_pure_function_of_seed_row_and_epoch() -> None:
    flips = np.array([toss_order(0, row, 3, 2) for row in range(2000)])
    assert np.abs(flips.mean(0) - 0.5).max() < 0.04
    assert abs((flips[:, 0] == flips[:, 1]).mean() - 0.5) < 0.04
    assert toss_order(0, 5, 3, 2) == tuple(flips[5])
    same = (flips == [toss_order(0, row, 4, 2) for row in range(2000)]).mean()
    other_seed = (flips == [toss_order(1, row, 3, 2) for row in range(2000)]).mean()
    assert abs(same - 0.5) < 0.04
    assert abs(other_seed - 0.5) < 0.04


def test_drawn_pairs_depend_on_row_and_epoch_alone(scratch: tuple[Policy, Codec, Trie]) -> None:
    _, codec, _ = scratch
    frame = pd.DataFrame({HISTORY: [[0], [0, 3], [4]], TARGET: [1, 2, 5], USER: [0, 1, 2]})
    rows = make_question_rows(frame)
    asked: list[tuple[int, int]] = []

    def sampler(row: Row, epoch: int) -> tuple[tuple[int, ...], ...]:
        asked.append((row.number, epoch))
        return ((3 + epoch % 2,),)

    serve = DrawPairs(encoder(codec), sampler, seed=0, steps_per_epoch=2)
    forwards, backwards = serve(rows, 3), serve(rows[::-1], 2)
    assert asked == [(0, 1), (1, 1), (2, 1), (2, 1), (1, 1), (0, 1)]
    for ahead, back in zip(pair_rows(forwards), pair_rows(backwards[::-1]), strict=True):
        np.testing.assert_array_equal(ahead.prompts[0], back.prompts[0])
    assert draw_pairs(rows[1], (4,), 0, 1).history == (0, 3)
    assert [row.number for row in pair_rows(forwards)] == [0, 1, 2]


def pair_rows(rows: list[Any]) -> list[PairRow]:
    assert all(isinstance(row, PairRow) for row in rows)
    return rows


def test_a_fixed_pair_takes_its_order_from_its_row() -> None:
    frame = pd.DataFrame(
        {HISTORY: [[0]] * 40, TARGET: [1] * 40, USER: range(40), ROW: range(100, 140)}
    )
    pairs = fix_pairs(frame, [2] * 40, seed=0)
    assert [p.liked_first for p in pairs] == [toss_order(0, 100 + n, 0, 1) for n in range(40)]
    assert fix_pairs(frame.iloc[5:7], [2, 2], seed=0)[0].liked_first == pairs[5].liked_first
    assert {p.others for p in pairs} == {(2,)}


def test_scores_equal_a_plain_forward_pass(scratch: tuple[Policy, Codec, Trie]) -> None:
    """Summed log-probabilities over the vocabulary in float64, one sequence at a time."""
    policy, codec, trie = scratch
    single = UserPairs((4,), 0, (3,), (False,))
    rows = encoder(codec).encode([USER_7, single])
    scores = score_pairs(policy, rows, trie, batch=3, ranks=Ranks(Accelerator(cpu=True)))
    assert [s.shape for s in scores] == [(3, 2), (1, 2)]
    for row, score in zip(rows, scores, strict=True):
        for at, (prompt, answers) in enumerate(zip(row.prompts, row.answers, strict=True)):
            slow = [slow_score(policy.model, prompt, answer) for answer in answers]
            np.testing.assert_allclose(score[at], slow, rtol=1e-5)


def slow_score(model: Any, prompt: Any, answer: Any) -> float:
    ids = torch.tensor([*prompt.tolist(), *answer.tolist()])
    with torch.no_grad():
        logits = model(ids[None]).logits[0].double().log_softmax(-1)
    places = range(len(prompt) - 1, len(ids) - 1)
    return float(sum(logits[at, ids[at + 1]] for at in places))


def test_a_user_with_another_number_of_pairs_is_named(scratch: tuple[Policy, Codec, Trie]) -> None:
    _, codec, _ = scratch
    rows = encoder(codec).encode([USER_7, UserPairs((4,), 0, (3,), (False,))])
    require_pair_count(rows, None, ["a", "b"])
    require_pair_count(rows[:1], 3, ["a"])
    with pytest.raises(DataError, match=r"user 'b': has 1 pairs in the source, .* k = 3"):
        require_pair_count(rows, 3, ["a", "b"])
