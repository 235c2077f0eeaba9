"""Quantizers: every one of the registry by the same battery, and k-means against what is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from llmrec_cli.tokens.quantizers import find_quantizer, quantizer_names
from llmrec_cli.tokens.quantizers._kmeans import choose_start, find_nearest_codes, fit_kmeans
from llmrec_cli.tokens.quantizers.contract import Quantizer, Size
from llmrec_cli.utils.progress import Silent

SIZE = Size(levels=3, codes=16)
QUICK: dict[str, dict[str, Any]] = {
    "rq-kmeans": {},
    "rq-vae": {"hidden": (32,), "latent": 8, "epochs": 60, "train_batch": 64},
    "fsq": {"hidden": (32,), "grid": (4, 4), "epochs": 150, "train_batch": 64},
}


def make_clusters(groups: int = 8, each: int = 30, width: int = 12) -> tuple[Tensor, Tensor]:
    """Points around far centres, each of them in two halves; and the number of their centre."""
    generator = torch.Generator().manual_seed(7)
    centre_GD = torch.randn(groups, width, generator=generator) * 4
    half_GD = torch.randn(groups, width, generator=generator)
    group_I = torch.arange(groups).repeat_interleave(each)
    sign_I1 = torch.tensor([1.0, -1.0]).repeat(len(group_I) // 2)[:, None]
    noise_ID = torch.randn(len(group_I), width, generator=generator) * 0.1
    return centre_GD[group_I] + sign_I1 * half_GD[group_I] + noise_ID, group_I


@dataclass(frozen=True)
class Fitted:
    quantizer: Quantizer
    options: Any
    tensors: dict[str, Tensor]
    points_ID: Tensor


def fit(name: str, points_ID: Tensor, seed: int = 0) -> Fitted:
    quantizer = find_quantizer(name)
    options = quantizer.options(**QUICK[name])
    with Silent().track(name, quantizer.work(options, SIZE)) as advance:
        tensors = quantizer.fit(options, points_ID, SIZE, seed, advance)
    return Fitted(quantizer, options, dict(tensors), points_ID)


@pytest.fixture(scope="module")
def fitted() -> dict[str, Fitted]:
    points_ID, _ = make_clusters()
    return {name: fit(name, points_ID) for name in quantizer_names()}


def test_the_battery_knows_every_quantizer() -> None:
    assert set(QUICK) == set(quantizer_names())


@pytest.mark.parametrize("name", quantizer_names())
def test_codes_are_of_the_size_and_each_level_loses_less(
    name: str, fitted: dict[str, Fitted]
) -> None:
    one = fitted[name]
    codes = one.quantizer.encode(one.options, one.tensors, one.points_ID, SIZE)
    assert codes.code_IL.shape == (len(one.points_ID), SIZE.levels)
    assert codes.code_IL.dtype == torch.int64
    assert codes.code_IL.min() >= 0
    assert codes.code_IL.max() < SIZE.codes
    assert codes.error_L == sorted(codes.error_L, reverse=True)
    assert codes.error_L[-1] < 0.2


@pytest.mark.parametrize("name", quantizer_names())
def test_the_last_code_is_the_nearest_of_the_last_codebook(
    name: str, fitted: dict[str, Fitted]
) -> None:
    """The rule for collisions orders the last codes by this distance."""
    one = fitted[name]
    codes = one.quantizer.encode(one.options, one.tensors, one.points_ID, SIZE)
    distance_IC = torch.cdist(codes.last_IK, codes.last_CK)
    assert len(codes.last_CK) == SIZE.codes
    own_I = distance_IC.gather(1, codes.code_IL[:, -1:])[:, 0]
    torch.testing.assert_close(own_I, distance_IC.min(dim=1).values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", quantizer_names())
def test_points_of_one_cluster_share_the_first_code(name: str, fitted: dict[str, Fitted]) -> None:
    one, (_, group_I) = fitted[name], make_clusters()
    first_I = one.quantizer.encode(one.options, one.tensors, one.points_ID, SIZE).code_IL[:, 0]
    same_II = first_I[:, None] == first_I
    alike = group_I[:, None] == group_I
    within, between = same_II[alike].float().mean(), same_II[~alike].float().mean()
    assert within > 3 * between


@pytest.mark.slow
@pytest.mark.parametrize("name", quantizer_names())
def test_the_same_seed_gives_the_same_tensors_and_another_one_others(
    name: str, fitted: dict[str, Fitted]
) -> None:
    one = fitted[name]
    torch.rand(3)  # whatever was drawn before must not matter
    again, other = fit(name, one.points_ID), fit(name, one.points_ID, seed=1)
    assert one.tensors.keys() == again.tensors.keys()
    assert all(torch.equal(one.tensors[key], again.tensors[key]) for key in one.tensors)
    assert any(not torch.equal(one.tensors[key], other.tensors[key]) for key in one.tensors)


@pytest.mark.parametrize("name", quantizer_names())
def test_other_points_are_encoded_as_they_would_be_among_all(
    name: str, fitted: dict[str, Fitted]
) -> None:
    one = fitted[name]
    whole = one.quantizer.encode(one.options, one.tensors, one.points_ID, SIZE).code_IL
    part = one.quantizer.encode(one.options, one.tensors, one.points_ID[40:50], SIZE).code_IL
    assert torch.equal(whole[40:50], part)


def test_rq_vae_leaves_no_code_of_its_first_level_dead(fitted: dict[str, Fitted]) -> None:
    one = fitted["rq-vae"]
    code_IL = one.quantizer.encode(one.options, one.tensors, one.points_ID, SIZE).code_IL
    assert len(code_IL[:, 0].unique()) >= SIZE.codes // 2


def test_fsq_refuses_a_grid_of_another_size() -> None:
    quantizer = find_quantizer("fsq")
    problem = quantizer.check(quantizer.options.model_validate({"grid": [4, 3]}), SIZE)
    assert problem is not None
    assert "4 x 3 = 12" in problem


def lloyd_in_float64(points_ID: Tensor, start_CD: Tensor) -> Tensor:
    """Lloyd's rounds as one would write them down."""
    points, centroids = points_ID.double(), start_CD.double()
    for _ in range(100):
        nearest = torch.stack([((point - centroids) ** 2).sum(1).argmin() for point in points])
        moved = torch.stack([points[nearest == c].mean(0) for c in range(len(centroids))])
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids


def test_kmeans_agrees_with_a_plain_one_from_the_same_start() -> None:
    points_ID, _ = make_clusters()
    start_CD = choose_start(points_ID, 8, torch.Generator().manual_seed(3))
    found_CD = fit_kmeans(points_ID, 8, rounds=100, seed=3)
    expected_CD = lloyd_in_float64(points_ID, start_CD).float()
    torch.testing.assert_close(found_CD, expected_CD)


def test_kmeans_finds_far_clusters() -> None:
    points_ID, group_I = make_clusters()
    nearest_I, distance_I = find_nearest_codes(points_ID, fit_kmeans(points_ID, 8, 50, seed=0))
    pairs = {(int(a), int(b)) for a, b in zip(nearest_I, group_I, strict=True)}
    assert len(pairs) == 8, "each cluster is one group"
    exact_I = ((points_ID - points_ID.new_tensor(0)) ** 2).sum(1)
    assert (distance_I < exact_I).all()


def test_nearest_is_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    points_ID, _ = make_clusters()
    centroid_CD = points_ID[::17].clone()
    whole = find_nearest_codes(points_ID, centroid_CD)
    monkeypatch.setattr("llmrec_cli.tokens.quantizers._kmeans._CHUNK", 3 * len(centroid_CD))
    parts = find_nearest_codes(points_ID, centroid_CD)
    assert torch.equal(whole[0], parts[0])
    torch.testing.assert_close(whole[1], parts[1])


def test_an_empty_cluster_moves_to_the_worst_fitted_point(monkeypatch: pytest.MonkeyPatch) -> None:
    points_ID = torch.tensor([[0.0], [0.1], [9.0], [50.0]])
    far = torch.tensor([[0.05], [9.0], [-1000.0]])  # the last one takes no point
    monkeypatch.setattr(
        "llmrec_cli.tokens.quantizers._kmeans.choose_start", lambda *given: far.clone()
    )
    found = sorted(fit_kmeans(points_ID, 3, 10, seed=0)[:, 0].tolist())
    assert found == pytest.approx([0.05, 9.0, 50.0])


def test_balanced_codes_have_equally_many_items_and_lose_little() -> None:
    """Topics of very different sizes, as catalogues have them."""
    generator = torch.Generator().manual_seed(1)
    topic_I = torch.multinomial(1 / torch.arange(1.0, 41), 1500, True, generator=generator)
    points_ID = torch.randn(40, 16, generator=generator)[topic_I]
    points_ID = points_ID + 0.7 * torch.randn(1500, 16, generator=generator)
    quantizer = find_quantizer("rq-kmeans")
    counts, lost = {}, {}
    for balanced in (False, True):
        options = quantizer.options.model_validate({"balanced": balanced})
        with Silent().track("", 3) as advance:
            tensors = quantizer.fit(options, points_ID, SIZE, 0, advance)
        codes = quantizer.encode(options, tensors, points_ID, SIZE)
        counts[balanced] = torch.stack(
            [torch.bincount(code_I, minlength=16) for code_I in codes.code_IL.T]
        )
        lost[balanced] = codes.error_L[-1]
        (one,) = quantizer.encode(options, tensors, points_ID[[3]], SIZE).code_IL
        assert torch.equal(one, codes.code_IL[3]), "an item's code depends on it alone"
    wanted = len(points_ID) / 16
    assert counts[True].max() <= 1.2 * wanted
    assert counts[False].max() > 1.5 * wanted
    assert lost[True] < 1.2 * lost[False]


def test_prices_move_no_point_where_they_are_equal() -> None:
    points_ID, _ = make_clusters()
    centroid_CD = points_ID[::10]
    plain = find_nearest_codes(points_ID, centroid_CD)
    priced = find_nearest_codes(points_ID, centroid_CD, torch.full((len(centroid_CD),), 2.0))
    assert torch.equal(plain[0], priced[0])
    assert torch.allclose(plain[1], priced[1], atol=1e-3)


def test_fewer_distinct_points_than_clusters_end() -> None:
    points_ID = torch.tensor([[0.0], [1.0]]).repeat(10, 1)
    found_CD = fit_kmeans(points_ID, 5, 20, seed=0)
    assert torch.isfinite(found_CD).all()
    assert {0.0, 1.0} <= set(found_CD[:, 0].tolist())


def test_names_are_those_of_files() -> None:
    with pytest.raises(KeyError):
        find_quantizer("kmeans")
    assert quantizer_names()[0] == "rq-kmeans"
    assert math.prod(find_quantizer("fsq").options().model_dump()["grid"]) == 256
