"""The oracle of the synthetic data: the generator's own ranking of the next item.

The histories are those that ``prepare`` makes of the files with its default settings: ties in time
by file order, a user's first review of an item, items with a usable title, iterated 5-core, last
item as the test target.  Each target's rank is its place among all items of that catalogue by
``list_probabilities`` given the whole history; equal probabilities rank in catalogue order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import log2
from typing import Final

from llmrec_cli.sources.world import Purchase, World, find_anchor, keep_unseen, list_rules

CUTOFFS: Final = (1, 5, 10)
CORE: Final = 5
Scores = dict[str, float]


def list_probabilities(world: World, history: Sequence[int]) -> list[float]:
    """Probability of every item to come next: the law that ``shop.draw_next`` draws from."""
    probability = [0.0] * len(world.items)
    seen = set(history)
    for share, candidates in list_rules(world, find_anchor(world, history)):
        left = keep_unseen(world, candidates, seen)
        total = sum(world.weight[item] for item in left)
        for item in left:
            probability[item] += share / 10_000 * world.weight[item] / total
    return probability


def build_histories(
    world: World, purchases: Sequence[Purchase], core: int = CORE
) -> list[list[int]]:
    """Item numbers per remaining user, oldest first; ``purchases`` in file order."""
    days: dict[int, dict[int, None]] = {}
    for purchase in sorted(purchases, key=lambda purchase: purchase.day):
        if world.items[purchase.item].kind in ("series", "promoted"):
            days.setdefault(purchase.user, {}).setdefault(purchase.item)
    return _filter_core([list(items) for _, items in sorted(days.items())], core)


def _filter_core(sequences: list[list[int]], core: int) -> list[list[int]]:
    """Drop items and users with fewer than ``core`` purchases until all have as many."""
    while True:
        counts = Counter(item for items in sequences for item in items)
        kept = [[item for item in items if counts[item] >= core] for items in sequences]
        kept = [items for items in kept if len(items) >= core]
        if kept == sequences:
            return kept
        sequences = kept


def score_oracle(world: World, sequences: Sequence[Sequence[int]]) -> Scores:
    """HR@K and NDCG@K of the true probabilities on the leave-one-out test targets."""
    catalogue = _list_catalogue(world, sequences)
    ranks = []
    for *history, target in sequences:
        probability = list_probabilities(world, history)
        ranks.append(_find_rank(target, catalogue, probability))
    return _average_scores(ranks)


def score_popularity(world: World, sequences: Sequence[Sequence[int]]) -> Scores:
    """HR@K and NDCG@K of ranking by training purchases, that is all but a user's last two."""
    counts = Counter(item for items in sequences for item in items[:-2])
    catalogue = _list_catalogue(world, sequences)
    score = [float(counts[item]) for item in range(len(world.items))]
    return _average_scores([_find_rank(items[-1], catalogue, score) for items in sequences])


def _list_catalogue(world: World, sequences: Iterable[Iterable[int]]) -> list[int]:
    """Items that occur, in order of their ids as in a prepared folder."""
    present = {item for items in sequences for item in items}
    return sorted(present, key=lambda item: world.items[item].item_id)


def _find_rank(target: int, catalogue: Sequence[int], score: Sequence[float]) -> int:
    """Place of the target from 1; of equal scores the earlier item in the catalogue comes first."""
    wins = sum(score[item] > score[target] for item in catalogue)
    ties = catalogue[: catalogue.index(target)]
    return 1 + wins + sum(score[item] == score[target] for item in ties)


def _average_scores(ranks: Sequence[int]) -> Scores:
    """Means over the targets, to six digits; docs/evaluation.md."""
    count = max(1, len(ranks))
    hits = {f"HR@{k}": sum(rank <= k for rank in ranks) / count for k in CUTOFFS}
    gains = {
        f"NDCG@{k}": sum(1 / log2(rank + 1) for rank in ranks if rank <= k) / count for k in CUTOFFS
    }
    return {name: round(value, 6) for name, value in {**hits, **gains}.items()}
