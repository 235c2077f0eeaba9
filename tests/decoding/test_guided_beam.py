"""A guide in beam search: D3's form, token by token, against slow beams and brute force."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmrec_cli.decoding.search import DecodedLists, rank_catalogue, score_all
from llmrec_cli.tensors.trie import Trie, build_trie
from tests.decoding.search_peers import (
    D3Processor,
    Tokens,
    awkward_catalogue,
    hugging_face_lists,
    ragged_prompts,
    slow_guided_beam,
    small_model,
)
from tests.decoding.test_guide import CATALOGUES, draw_log_probs, make_guide
from tests.decoding.test_search import leaves_of, options


def probabilities_of(trie: Trie, log_prob_BL: Tensor) -> list[dict[Tokens, float]]:
    """Of each user every item's probability under the guide."""
    rows = log_prob_BL.double().exp().tolist()
    return [dict(zip(leaves_of(trie), row, strict=True)) for row in rows]


def list_row(found: DecodedLists, trie: Trie, row: int) -> list[Tokens]:
    leaves = leaves_of(trie)
    return [leaves[leaf] for leaf in found.leaf_BK[row].tolist() if leaf >= 0]


@pytest.mark.parametrize("kind", CATALOGUES)
@pytest.mark.parametrize(("n_beams", "weight"), [(2, 1.0), (4, 0.4), (7, 6.0)])
@pytest.mark.parametrize("mask", ["before", "after"])
def test_a_narrow_beam_keeps_what_a_slow_one_keeps(
    kind: str, n_beams: int, weight: float, mask: str
) -> None:
    model, trie = small_model("llama", 3), build_trie(CATALOGUES[kind](3))
    prompts = ragged_prompts(3)
    log_prob_BL = draw_log_probs(3, len(prompts), trie.n_leaves)
    how = options(k=n_beams, beams=n_beams, search="beam", mask=mask)
    found = rank_catalogue(model, trie, prompts, how, guide=make_guide(log_prob_BL, weight))
    for row, probability in enumerate(probabilities_of(trie, log_prob_BL)):
        slow = slow_guided_beam(model, probability, prompts[row], n_beams, mask, weight)
        assert list_row(found, trie, row) == [tokens for tokens, _ in slow]
        expected = torch.tensor([score for _, score in slow])
        torch.testing.assert_close(found.score_BK[row][: len(slow)], expected, atol=2e-4, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("n_beams", "alpha"), [(3, 0.9), (5, 0.5), (10, 0.2)])
def test_a_guided_beam_gives_the_lists_of_d3s_code(n_beams: int, alpha: float) -> None:
    """Weight (1 - alpha) / alpha: alpha scales all scores alike."""
    model, catalogue = small_model("qwen3", 1), awkward_catalogue(1)
    trie, prompts = build_trie(catalogue), ragged_prompts(1, (9, 3, 14, 1, 6, 6))
    log_prob_BL = draw_log_probs(1, len(prompts), trie.n_leaves)
    processor = D3Processor(
        probabilities_of(trie, log_prob_BL), alpha, n_beams, max(map(len, prompts))
    )
    peers = hugging_face_lists(model, catalogue, prompts, n_beams, "after", 0.0, processor)
    how = options(k=n_beams, beams=n_beams, search="beam", mask="after")
    guide = make_guide(log_prob_BL, (1 - alpha) / alpha)
    found = rank_catalogue(model, trie, prompts, how, guide=guide)
    for row, peer in enumerate(peers):
        assert list_row(found, trie, row) == [tokens for tokens, _ in peer]
        expected = torch.tensor([score for _, score in peer]) / alpha
        torch.testing.assert_close(found.score_BK[row][: len(peer)], expected, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("mask", ["before", "after"])
def test_a_beam_with_a_guide_knows_when_its_list_is_the_true_one(mask: str) -> None:
    proofs, right = [], []
    for seed in range(4):
        model, trie = small_model("llama", seed), build_trie(awkward_catalogue(seed))
        prompts = ragged_prompts(seed)
        log_prob_BL = draw_log_probs(seed, len(prompts), trie.n_leaves)
        joined_BL = score_all(model, trie, prompts, options(mask=mask)) + 0.5 * log_prob_BL
        for beams in (4, 12, 36):
            how = options(k=4, search="beam", beams=beams, mask=mask)
            found = rank_catalogue(model, trie, prompts, how, guide=make_guide(log_prob_BL, 0.5))
            right_B = (found.leaf_BK == joined_BL.topk(4).indices).all(1)
            assert (right_B | ~found.proven_B).all()
            proofs += found.proven_B.tolist()
            right += right_B.tolist()
    assert True in proofs
    assert False in right  # some lists are wrong, and none of them claims to be proven


def test_a_mass_keeps_what_a_beam_without_it_would_drop() -> None:
    """The guide knows the item; the language model would give its first token up."""
    model, trie = small_model("llama", 5, 24.0), build_trie(awkward_catalogue(5))
    alone_L = score_all(model, trie, [[5, 9]], options())[0]
    last = int(alone_L.argmin())
    log_prob_BL = torch.full((1, trie.n_leaves), -60.0)
    log_prob_BL[0, last] = 0.0
    how = options(k=1, search="beam", beams=1)
    found = rank_catalogue(model, trie, [[5, 9]], how, guide=make_guide(log_prob_BL, 50.0))
    assert found.leaf_BK.tolist() == [[last]]
