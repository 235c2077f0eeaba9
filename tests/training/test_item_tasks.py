"""Item tasks: what their rows say, how many there are, and what training makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from llmrec_cli.config.data import ITEM_TASKS, ItemTask
from llmrec_cli.data.prompts import Template, load_template
from llmrec_cli.errors import DataError
from llmrec_cli.methods.contract import Forward
from llmrec_cli.methods.lml import METHOD, LmlOptions
from llmrec_cli.models.language_model import Policy
from llmrec_cli.models.tokenizer import Codec, add_item_tokens, make_codec, train_tokenizer
from llmrec_cli.tensors.trie import build_trie
from llmrec_cli.training.collator import Collator, Limits, count_tokens, split_kinds
from llmrec_cli.training.item_tasks import ItemTaskEncoder, ItemTaskRows
from llmrec_cli.training.rows import AnyRow, PairRow, Ragged, Row, TextRow, encode_catalogue

TITLES = ["Red kite", "Blue kite</s>", "Red\nkite, large", None, "Top"]
DESCRIPTIONS = ["Flies high. " * 40, None, "Large", "", "Spins & hums"]
IDS = [
    ["<a_0>", "<b_0>"],
    ["<a_0>", "<b_1>"],
    ["<a_1>", "<b_0>"],
    ["<a_1>", "<b_1>"],
    ["<a_2>", "<b_0>"],
]
ITEMS = pd.DataFrame(
    {
        "item_id": [f"B{i}" for i in range(len(TITLES))],
        "title": TITLES,
        "description": DESCRIPTIONS,
        "tokens": IDS,
    }
)
SHARES: dict[ItemTask, float] = {"title_to_id": 0.3, "id_to_title": 0.2, "description_to_id": 0.1}


@pytest.fixture(scope="module")
def codec() -> Codec:
    texts = ["Given a title, name it. Red kite, blue kite"]
    tokenizer = train_tokenizer(texts, vocabulary=300)
    names = sorted({token for tokens in IDS for token in tokens})
    add_item_tokens(tokenizer, names)
    return make_codec(tokenizer, names)


def encoder(codec: Codec, template: Template | None = None, **changes: object) -> ItemTaskEncoder:
    found = template or load_template("items", lambda path: pytest.fail(path))
    made = ItemTaskEncoder(
        found.map_words(codec.mark_words),
        codec,
        ITEMS,
        Ragged.of(encode_catalogue(ITEMS, codec)),
        most=512,
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # any of its fields


def spelt(codec: Codec, row: Row | TextRow) -> tuple[str, str]:
    answer = row.answer if isinstance(row, TextRow) else ITEMS.tokens[row.targets[0]]
    spelt_answer = "".join(answer) if isinstance(row, Row) else codec.spell(row.answer.tolist())
    return codec.spell(row.prompt.tolist()), spelt_answer


LAYOUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\n{}"
    "\n\n### Input:\n{}\n\n### Response:\n"
)


def test_rows_say_what_the_template_says_with_the_task_s_own_instruction(codec: Codec) -> None:
    made = encoder(codec)
    assert spelt(codec, made.encode("title_to_id", [0])[0]) == (
        LAYOUT.format("Given the title of an item, please name the item.", '"Red kite"'),
        "<a_0><b_0>",
    )
    assert spelt(codec, made.encode("id_to_title", [2])[0]) == (
        LAYOUT.format("Given an item, please tell its title.", "<a_1><b_0>"),
        '"Red\nkite, large"</s>',  # as the title of an item that is known by it
    )
    assert spelt(codec, made.encode("description_to_id", [4])[0]) == (
        LAYOUT.format("Given the description of an item, please name the item.", "Spins & hums"),
        "<a_2><b_0>",
    )


def test_a_title_stays_on_its_line_and_ends_nothing(codec: Codec) -> None:
    broken, special = encoder(codec).encode("title_to_id", [2, 1])
    assert '"Red kite, large"' in spelt(codec, broken)[0]
    assert '"Blue kite</s>"' in spelt(codec, special)[0]
    assert codec.eos not in special.prompt
    (row,) = encoder(codec).encode("id_to_title", [1])
    assert isinstance(row, TextRow)
    assert list(row.answer).index(codec.eos) == len(row.answer) - 1


def test_the_tokens_of_an_id_are_those_of_the_catalogue(codec: Codec) -> None:
    (row,) = encoder(codec).encode("id_to_title", [1])
    ids = codec.tokenizer.convert_tokens_to_ids(IDS[1])
    assert str(ids)[1:-1] in str(row.prompt.tolist())


def test_a_description_is_cut_to_its_budget(codec: Codec) -> None:
    whole = encoder(codec)
    short = encoder(codec, replace(whole.template, item_description_tokens=9))
    shown = spelt(codec, short.encode("description_to_id", [0])[0])[0]
    text = shown.partition("### Input:\n")[2].partition("\n\n###")[0]
    assert DESCRIPTIONS[0].startswith(text)  # type: ignore[union-attr]  # it has one
    assert 0 < len(codec.encode([text])[0]) <= 9


def test_as_turns_of_a_chat(codec: Codec) -> None:
    def frame(system: str, user: Sequence[str]) -> list[str]:
        first, *others = user
        return [f"[{system}|{first}", *others[:-1], f"{others[-1]}]"] if others else [first]

    template = load_template("items", lambda path: pytest.fail(path)).as_chat(frame)
    made = encoder(codec, template)
    assert spelt(codec, made.encode("title_to_id", [0])[0])[0] == (
        '[Given the title of an item, please name the item.|"Red kite"]'
    )
    assert spelt(codec, made.encode("id_to_title", [0])[0])[0] == (
        "[Given an item, please tell its title.|<a_0><b_0>]"
    )


def count_rows(found: Sequence[ItemTaskRows]) -> dict[str, int]:
    return {each.task: len(each.rows) for each in found}


def test_each_task_has_its_share_of_all_answers(codec: Codec) -> None:
    made = encoder(codec).make_rows(SHARES, n_answers=400, first=7, seed=0)
    assert count_rows(made) == {"title_to_id": 300, "id_to_title": 200, "description_to_id": 100}
    numbers = [row.number for found in made for row in found.rows]
    assert numbers == list(range(7, 607))
    assert [(f.items, f.lacking, f.too_long) for f in made] == [(4, 1, 0), (4, 1, 0), (3, 2, 0)]
    assert made[2].describe() == "description_to_id 100 (3 items; 2 without a description)"


def test_a_small_share_still_has_a_row(codec: Codec) -> None:
    (made,) = encoder(codec).make_rows({"title_to_id": 0.001}, n_answers=10, first=0, seed=0)
    assert len(made.rows) == 1


def targets(found: ItemTaskRows) -> list[int]:
    return [row.targets[0] for row in found.rows if isinstance(row, Row)]


def test_every_item_has_its_turn_before_one_has_a_second(codec: Codec) -> None:
    (made,) = encoder(codec).make_rows({"title_to_id": 0.5}, n_answers=10, first=0, seed=0)
    for start in range(0, 10, 4):
        turn = targets(made)[start : start + 4]
        assert len(set(turn)) == len(turn)
    assert set(Counter(targets(made))) == {0, 1, 2, 4}


def test_the_seed_alone_decides_which_items_come(codec: Codec) -> None:
    def drawn(seed: int) -> list[int]:
        (made,) = encoder(codec).make_rows({"title_to_id": 0.5}, n_answers=2, first=0, seed=seed)
        return targets(made)

    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(20)}) > 1


def test_rows_without_room_are_left_out_and_counted(codec: Codec) -> None:
    lengths = sorted(len(row.prompt) for row in encoder(codec).encode("title_to_id", [0, 1, 2, 4]))
    (made,) = encoder(codec, most=lengths[-2]).make_rows(
        {"title_to_id": 0.5}, n_answers=40, first=0, seed=0
    )
    assert (made.items, made.too_long, len(made.rows)) == (3, 1, 40)
    assert made.describe().endswith("(3 items; 1 without a title, 1 too long)")


def test_prompt_and_title_together_have_to_fit_the_backbone(codec: Codec) -> None:
    rows = encoder(codec).encode("id_to_title", [0, 1, 2, 4])
    whole = sorted(len(r.prompt) + len(r.answer) for r in rows if isinstance(r, TextRow))
    (made,) = encoder(codec, positions=whole[0]).make_rows(
        {"id_to_title": 0.5}, n_answers=4, first=0, seed=0
    )
    fits = sum(n == whole[0] for n in whole)
    assert (made.items, made.too_long) == (fits, 4 - fits)
    assert fits < 4


def test_a_small_share_looks_on_behind_items_without_room(codec: Codec) -> None:
    """One row is wanted, and one item has room: whichever the seed puts first."""
    shortest = min(len(row.prompt) for row in encoder(codec).encode("title_to_id", [0, 1, 2, 4]))
    for seed in range(10):
        (made,) = encoder(codec, most=shortest).make_rows(
            {"title_to_id": 0.01}, n_answers=10, first=0, seed=seed
        )
        assert (made.items, len(made.rows)) == (1, 1)
        assert len(made.rows[0].prompt) == shortest


@pytest.mark.parametrize("task", ITEM_TASKS)
def test_no_item_that_serves_is_an_error(codec: Codec, task: ItemTask) -> None:
    narrow = encoder(codec, most=3)
    with pytest.raises(DataError, match=rf"item_tasks\.{task}: no item serves.* in 3 tokens"):
        narrow.make_rows({task: 0.5}, n_answers=4, first=0, seed=0)
    with pytest.raises(DataError, match="no item serves"):
        narrow.show_first(task)


# Training on them.


def mixed_rows(codec: Codec) -> list[AnyRow]:
    found = encoder(codec).make_rows(SHARES, n_answers=8, first=0, seed=0)
    return [row for each in found for row in each.rows]


def test_a_pass_has_rows_of_one_kind(codec: Codec) -> None:
    rows = mixed_rows(codec)
    trie = build_trie(encode_catalogue(ITEMS, codec))
    for limits in (Limits(), Limits(rows=2), Limits(tokens=100)):
        parts = Collator(trie, cut_forced=False).split(rows, limits)
        assert all(len({type(row) for row in part}) == 1 for part in parts)
        assert sorted(row.number for part in parts for row in part) == list(range(len(rows)))
    assert split_kinds([]) == []


def test_lml_of_a_text_row_is_cross_entropy_of_its_answer(codec: Codec) -> None:
    """Against transformers' logits of each row alone, float64."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(codec.tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config).double().eval()
    rows = mixed_rows(codec)
    texts = [row for row in rows if isinstance(row, TextRow)]
    trie = build_trie(encode_catalogue(ITEMS, codec))
    policy, total, positions = Policy(model), 0.0, 0
    for part in Collator(trie, cut_forced=False).split(rows, Limits()):
        micro = Collator(trie, cut_forced=False)(part)
        hidden_PD = policy(micro.input_ids_BT, micro.take_P, tree=micro.tree)[0]
        found = METHOD.loss(Forward(hidden_PD, policy.head()), micro.batch, LmlOptions(), {})
        total += float(found.total.detach())
        positions += int(found.count)
    expected, count = 0.0, 0
    catalogue = encode_catalogue(ITEMS, codec)
    for row in rows:
        assert not isinstance(row, PairRow)
        answer = row.answer if isinstance(row, TextRow) else catalogue[row.targets[0]]
        ids = torch.tensor([*row.prompt, *answer]).long()
        logits = model(ids[None]).logits[0, len(row.prompt) - 1 : -1]
        expected += float(F.cross_entropy(logits.detach(), ids[len(row.prompt) :], reduction="sum"))
        count += len(answer)
    assert texts
    assert positions == count
    assert total == pytest.approx(expected, rel=1e-5)


def test_tokens_of_a_text_row_are_its_prompt_and_its_answer() -> None:
    trie = build_trie([[5, 2], [6, 2]])
    row = TextRow(np.array([1, 2, 3], np.int32), np.array([7, 8, 2], np.int32))
    item_row = Row(np.array([1], np.int32), (0,))
    assert count_tokens([row, item_row], trie) == [6, 3]
