"""Rollouts of the policy: what is asked, how rows are laid out, and a resumed run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmrec_cli.decoding.search import DecodeOptions, score_all
from llmrec_cli.errors import DataError
from llmrec_cli.methods import find_method
from llmrec_cli.methods.contract import Forward, Rollouts
from llmrec_cli.tensors.trie import build_trie
from llmrec_cli.training.collator import Collator, count_tokens
from llmrec_cli.training.dataset import Sampler
from llmrec_cli.training.rollouts import AddRollouts, list_excluded, require_rollouts
from llmrec_cli.training.rows import Row, as_windows
from llmrec_cli.training.trainer import PolicyLoss, Trainer
from tests.training.test_packed_rows import CATALOGUE, ROWS, TRIE, USER_ROWS, policy, prompt
from tests.training.tiny import CATALOGUE as TINY
from tests.training.tiny import final_state, job, metrics

GRPO = find_method("grpo")
LEAF_OF_ITEM = TRIE.leaf_of_item_I.numpy()
DRAWN: list[list[Row]] = [  # sequences, user rows, windows
    [
        replace(ROWS[0], negatives=(), rollouts=((0, 5, 4), (3, 11, 2))),
        replace(ROWS[1], negatives=(), rollouts=((7, 6, 0),)),
    ],
    [
        replace(USER_ROWS[0], rollouts=((4, 5), (11, 7), (8, 9))),
        replace(USER_ROWS[1], rollouts=((7, 1),)),
    ],
    [
        Row(prompt(1, 4), (7,), (1, 4), rollouts=((7, 3, 9),)),
        Row(prompt(), (6,), rollouts=((5, 2, 6),)),
    ],
]


@pytest.mark.parametrize("support", ["legal", "vocab"])
@pytest.mark.parametrize("drawn", DRAWN, ids=["sequence", "user", "window"])
def test_packed_rollouts_equal_one_row_per_answer(drawn: list[Row], support: str) -> None:
    """Loss and gradient; each answer alone behind the prompt of its own window."""
    options = GRPO.options.model_validate(
        {"k": len(drawn[0].rollouts[0]), "support": support, "beta": 0.0, "objective": "expected"}
    )
    collate = Collator(TRIE, cut_forced=support == "legal")
    windows = [window for row in drawn for window in as_windows(row, CATALOGUE)]
    apart = [
        replace(window, targets=(item,), rollouts=())
        for window in windows
        for item in window.rollouts[0]
    ]
    packed, separate = collate(drawn), collate(apart)
    assert separate.batch.rollouts is None
    groups = packed.batch.rollouts
    assert groups is not None
    hits = [[item == window.targets[0] for item in window.rollouts[0]] for window in windows]
    assert groups.hit_GK.tolist() == hits
    assert packed.tokens < separate.tokens
    results = []
    for micro in (packed, separate):
        model = policy()
        hidden_XPD = model(micro.input_ids_BT, micro.take_P, tree=micro.tree)
        batch = replace(micro.batch, rollouts=groups)
        sums = GRPO.loss(Forward(hidden_XPD[0], model.head()), batch, options, {})
        assert sums.count == len(windows)
        sums.total.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append((sums.total.detach(), gradients))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=1e-9)
    for ours, theirs in zip(results[0][1], results[1][1], strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm() + 1e-12


@pytest.mark.parametrize("drawn", DRAWN, ids=["sequence", "user", "window"])
def test_tokens_of_rows_are_counted_with_their_rollouts(drawn: list[Row]) -> None:
    for row in drawn:
        micro = Collator(TRIE, cut_forced=False)([row])
        assert micro.tokens <= count_tokens([row], TRIE)[0]


def test_items_that_share_the_targets_entry_are_hits() -> None:
    twice = build_trie([*CATALOGUE, CATALOGUE[3]])  # item 12 has the tokens of item 3
    row = Row(prompt(1), (12,), rollouts=((0, 3),))
    groups = Collator(twice, cut_forced=False)([row]).batch.rollouts
    assert groups is not None
    assert groups.hit_GK.tolist() == [[False, True]]


def transform(asked: list[list[list[int]]], seed: int = 0, split: str = "train") -> AddRollouts:
    rows = [Row(prompt(1), (4, 7), number=n) for n in range(6)]

    def ask(some: Sequence[Row], keys: Sequence[Sequence[int]]) -> list[list[list[int]]]:
        asked.append([[row.number for row in some], *map(list, keys)])
        return [[[row.number, 1], [2, row.number]] for row in some]

    items = np.arange(len(CATALOGUE))[::-1]
    return AddRollouts(ask, rows, Sampler(6, 3, seed=1), items, seed, split)


def test_all_rows_of_an_update_are_asked_about_and_own_ones_completed() -> None:
    asked: list[list[list[int]]] = []
    add = transform(asked)
    numbers = add.order.numbers_of(1)
    own = add.rows[numbers[2]]
    (found,) = add([own], 1)
    assert asked[0][0] == numbers
    assert isinstance(found, Row)
    last = len(CATALOGUE) - 1
    assert found.rollouts == ((last - own.number, last - 1), (last - 2, last - own.number))
    assert not add.runs_ahead


def test_keys_depend_on_seed_split_row_target_and_update() -> None:
    asked: list[list[list[int]]] = []
    for add, step in (
        (transform(asked), 0),
        (transform(asked), 0),
        (transform(asked), 2),  # the same rows again, an epoch later
        (transform(asked, seed=1), 0),
        (transform(asked, split="valid"), 0),
    ):
        add([add.rows[add.order.numbers_of(step)[0]]], step)
    assert asked[0] == asked[1]
    assert sorted(asked[0][0] + asked[2][0]) != sorted(set(asked[0][0] + asked[2][0]))  # again
    keys = [key for call in (asked[0], *asked[2:]) for own in call[1:] for key in own]
    assert len(set(keys)) == len(keys) == 4 * 3 * 2
    assert all(0 <= key < 2**63 for key in keys)


def test_a_target_may_be_named_though_the_user_had_it() -> None:
    wanted = Rollouts(2, "top", seen="remove")
    window = Row(prompt(1), (4,), (1, 4, 1, 7))
    assert list_excluded(window, wanted, LEAF_OF_ITEM) == sorted(LEAF_OF_ITEM[[1, 7]].tolist())
    assert list_excluded(window, Rollouts(2, "top"), LEAF_OF_ITEM) == []


def test_a_history_that_leaves_too_few_entries_is_refused() -> None:
    window = Row(prompt(1), (4,), (1, 4, 7))
    fits = Rollouts(len(CATALOGUE) - 2, "top", seen="remove")
    require_rollouts([window], fits, LEAF_OF_ITEM)
    with pytest.raises(DataError, match=r"k = 11: a history of 3 items leaves 10 of 12 entries"):
        require_rollouts([window], replace(fits, k=11), LEAF_OF_ITEM)


# A tiny run with a real policy.


def name_entries(running: Trainer, step: int) -> dict[int, Row]:
    """Rows with their rollouts, by number."""
    rows = [running.train_set.rows[n] for n in running.sampler.numbers_of(step)]
    found = running.train_set.complete_rows(rows, step)
    return {row.number: row for row in found if isinstance(row, Row)}


def rollouts_of(rows: dict[int, Row]) -> list[tuple[tuple[int, ...], ...]]:
    return [row.rollouts for row in rows.values()]


@pytest.mark.parametrize("method", ["grpo", "drawn"])
def test_the_policy_as_it_is_now_is_asked(tmp_path: Path, method: str) -> None:
    """Its first entries by brute force over all of them; after an update, of the new weights."""
    running = job(tmp_path, method, dropout=0.2, learning_rate=0.3)
    running.policy.train()
    before = rollouts_of(name_entries(running, 0))
    with torch.no_grad():
        running.policy.head().weight_VD.mul_(-3)
    after = name_entries(running, 0)
    assert before != rollouts_of(after)
    assert rollouts_of(name_entries(running, 0)) == rollouts_of(after)
    assert running.policy.training
    if method == "drawn":
        later = name_entries(running, 3)  # the next epoch
        both = after.keys() & later.keys()
        assert any(later[n].rollouts != after[n].rollouts for n in both)
        return
    for row in after.values():
        prompts = [window.prompt.tolist() for window in as_windows(row, TINY)]
        score_BL = score_all(running.policy.model, running.trie, prompts, DecodeOptions(k=1))
        first_BK = score_BL.argsort(1, descending=True)[:, :3]
        leaf_BK = running.trie.leaf_of_item_I[torch.tensor(row.rollouts)]
        assert leaf_BK.tolist() == first_BK.tolist()


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", ["grpo", "drawn"])
def test_a_resumed_run_names_the_same_entries(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is stored: killed in the fifth update, it goes on from the fourth to the bit."""
    how: dict[str, Any] = {"learning_rate": 3e-2, "validate_every": 1, "epochs": 3}
    job(tmp_path / "straight", method, **how).train(resume=False)
    forward = PolicyLoss.forward

    def dying(self: PolicyLoss, *args: object) -> object:
        if running.state.step == 4 and torch.is_grad_enabled():
            raise Killed
        return forward(self, *args)  # type: ignore[arg-type]  # passed on

    running = job(tmp_path / "killed", method, **how)
    with monkeypatch.context() as patched:
        patched.setattr(PolicyLoss, "forward", dying)
        with pytest.raises(Killed):
            running.train(resume=False)
    job(tmp_path / "killed", method, **how).train(resume=True)
    rows = metrics(tmp_path / "straight")
    assert metrics(tmp_path / "killed") == rows
    assert final_state(tmp_path / "killed") == final_state(tmp_path / "straight")
    assert len(rows) == 9
    assert rows[-1]["kl"] > 0
    assert sorted(path.name for path in (tmp_path / "straight").iterdir()) == [
        "checkpoints",
        "metrics.jsonl",
    ]
