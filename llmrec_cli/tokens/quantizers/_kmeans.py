"""k-means in torch: greedy k-means++ start, Lloyd's rounds, empty clusters re-seeded.

Shape suffixes: I points, D width, C clusters, N points of a chunk, T trials.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CHUNK = 1 << 24  # distances computed at a time
_STARTERS = 256  # points a cluster that the start is chosen from, at most
_BALANCED_ROUNDS, _PRICES_A_ROUND, _LAST_PRICES = 20, 8, 60


def fit_kmeans(points_ID: Tensor, clusters: int, rounds: int, seed: int) -> Tensor:
    """Centroids [C, D] of k-means.

    Args:
        clusters: at most as many as there are points.
        rounds: of Lloyd at most; it ends where no point changes its cluster.
        seed: the same arguments give the same centroids on a machine.
    """
    generator = torch.Generator().manual_seed(seed)
    centroid_CD = choose_start(points_ID, clusters, generator)
    before_I: Tensor | None = None
    for _ in range(rounds):
        nearest_I, distance_I = find_nearest_codes(points_ID, centroid_CD)
        if before_I is not None and torch.equal(nearest_I, before_I):
            break
        centroid_CD = _average(points_ID, nearest_I, distance_I, centroid_CD)
        before_I = nearest_I
    return centroid_CD


def balance_clusters(points_ID: Tensor, centroid_CD: Tensor) -> tuple[Tensor, Tensor]:
    """Centroids [C, D] and prices [C] with which about equally many points choose each.

    A point chooses the least sum of squared distance and price, so a point that comes later finds
    its centroid by itself.  Lloyd's rounds go on from the given centroids under these prices.
    """
    price_C = centroid_CD.new_zeros(len(centroid_CD))
    for at in range(_BALANCED_ROUNDS):
        price_C = _find_prices(points_ID, centroid_CD, price_C, range(at, at + _PRICES_A_ROUND))
        nearest_I, distance_I = find_nearest_codes(points_ID, centroid_CD, price_C)
        centroid_CD = _average(points_ID, nearest_I, distance_I, centroid_CD)
    last = range(_BALANCED_ROUNDS, _BALANCED_ROUNDS + _LAST_PRICES)
    return centroid_CD, _find_prices(points_ID, centroid_CD, price_C, last)


def _find_prices(points_ID: Tensor, centroid_CD: Tensor, price_C: Tensor, steps: range) -> Tensor:
    """The prices of the most even choice that was met on the way from ``price_C``.

    They are the dual variables of an assignment with equal capacities, and the way is subgradient
    ascent: a centroid with too many points becomes dearer.  It is not followed to its end.
    """
    best_C, fewest, wanted = price_C, math.inf, len(points_ID) / len(centroid_CD)
    for at in steps:
        nearest_I, distance_I = find_nearest_codes(points_ID, centroid_CD, price_C)
        count_C = torch.bincount(nearest_I, minlength=len(centroid_CD))
        surplus = float((count_C - wanted).clamp(min=0).sum())
        if surplus < fewest:
            best_C, fewest = price_C, surplus
        step = 2 * float(distance_I.mean()) / (at + 4)
        price_C = price_C + step * (count_C / wanted - 1).clamp(max=2)
    return best_C


def find_nearest_codes(
    points_ID: Tensor, centroid_CD: Tensor, price_C: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each point, the first of equally near ones; and its squared distance.

    Args:
        price_C: what is added to the squared distances when a point chooses.

    Returns:
        int64 [I], and [I] of the points' kind, at least 0.
    """
    size = max(1, _CHUNK // len(centroid_CD))
    square_C = (centroid_CD**2).sum(dim=1)
    if price_C is not None:
        square_C = square_C + price_C
    nearest, distances = [], []
    for chunk_ND in points_ID.split(size):
        part_NC = square_C - 2 * chunk_ND @ centroid_CD.T
        least_N, nearest_N = part_NC.min(dim=1)
        nearest.append(nearest_N)
        if price_C is not None:
            least_N = least_N - price_C[nearest_N]
        distances.append((least_N + (chunk_ND**2).sum(dim=1)).clamp(min=0))
    return torch.cat(nearest), torch.cat(distances)


def choose_start(points_ID: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007): of a few far points, the best one.

    A point is drawn in proportion to its squared distance from what is chosen already.
    """
    if len(points_ID) > _STARTERS * clusters:
        drawn = torch.randperm(len(points_ID), generator=generator)[: _STARTERS * clusters]
        points_ID = points_ID[drawn.sort().values.to(points_ID.device)]
    trials = 2 + int(math.log(clusters))
    square_I = (points_ID**2).sum(dim=1)
    first = int(torch.randint(len(points_ID), (1,), generator=generator))
    chosen, least_I = [first], _measure(points_ID, square_I, [first])[:, 0]
    while len(chosen) < clusters:
        mass_I = least_I.double().cpu().cumsum(0)
        wanted_T = torch.rand(trials, generator=generator, dtype=torch.float64) * mass_I[-1]
        drawn_T = torch.searchsorted(mass_I, wanted_T, right=True).clamp(max=len(mass_I) - 1)
        tried = drawn_T.tolist()
        closer_IT = torch.minimum(least_I[:, None], _measure(points_ID, square_I, tried))
        best = int(closer_IT.double().sum(dim=0).argmin())
        chosen.append(tried[best])
        least_I = closer_IT[:, best]
    return points_ID[chosen].clone()


def _measure(points_ID: Tensor, square_I: Tensor, others: list[int]) -> Tensor:
    """Squared distances [I, T] of the points, whose squares are given, to T of them."""
    square_IT = square_I[:, None] + square_I[others] - 2 * points_ID @ points_ID[others].T
    return square_IT.clamp(min=0)


def _average(points_ID: Tensor, nearest_I: Tensor, distance_I: Tensor, before_CD: Tensor) -> Tensor:
    """Means of the clusters; an empty one moves to a point that is far from its centroid."""
    sums_CD = torch.zeros_like(before_CD).index_add_(0, nearest_I, points_ID)
    count_C = torch.bincount(nearest_I, minlength=len(before_CD))
    centroid_CD = torch.where(
        count_C[:, None] > 0, sums_CD / count_C.clamp(min=1)[:, None], before_CD
    )
    empty = (count_C == 0).nonzero()[:, 0]
    far = distance_I.argsort(descending=True, stable=True)[: len(empty)]
    far = far[distance_I[far] > 0]  # equal points cannot fill more clusters than there are
    centroid_CD[empty[: len(far)]] = points_ID[far]
    return centroid_CD
