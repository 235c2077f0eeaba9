"""Packed rows against one row per answer: the same losses and the same gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from llmrec_cli.config.model import ScratchModel
from llmrec_cli.methods.contract import Forward
from llmrec_cli.models.language_model import Policy
from llmrec_cli.models.loading import build_scratch
from llmrec_cli.tensors.legal_softmax import legal_logits
from llmrec_cli.tensors.losses import vocab_nll
from llmrec_cli.tensors.trie import build_trie
from llmrec_cli.training.collator import Collator, MicroBatch, count_tokens
from llmrec_cli.training.rows import PairRow, Row, as_windows

SMALL = ScratchModel(hidden=32, layers=3, heads=2, feed_forward=48, dropout=0.0, vocabulary=300)
EOS = 1
CATALOGUE = [[a, b, c, EOS] for a in (10, 11) for b in (20, 21, 22) for c in (30, 31)]
TRIE = build_trie(CATALOGUE)


def policy(attention: str = "sdpa") -> Policy:
    model, _ = build_scratch(SMALL, ["a title"], (), seed=3)
    model.set_attn_implementation(attention)
    return Policy(model.double().eval())


def prompt(*items: int) -> np.ndarray:
    return np.array([0, *(token for item in items for token in CATALOGUE[item])], dtype=np.int32)


ROWS = [
    Row(prompt(1), (4, 7), (1,), negatives=((0, 5, 9), (3, 11, 2))),
    Row(prompt(), (6,), (), negatives=((7, 1, 0),)),
]


def text(*items: int) -> np.ndarray:
    """A prompt with an end of its own, which is no beginning of the next one."""
    return np.concatenate([prompt(*items), np.array([40, 41], dtype=np.int32)])


USER_ROWS = [
    Row(text(1), (4, 7, 2), (1,), prompts=(text(1), text(1, 4), text(1, 4, 7))),
    Row(text(5), (6,), (5,)),
]
WITH_NEGATIVES = [
    replace(USER_ROWS[0], negatives=((0, 5), (3, 11), (8, 9))),
    replace(USER_ROWS[1], negatives=((7, 1),)),
]


def answer_nll(model: Policy, micro: MicroBatch, *, legal: bool) -> torch.Tensor:
    """Negative log-probability of each answer, float64."""
    hidden_PD = model(micro.input_ids_BT, micro.take_P, tree=micro.tree)[0]
    head, batch = model.head(), micro.batch
    total_A = torch.zeros(batch.answers, dtype=torch.float64)
    if legal:
        found = legal_logits(hidden_PD, head, batch.trie, batch.node_P, batch.target_P)
        return total_A.index_add(0, batch.answer_P[found.active_A], found.nll())
    nll_P = vocab_nll(hidden_PD, head.weight_VD, batch.target_P)
    return total_A.index_add(0, batch.answer_P, nll_P)


def separate_rows(rows: Sequence[Row] = ROWS) -> list[Row]:
    """Every answer of the rows behind its own prompt, in the order of packed answers."""
    found = []
    for row in rows:
        for window in as_windows(row, CATALOGUE):
            for item in (*window.targets, *(n for part in window.negatives for n in part)):
                found.append(replace(window, targets=(item,), negatives=()))
    return found


@pytest.mark.parametrize("legal", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("packed", [ROWS, USER_ROWS, WITH_NEGATIVES])
def test_packed_answers_equal_separate_rows(packed: list[Row], legal: bool, attention: str) -> None:
    gradients = []
    results = []
    for rows in (packed, separate_rows(packed)):
        model = policy(attention)
        micro = Collator(TRIE, cut_forced=legal, rejected=bool(rows[0].negatives))(rows)
        nll_A = answer_nll(model, micro, legal=legal)
        (nll_A * torch.linspace(-1, 1, len(nll_A), dtype=torch.float64)).sum().backward()
        results.append(nll_A)
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*results, rtol=1e-6, atol=0)
    for ours, theirs in zip(*gradients, strict=True):
        assert ours is not None
        assert theirs is not None
        # transformers' norms compute in fp32, whatever the dtype of the model
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


def test_packing_feeds_every_distinct_beginning_once() -> None:
    micro = Collator(TRIE, cut_forced=False, rejected=True)(ROWS)
    beginnings: list[set[tuple[int, ...]]] = [set(), set()]
    for window in separate_rows():
        fed = [*window.prompt.tolist(), *CATALOGUE[window.targets[0]][:-1]]  # EOS is only predicted
        row = 0 if len(window.prompt) > 1 else 1
        beginnings[row] |= {tuple(fed[: n + 1]) for n in range(len(fed))}
    assert micro.input_ids_BT.shape == (2, max(map(len, beginnings)))


def test_windows_of_a_user_feed_their_common_history_once() -> None:
    collate = Collator(TRIE, cut_forced=False)
    micro = collate(USER_ROWS)
    whole = len(text(1, 4, 7)) + 2 * len(text()[1:]) + 3 * len(CATALOGUE[0][:-1])
    shared_answers = 2 * len(CATALOGUE[0][:-1])  # 4 and 7 are also the next windows' history
    assert micro.input_ids_BT.shape[1] <= whole
    assert micro.input_ids_BT.shape[1] >= whole - shared_answers
    windows = separate_rows(USER_ROWS)
    assert micro.tokens < collate(windows).tokens
    assert count_tokens(USER_ROWS, TRIE)[0] >= micro.input_ids_BT.shape[1]


def test_preferences_number_the_answers() -> None:
    batch = Collator(TRIE, cut_forced=False, rejected=True)(ROWS).batch
    preferences = batch.preferences
    assert preferences is not None
    assert preferences.chosen_GC.tolist() == [[0], [4], [8]]
    assert preferences.rejected_GK.tolist() == [[1, 2, 3], [5, 6, 7], [9, 10, 11]]
    assert batch.reference is None


def test_stored_reference_values_travel_with_their_rows() -> None:
    rows = [
        replace(ROWS[0], reference=np.arange(8.0)),
        replace(ROWS[1], reference=np.arange(8.0, 12.0)),
    ]
    batch = Collator(TRIE, cut_forced=False, rejected=True)(rows).batch
    assert batch.reference is not None
    assert batch.reference.tolist() == list(range(12))


def pair_rows() -> list[PairRow]:
    def ids(*tokens: int) -> np.ndarray:
        return np.array(tokens, dtype=np.int32)

    one, two = ids(40, 41, EOS), ids(41, 40, EOS)
    return [
        PairRow((ids(5, 6, 40), ids(5, 6, 42, 43)), ((one, two), (ids(44, EOS), ids(40, EOS)))),
        PairRow((ids(5, 7), ids(8, 7)), ((two, one), (one, two))),
    ]


@pytest.mark.parametrize("rejected", [False, True])
def test_pair_rows_equal_one_sequence_per_answer(rejected: bool) -> None:
    model = policy()
    micro = Collator(TRIE, cut_forced=False, rejected=rejected)(pair_rows())
    assert (micro.tree is not None) == rejected
    nll_A = answer_nll(model, micro, legal=False)
    sides = (0, 1) if rejected else (0,)
    expected = []
    for row in pair_rows():
        for start, answers in zip(row.prompts, row.answers, strict=True):
            for side in sides:
                tokens = torch.tensor([*start.tolist(), *answers[side].tolist()])[None]
                log_p = model.model(tokens).logits[0].log_softmax(-1)
                at = range(len(start), tokens.shape[1])
                expected.append(-sum(log_p[t - 1, int(tokens[0, t])] for t in at))
    torch.testing.assert_close(nll_A, torch.stack(expected), rtol=1e-6, atol=0)


def test_layers_are_the_normed_states_of_the_layers_before_the_last() -> None:
    model = policy()
    micro = Collator(TRIE, cut_forced=False)([replace(ROWS[0], negatives=())])
    hidden_XPD = model(micro.input_ids_BT, micro.take_P, layers=2)
    states = model.model.model(micro.input_ids_BT, output_hidden_states=True)
    for found, layer in zip(hidden_XPD[1:], (2, 1), strict=True):
        expected = model.model.model.norm(states.hidden_states[layer])
        torch.testing.assert_close(found, expected.flatten(0, 1)[micro.take_P])
    expected = states.last_hidden_state.flatten(0, 1)[micro.take_P]
    torch.testing.assert_close(hidden_XPD[0], expected)
    assert Forward(hidden_XPD[0], model.head(), hidden_XPD[1:]).layers_LPD is not None
