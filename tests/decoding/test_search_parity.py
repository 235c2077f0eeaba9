"""Our beam search gives Hugging Face's lists, item by item."""

from __future__ import annotations

import pytest
import torch

from llmrec_cli.decoding.search import DecodeOptions, rank_catalogue, score_all
from llmrec_cli.tensors.trie import build_trie, paths
from tests.decoding.search_peers import (
    Mask,
    awkward_catalogue,
    hugging_face_lists,
    ragged_prompts,
    slow_scores,
    small_model,
)


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["before", "after"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize(
    ("kind", "seed", "sharpness", "n_beams"),
    [
        ("llama", 0, 8.0, 5),
        ("qwen3", 1, 8.0, 10),
        ("llama", 2, 1.0, 4),
        ("qwen3", 3, 24.0, 3),
        ("llama", 4, 16.0, 20),
    ],
)
def test_beam_search_gives_hugging_faces_lists(
    kind: str, seed: int, sharpness: float, n_beams: int, mask: Mask, length_penalty: float
) -> None:
    model, catalogue = small_model(kind, seed, sharpness), awkward_catalogue(seed)
    trie, prompts = build_trie(catalogue), ragged_prompts(seed, (9, 3, 14, 1, 6, 6, 7, 20))
    options = DecodeOptions(
        k=n_beams, beams=n_beams, search="beam", mask=mask, length_penalty=length_penalty
    )
    ours = rank_catalogue(model, trie, prompts, options)
    _, token_LT, length_L = paths(trie, torch.arange(trie.n_leaves))
    peers = hugging_face_lists(model, catalogue, prompts, n_beams, mask, length_penalty)
    for row, peer in enumerate(peers):
        leaves = ours.leaf_BK[row][ours.leaf_BK[row] >= 0]
        listed = [tuple(token_LT[leaf, : length_L[leaf]].tolist()) for leaf in leaves]
        assert listed == [tokens for tokens, _ in peer]
        expected = torch.tensor([score for _, score in peer])
        torch.testing.assert_close(ours.score_BK[row][: len(peer)], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["before", "after"])
def test_a_beam_knows_when_its_list_is_the_true_one(mask: Mask) -> None:
    proofs = []
    for seed in range(6):
        model, trie = small_model("llama", seed), build_trie(awkward_catalogue(seed))
        prompts = ragged_prompts(seed)
        true_BK = score_all(model, trie, prompts, DecodeOptions(k=4, mask=mask)).topk(4).indices
        for beams in (4, 12, 60):
            how = DecodeOptions(k=4, search="beam", beams=beams, mask=mask)
            found = rank_catalogue(model, trie, prompts, how)
            right_B = (found.leaf_BK == true_BK).all(1)
            assert (right_B | ~found.proven_B).all()
            proofs += found.proven_B.tolist()
            if beams == 60:  # as wide as the catalogue: nothing is ever lost
                assert found.proven
    assert not all(proofs)


def test_a_positive_length_penalty_proves_nothing() -> None:
    model, trie = small_model("llama", 0), build_trie(awkward_catalogue(0))
    how = DecodeOptions(k=4, search="beam", beams=60, length_penalty=1.0)
    assert not rank_catalogue(model, trie, ragged_prompts(0), how).proven_B.any()


def test_a_wider_beam_serves_excluded_leaves() -> None:
    model, trie = small_model("llama", 3), build_trie(awkward_catalogue(3))
    prompt = ragged_prompts(3)[:1]
    _, token_LT, length_L = paths(trie, torch.arange(trie.n_leaves))
    leaves = [tuple(t[:n]) for t, n in zip(token_LT.tolist(), length_L.tolist(), strict=True)]
    order = slow_scores(model, leaves, prompt[0]).argsort(descending=True).tolist()
    how = DecodeOptions(k=3, search="beam", beams=60)
    found = rank_catalogue(model, trie, prompt, how, [order[:2]])
    assert found.leaf_BK[0].tolist() == order[:5]
