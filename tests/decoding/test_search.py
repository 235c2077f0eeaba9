"""Exact search and all-items scoring against slow references, and what must not matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

from llmrec_cli.decoding.search import DecodedLists, DecodeOptions, rank_catalogue, score_all
from llmrec_cli.errors import ArtefactError, DataError, NumbersError, RecipeError
from llmrec_cli.tensors.trie import Trie, build_trie, paths
from tests.decoding.search_peers import (
    awkward_catalogue,
    legal_tokens,
    ragged_prompts,
    slow_scores,
    small_model,
)

WORLDS = [("llama", 0, 8.0), ("qwen3", 1, 8.0), ("llama", 2, 1.0), ("qwen3", 3, 24.0)]


def leaves_of(trie: Trie) -> list[tuple[int, ...]]:
    _, token_LT, length_L = paths(trie, torch.arange(trie.n_leaves))
    return [tuple(row[:n]) for row, n in zip(token_LT.tolist(), length_L.tolist(), strict=True)]


def options(**changes: object) -> DecodeOptions:
    return DecodeOptions(**{"k": 6, **changes})  # type: ignore[arg-type]


def expect_top(
    found: DecodedLists, score_BL: Tensor, k: int, exclude: Sequence[Sequence[int]] = ()
) -> None:
    """``found`` is the best of ``score_BL``: same leaves in the same order, same scores."""
    for row, score_L in enumerate(score_BL):
        banned = set(exclude[row]) if exclude else set()
        expected: list[int] = []
        for leaf in score_L.argsort(descending=True, stable=True).tolist():
            if sum(other not in banned for other in expected) == k:
                break
            expected.append(leaf)
        listed = found.leaf_BK[row][found.leaf_BK[row] >= 0]
        assert listed.tolist() == expected
        scores = found.score_BK[row][: len(expected)]
        torch.testing.assert_close(scores, score_L[expected].float(), atol=1e-4, rtol=0)
        assert found.score_BK[row][len(expected) :].isneginf().all()
    assert found.proven


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seed", "sharpness"), WORLDS)
@pytest.mark.parametrize(
    ("mask", "temperature"), [("before", 1.0), ("before", 2.5), ("after", 1.0)]
)
def test_all_items_equal_one_leaf_at_a_time(
    kind: str, seed: int, sharpness: float, mask: str, temperature: float
) -> None:
    model, trie = small_model(kind, seed, sharpness), build_trie(awkward_catalogue(seed))
    prompts = ragged_prompts(seed)
    found = score_all(model, trie, prompts, options(mask=mask, temperature=temperature))
    for prompt, score_L in zip(prompts, found, strict=True):
        slow = slow_scores(model, leaves_of(trie), prompt, mask, temperature)
        torch.testing.assert_close(score_L, slow.float(), atol=1e-4, rtol=1e-5)
    total_B = found.exp().sum(1)
    if mask == "before":
        torch.testing.assert_close(total_B, torch.ones_like(total_B), atol=1e-5, rtol=0)
    else:
        assert (total_B < 1).all()


@pytest.mark.parametrize(("kind", "seed", "sharpness"), WORLDS)
@pytest.mark.parametrize("mask", ["before", "after"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_exact_search_equals_all_items(
    kind: str, seed: int, sharpness: float, mask: str, temperature: float
) -> None:
    model, trie = small_model(kind, seed, sharpness), build_trie(awkward_catalogue(seed))
    prompts, how = ragged_prompts(seed), {"mask": mask, "temperature": temperature}
    score_BL = score_all(model, trie, prompts, options(**how))
    expect_top(rank_catalogue(model, trie, prompts, options(**how)), score_BL, 6)
    expect_top(rank_catalogue(model, trie, prompts, options(search="all", **how)), score_BL, 6)


@pytest.mark.parametrize("mask", ["before", "after"])
@pytest.mark.parametrize("search", ["exact", "all"])
def test_excluded_leaves_stay_in_the_list_but_do_not_count(mask: str, search: str) -> None:
    model, trie = small_model("llama", 5), build_trie(awkward_catalogue(5))
    prompts = ragged_prompts(5)
    score_BL = score_all(model, trie, prompts, options(mask=mask))
    best_BL = score_BL.argsort(descending=True).tolist()
    exclude = [row[:4] + row[6:8] + row[:1] for row in best_BL[:-1]] + [[]]
    how = options(mask=mask, search=search)
    found = rank_catalogue(model, trie, prompts, how, exclude)
    expect_top(found, score_BL, 6, exclude)
    assert found.leaf_BK.shape[1] == 6 + 6  # a leaf that is named twice is one leaf


def test_narrow_rounds_and_many_batches_find_the_same_lists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, trie = small_model("qwen3", 7), build_trie(awkward_catalogue(7, 200))
    prompts = ragged_prompts(7, range(1, 24))
    whole = rank_catalogue(model, trie, prompts, options())
    score_BL = score_all(model, trie, prompts, options())
    monkeypatch.setattr("llmrec_cli.decoding.search._count_tokens", lambda k, n: 1)
    monkeypatch.setattr("llmrec_cli.decoding.search._TREE_TOKENS", 7)
    done: list[int] = []
    narrow = rank_catalogue(model, trie, prompts, options(batch=5), (), done.append)
    assert done == [5, 5, 5, 5, 3]
    assert torch.equal(narrow.leaf_BK, whole.leaf_BK)
    torch.testing.assert_close(
        score_all(model, trie, prompts, options(batch=5)), score_BL, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("search", ["exact", "beam", "all"])
@pytest.mark.parametrize("mask", ["before", "after"])
@pytest.mark.parametrize("shared", [0, 12])
def test_a_batch_of_ragged_prompts_equals_one_by_one(search: str, mask: str, shared: int) -> None:
    model, trie = small_model("llama", 11), build_trie(awkward_catalogue(11))
    prompts = [[7] * shared + prompt for prompt in ragged_prompts(11)]
    how = options(search=search, mask=mask)
    together = rank_catalogue(model, trie, prompts, how)
    assert not together.score_BK.isnan().any()
    for row, prompt in enumerate(prompts):
        alone = rank_catalogue(model, trie, [prompt], how)
        assert torch.equal(alone.leaf_BK[0], together.leaf_BK[row])
        torch.testing.assert_close(alone.score_BK[0], together.score_BK[row], atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "eager"},
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        {"use_sliding_window": True, "sliding_window": 5, "attn_implementation": "eager"},
        {"tie_word_embeddings": True},
    ],
)
def test_attention_kinds_and_sliding_windows(changes: dict[str, Any]) -> None:
    model, trie = small_model("qwen3", 13, **changes), build_trie(awkward_catalogue(13))
    prompts = [[4] * 10 + prompt for prompt in ragged_prompts(13)]
    for kept in (prompts, [prompt[5:] for prompt in prompts]):  # with and without a shared prefix
        found = rank_catalogue(model, trie, kept, options())
        slow = [slow_scores(model, leaves_of(trie), prompt) for prompt in kept]
        expect_top(found, torch.stack(slow), 6)


@pytest.mark.parametrize("search", ["exact", "beam", "all"])
@pytest.mark.parametrize("mask", ["before", "after"])
@pytest.mark.parametrize(
    "catalogue", [[[5, 1]], [[1]], [[5, 6, 7, 1]], [[5, 6, 1], [5, 6, 7, 1], [5, 6, 1]]]
)
def test_catalogues_smaller_than_k(search: str, mask: str, catalogue: list[list[int]]) -> None:
    model, trie = small_model("llama", 17), build_trie(catalogue)
    prompts = ragged_prompts(17)
    found = rank_catalogue(model, trie, prompts, options(search=search, mask=mask))
    expect_top(found, score_all(model, trie, prompts, options(mask=mask)), 6)


def test_a_generation_config_that_samples_changes_nothing() -> None:
    model, trie = small_model("llama", 19), build_trie(awkward_catalogue(19))
    prompts = ragged_prompts(19)
    before = [rank_catalogue(model, trie, prompts, options(search=s)) for s in ("exact", "beam")]
    config = model.generation_config
    config.do_sample, config.top_k, config.temperature = True, 2, 0.3
    config.repetition_penalty, config.num_beams, config.length_penalty = 3.0, 3, 2.0
    after = [rank_catalogue(model, trie, prompts, options(search=s)) for s in ("exact", "beam")]
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.leaf_BK, other.leaf_BK)
        assert torch.equal(one.score_BK, other.score_BK)


def test_training_mode_dropout_and_gradients_are_left_as_they_were() -> None:
    model, trie = small_model("llama", 23, attention_dropout=0.5), build_trie(awkward_catalogue(23))
    expected = rank_catalogue(model, trie, ragged_prompts(23), options())
    model.train()
    frozen = model.get_decoder().layers[0].eval()
    found = rank_catalogue(model, trie, ragged_prompts(23), options())
    assert torch.equal(found.leaf_BK, expected.leaf_BK)
    assert model.training
    assert not frozen.training
    assert torch.is_grad_enabled()
    assert all(p.grad is None for p in model.parameters())


# PEFT 0.18 .. 0.20 still asks transformers for a property that was renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_a_peft_model_equals_its_merged_copy(targets: list[str]) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    wrapped = peft.get_peft_model(small_model("llama", 29), config).eval()
    trie, prompts = build_trie(awkward_catalogue(29)), ragged_prompts(29)
    found = rank_catalogue(wrapped, trie, prompts, options())
    base = rank_catalogue(small_model("llama", 29), trie, prompts, options())
    assert not torch.equal(found.score_BK, base.score_BK)
    merged = wrapped.merge_and_unload()
    expect_top(found, score_all(merged, trie, prompts, options()), 6)


@pytest.mark.parametrize("search", ["exact", "beam", "all"])
def test_bfloat16_runs_and_scores_in_fp32(search: str) -> None:
    trie, prompts = build_trie(awkward_catalogue(31)), ragged_prompts(31)
    model = small_model("llama", 31)
    expected = score_all(model, trie, prompts, options())
    found = rank_catalogue(model.bfloat16(), trie, prompts, options(search=search))
    assert found.score_BK.dtype == torch.float32
    assert not found.score_BK.isnan().any()
    there = expected.gather(1, found.leaf_BK)
    assert (found.score_BK - there).abs().mean() < 0.5
    assert (found.score_BK != found.score_BK.bfloat16()).any()


@torch.no_grad()
def test_without_length_forced_tokens_play_no_part() -> None:
    """D3's score (arXiv:2406.14900) with its ghost tokens, those that are forced, left out."""
    model, items = small_model("llama", 21), awkward_catalogue(21)
    trie, prompts = build_trie(items), ragged_prompts(21)
    legal, forced = legal_tokens(items), 0
    rows = []
    for prompt in prompts:
        scores = []
        for leaf in leaves_of(trie):
            log_prob_TV = model(torch.tensor([[*prompt, *leaf]])).logits[0].double()
            total = 0.0
            for at, token in enumerate(leaf):
                choices = legal[leaf[:at]]
                if len(choices) == 1:
                    forced += 1
                    continue
                among = log_prob_TV[len(prompt) - 1 + at][choices].log_softmax(0)
                total += float(among[choices.index(token)])
            scores.append(total)
        rows.append(torch.tensor(scores))
    assert forced > 100
    expect_top(rank_catalogue(model, trie, prompts, options()), torch.stack(rows), 6)


@pytest.mark.parametrize("search", ["exact", "beam", "all"])
def test_a_longer_title_gains_by_its_length_alone(search: str) -> None:
    """Six forced tokens behind the last choice: the plain sum stays, the divided one rises."""
    model, items = small_model("llama", 22), awkward_catalogue(22)
    legal = legal_tokens(items)
    chosen = next(
        at
        for at, item in enumerate(items)
        if items.count(item) == 1 and len(legal[tuple(item[:-1])]) == 1
    )
    longer = [list(item) for item in items]
    longer[chosen][-1:-1] = [40] * 6
    prompts = ragged_prompts(22)

    def score_item(items: list[list[int]], length_penalty: float) -> Tensor:
        trie = build_trie(items)
        every = trie.n_leaves
        how = options(search=search, k=every, beams=every, length_penalty=length_penalty)
        found = rank_catalogue(model, trie, prompts, how)
        return found.score_BK[found.leaf_BK == trie.leaf_of_item_I[chosen]]

    plain, n = score_item(items, 0.0), len(items[chosen])
    torch.testing.assert_close(score_item(longer, 0.0), plain, atol=1e-5, rtol=0)
    if search != "exact":
        torch.testing.assert_close(score_item(items, 1.0), plain / n, atol=1e-5, rtol=0)
        torch.testing.assert_close(score_item(longer, 1.0), plain / (n + 6), atol=1e-5, rtol=0)


def test_length_penalty_divides_when_all_items_are_scored() -> None:
    model, trie = small_model("llama", 37), build_trie(awkward_catalogue(37))
    prompts = ragged_prompts(37)
    plain = score_all(model, trie, prompts, options())
    _, _, length_L = paths(trie, torch.arange(trie.n_leaves))
    how = options(search="all", length_penalty=1.0)
    expect_top(rank_catalogue(model, trie, prompts, how), plain / length_L, 6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": 0}, "k = 0: must be at least 1"),
        ({"temperature": 0.0}, "temperature = 0.0: must be > 0"),
        ({"length_penalty": 1.0}, "length_penalty = 1.0: must be 0 with search = 'exact'"),
        ({"search": "beam", "beams": 5}, "beams = 5: must be at least k = 6"),
    ],
)
def test_options_that_make_no_sense(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        options(**wrong)


def test_input_that_makes_no_sense() -> None:
    model, trie = small_model("llama", 0), build_trie(awkward_catalogue(0))
    with pytest.raises(DataError, match="prompt 1: no tokens"):
        rank_catalogue(model, trie, [[3], []], options())
    with pytest.raises(DataError, match="exclude has 1 rows: expected one for each of 2"):
        rank_catalogue(model, trie, [[3], [4]], options(), [[0]])
    with pytest.raises(DataError, match="exclude row 1: leaf 9999"):
        rank_catalogue(model, trie, [[3], [4]], options(), [[0], [9999]])
    with pytest.raises(ArtefactError, match="token 999, the model a vocabulary of 61"):
        rank_catalogue(model, build_trie([[999, 1]]), [[3]], options())
    assert rank_catalogue(model, trie, [], options()).leaf_BK.shape == (0, 6)


@pytest.mark.parametrize("search", ["exact", "beam", "all"])
def test_a_model_of_nan_is_an_error(search: str) -> None:
    model = small_model("llama", 0)
    with torch.no_grad():
        model.get_decoder().norm.weight.fill_(torch.nan)
    with pytest.raises(NumbersError, match="NaN"):
        rank_catalogue(model, build_trie(awkward_catalogue(0)), [[3]], options(search=search))


def test_a_kernel_that_ignores_masks_gives_way_while_decoding() -> None:
    model, trie = small_model("llama", 0), build_trie(awkward_catalogue(0))
    prompts = [[3, 4], [5]]
    expected = rank_catalogue(model, trie, prompts, options())
    model.set_attn_implementation("flex_attention")
    found = rank_catalogue(model, trie, prompts, options())
    assert torch.equal(found.leaf_BK, expected.leaf_BK)
    assert model.config._attn_implementation == "flex_attention"


def test_layers_without_attention_are_an_error() -> None:
    model = small_model("qwen3", 0)
    model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ArtefactError, match="'qwen3' has layers of type linear_attention"):
        rank_catalogue(model, build_trie(awkward_catalogue(0)), [[3, 4], [5]], options())


def test_a_mistral_slides_in_every_layer() -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=4, initializer_range=0.3,
    )  # fmt: skip
    model, trie = MistralForCausalLM(config).eval(), build_trie(awkward_catalogue(0))
    prompts = [[4] * 10 + prompt for prompt in ragged_prompts(0)]
    slow = [slow_scores(model, leaves_of(trie), prompt) for prompt in prompts]
    expect_top(rank_catalogue(model, trie, prompts, options()), torch.stack(slow), 6)


titles = st.lists(st.integers(3, 12), min_size=1, max_size=5).map(lambda tokens: [*tokens, 1])


@given(
    st.lists(titles, min_size=1, max_size=25),
    st.lists(st.lists(st.integers(2, 60), min_size=1, max_size=8), min_size=1, max_size=3),
    st.integers(1, 8),
    st.sampled_from([0.0, 1.0, 8.0, 40.0]),
    st.integers(0, 50),
    st.booleans(),
)
@settings(max_examples=16, deadline=None)
def test_any_catalogue_is_ranked_as_by_brute_force(
    catalogue: list[list[int]],
    prompts: list[list[int]],
    k: int,
    sharpness: float,
    seed: int,
    narrow: bool,
) -> None:
    """Every leaf for itself through the model, sorted; equal scores may change places."""
    model, trie = small_model("llama", seed, sharpness), build_trie(catalogue)
    with pytest.MonkeyPatch.context() as patch:
        if narrow:  # one prefix a round: the search ends by its bound, not by having seen all
            patch.setattr("llmrec_cli.decoding.search._count_tokens", lambda k, n: 1)
        found = rank_catalogue(model, trie, prompts, options(k=k))
    assert found.proven
    for row, prompt in enumerate(prompts):
        slow = slow_scores(model, leaves_of(trie), prompt, "before", 1.0).float()
        listed = found.leaf_BK[row][found.leaf_BK[row] >= 0]
        best = slow.sort(descending=True).values[:k]
        assert len(listed) == min(k, trie.n_leaves) == len(set(listed.tolist()))
        torch.testing.assert_close(slow[listed], best, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.score_BK[row][: len(listed)], best, atol=1e-4, rtol=0)


def record_widths(model: Any) -> list[int]:
    """Tokens of one row in each call of the model's body from now on."""
    widths: list[int] = []

    def note(body: object, given: object, named: dict[str, Any]) -> None:
        widths.append(named["input_ids"].shape[1])

    model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    return widths


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["before", "after"])
@pytest.mark.parametrize("search", ["exact", "beam", "all"])
def test_an_opening_of_all_items_is_read_with_the_prompt(search: str, mask: str) -> None:
    model = small_model("llama", 13)
    trie = build_trie([[7, 8, 9, *item] for item in awkward_catalogue(13)])
    prompts = ragged_prompts(13)
    how = options(mask=mask, search=search, beams=trie.n_leaves)
    widths = record_widths(model)
    found = rank_catalogue(model, trie, prompts, how)
    assert widths[0] == max(map(len, prompts)) + (3 if mask == "before" else 0)
    slow = [slow_scores(model, leaves_of(trie), prompt, mask) for prompt in prompts]
    expect_top(found, torch.stack(slow), 6)


@pytest.mark.slow
@pytest.mark.parametrize("search", ["beam", "all"])
def test_an_opening_counts_as_length(search: str) -> None:
    model = small_model("llama", 14)
    trie = build_trie([[7, 8, 9, *item] for item in awkward_catalogue(14)])
    prompts = ragged_prompts(14)
    how = options(search=search, beams=trie.n_leaves, length_penalty=1.0)
    found = rank_catalogue(model, trie, prompts, how)
    slow = torch.stack([slow_scores(model, leaves_of(trie), prompt) for prompt in prompts])
    score_BL = slow / torch.tensor([len(leaf) for leaf in leaves_of(trie)])
    expected = score_BL.topk(6)
    assert torch.equal(found.leaf_BK[:, :6], expected.indices)
    torch.testing.assert_close(found.score_BK[:, :6], expected.values.float(), atol=1e-4, rtol=0)


def test_a_catalogue_of_one_item_has_no_opening() -> None:
    model, trie = small_model("llama", 15), build_trie([[7, 8, 1]])
    found = rank_catalogue(model, trie, [[5, 6]], options(k=1))
    assert found.leaf_BK.tolist() == [[0]]
    assert found.score_BK.tolist() == [[0.0]]


def test_a_round_reads_a_bounded_number_of_tokens() -> None:
    draw = torch.Generator().manual_seed(16)
    stems = torch.randint(3, 60, (60, 5), generator=draw).tolist()
    trie = build_trie([[*stem, last, 1] for stem in stems for last in (3, 4)])
    model, prompts = small_model("llama", 16, 1.0), ragged_prompts(16)
    widths = record_widths(model)
    found = rank_catalogue(model, trie, prompts, options(k=10))
    assert len(widths) > 2
    assert max(widths[1:]) <= 16  # at least three prefixes of five tokens; 16 of them before
    slow = [slow_scores(model, leaves_of(trie), prompt) for prompt in prompts]
    expect_top(found, torch.stack(slow), 10)
