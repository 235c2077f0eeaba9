"""The node that tokens lead to, one step after the other: the slow, obvious way."""

from __future__ import annotations

from collections.abc import Sequence

from llmrec_cli.tensors.trie import ROOT, Trie


def walk(trie: Trie, tokens: Sequence[int]) -> int:
    """Node reached from the root by ``tokens``, all of them legal."""
    node = ROOT
    for token in tokens:
        start, end = (int(x) for x in trie.edge_start_N1[node : node + 2])
        node = start + trie.edge_token_E[start:end].tolist().index(token) + 1
    return node
