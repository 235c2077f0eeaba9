"""One point of ``benchmarks.growth``, in the process that this module is run in.

``python -m benchmarks.growth_point '{"items": 1000}'`` prints what it measured as JSON.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from dataclasses import asdict, fields

import numpy as np
import torch
from torch import Tensor

from benchmarks.decoding import EOS, FIRST, Shape, model_of, prompts_of, semantic_ids
from benchmarks.growth import Measured, Point
from benchmarks.machine import memory_of
from benchmarks.table import alternate
from llmrec_cli.decoding.search import DecodeOptions, rank_catalogue, score_all
from llmrec_cli.decoding.tree_cache import TreeCache
from llmrec_cli.tensors.trie import Trie, build_trie

WIDTH, LAYERS = 128, 2  # of the model
CHECKED_ITEMS, CHECKED_USERS = 20_000, 2  # lists that are compared with the scores of all items


def measure(point: Point) -> Measured:
    """Build the trie, prefill and decode, each for its memory and then repeatedly for its time."""
    items = catalogue_of(point)
    trie, build_seconds, build_mb, build_peak = _build(items, point.repeats)
    del items
    shape = Shape(
        point.vocabulary, WIDTH, LAYERS, point.users, point.prompt, point.items, point.repeats
    )
    model, prompts = model_of(shape), prompts_of(shape)
    options = DecodeOptions(k=point.k, batch=point.users)

    @torch.no_grad()
    def prefill() -> None:
        TreeCache(model.get_decoder(), prompts, torch.device("cpu"))

    rank_catalogue(model, trie, prompts, options)  # one-off costs: buffers, lazy imports
    _, prefill_mb, _ = memory_of(prefill)
    ranked, decode_mb, peak = memory_of(lambda: rank_catalogue(model, trie, prompts, options))
    prefill_seconds, decode_seconds = alternate(
        prefill, lambda: rank_catalogue(model, trie, prompts, options), point.repeats
    )
    right = None
    if trie.n_items <= CHECKED_ITEMS:
        score_BL = score_all(model, trie, prompts[:CHECKED_USERS], options)
        true_BK = score_BL.topk(min(point.k, trie.n_leaves)).indices
        right = torch.equal(ranked.leaf_BK[:CHECKED_USERS], true_BK)
    return Measured(
        build_seconds=build_seconds,
        prefill_seconds=prefill_seconds,
        decode_seconds=decode_seconds,
        build_mb=build_mb,
        prefill_mb=prefill_mb,
        decode_mb=decode_mb,
        process_mb=max(peak, build_peak),
        trie_mb=megabytes(trie),
        trie_nodes=trie.n_nodes,
        right=right,
    )


def catalogue_of(point: Point) -> list[list[int]]:
    """Token sequences of the point's items; a million take seconds."""
    if point.catalogue == "semantic IDs":
        return semantic_ids(point.items)
    return zipf_titles(point.items, point.title, point.vocabulary)


def zipf_titles(items: int, tokens: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Titles of ``tokens`` tokens on average, drawn from the Zipf-Mandelbrot law, then EOS.

    6,344 of them make a trie like that of as many genuine book titles: 65,000 nodes, 2,200 first
    tokens (books: 66,000 and 1,900), 83 % of the positions forced (82 %).
    """
    draw = np.random.default_rng(seed)
    length_I = draw.integers(max(1, tokens // 2), tokens + tokens // 2, items, endpoint=True)
    share_V = (2.7 + np.arange(vocabulary - FIRST)) ** -1.1
    below_V = np.cumsum(share_V / share_V.sum())
    below_V[-1] = 1  # not a rounding less
    drawn = (FIRST + np.searchsorted(below_V, draw.random(length_I.sum()), side="right")).tolist()
    ends = itertools.pairwise([0, *np.cumsum(length_I).tolist()])
    return [[*drawn[start:end], EOS] for start, end in ends]


def megabytes(trie: Trie) -> float:
    """Bytes of all arrays of a trie, in MB."""
    arrays = (getattr(trie, field.name) for field in fields(trie))
    return sum(a.nbytes for a in arrays if isinstance(a, Tensor)) / 2**20


def _build(items: list[list[int]], repeats: int) -> tuple[Trie, list[float], float, float]:
    build_trie(items[:1])  # one-off costs
    trie, rise, peak = memory_of(lambda: build_trie(items))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        build_trie(items)
        seconds.append(time.perf_counter() - start)
    return trie, seconds, rise, peak


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Point(**json.loads(sys.argv[1]))))))
