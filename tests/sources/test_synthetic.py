"""The synthetic shop: reproducible bytes, the planted law, genuine layouts, and its oracle."""

from __future__ import annotations

import ast
import gzip
import html
import json
import zlib
from collections import Counter, defaultdict
from itertools import pairwise
from math import log2
from pathlib import Path
from typing import Any

import pytest

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.errors import DataError, MachineError
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.sources import world as wordlists
from llmrec_cli.sources.oracle import (
    build_histories,
    list_probabilities,
    score_oracle,
    score_popularity,
)
from llmrec_cli.sources.synthetic import FORMATS, SampleFormat, SampleReport, write_sample
from llmrec_cli.sources.world import (
    Item,
    Purchase,
    Stream,
    World,
    build_world,
    draw_next,
    draw_purchases,
    find_anchor,
)

SHIPPED = Path(__file__).resolve().parents[2] / "data" / "sample"
GENERATIONS: tuple[SampleFormat, ...] = ("2014", "2018", "2023")
USER_KEY = {"2014": "reviewerID", "2018": "reviewerID", "2023": "user_id"}
ITEM_KEY = {"2014": "asin", "2018": "asin", "2023": "parent_asin"}
TIME_KEY = {"2014": "unixReviewTime", "2018": "unixReviewTime", "2023": "timestamp"}
Records = list[dict[str, Any]]


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(seed=0, items=320)


@pytest.fixture(scope="module")
def purchases(world: World) -> list[Purchase]:
    return draw_purchases(world, seed=0, users=1000)


def reviews(generation: SampleFormat) -> Records:
    path = SHIPPED / f"amazon{generation}" / FORMATS[generation].reviews
    return [json.loads(line) for line in gzip.open(path, "rt", encoding="utf-8")]


def metadata(generation: SampleFormat) -> Records:
    path = SHIPPED / f"amazon{generation}" / FORMATS[generation].metadata
    parse = ast.literal_eval if generation == "2014" else json.loads
    return [parse(line) for line in gzip.open(path, "rt", encoding="utf-8")]


# --- the shipped files ---------------------------------------------------------------------------


def sample(
    out: Path,
    generation: SampleFormat = "2018",
    *,
    seed: int = 0,
    users: int = 1000,
    items: int = 320,
) -> SampleReport:
    return write_sample(out, seed=seed, users=users, items=items, format=generation)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_shipped_sample_is_rebuilt_byte_for_byte(
    generation: SampleFormat, tmp_path: Path
) -> None:
    report = sample(tmp_path, generation)
    shipped = SHIPPED / f"amazon{generation}"
    written = {report.reviews.name, report.metadata.name, "oracle.json"}
    assert {path.name for path in tmp_path.iterdir()} == written
    assert {path.name for path in shipped.iterdir()} == written
    assert report.oracle_file.read_bytes() == (shipped / "oracle.json").read_bytes()
    for built in (report.reviews, report.metadata):
        kept = (shipped / built.name).read_bytes()
        assert gzip.decompress(built.read_bytes()) == gzip.decompress(kept)
        if "ng" not in zlib.ZLIB_RUNTIME_VERSION:  # zlib-ng packs the same content differently
            assert built.read_bytes() == kept


def test_the_shipped_sample_is_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*.*")) < 2 * 2**20


def test_another_seed_gives_another_shop(tmp_path: Path) -> None:
    first = sample(tmp_path / "a", seed=1, users=50, items=60)
    second = sample(tmp_path / "b", seed=2, users=50, items=60)
    assert first.reviews.read_bytes() != second.reviews.read_bytes()
    assert first.metadata.read_bytes() != second.metadata.read_bytes()


def test_the_draws_are_pcg64s_own_stream() -> None:
    stream = Stream(seed=0, purpose=0)
    # From numpy.random.PCG64(SeedSequence((0, 0))).random_raw(3), written down once: a numpy that
    # changed its stream would silently change the sample.
    assert [stream.draw_below(2**64) for _ in range(3)] == [
        11749869230777074271,
        4976686463289251617,
        755828109848996024,
    ]


@pytest.mark.parametrize("wrong", [{"items": 39}, {"users": 0}, {"seed": -1}])
def test_a_shop_that_cannot_be_is_refused(wrong: dict[str, int], tmp_path: Path) -> None:
    ((key, value),) = wrong.items()
    with pytest.raises(DataError, match=f"^{key} = {value}: expected at least"):
        sample(tmp_path, "2018", **wrong)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MachineError, match="file: cannot be written: File exists"):
        sample(tmp_path / "file", users=10, items=40)


@pytest.mark.parametrize("items", [40, 41, 57, 128])
def test_every_size_has_the_items_asked_for(items: int, tmp_path: Path) -> None:
    world = build_world(seed=3, items=items)
    assert len({item.item_id for item in world.items}) == items
    titles = [item.title for item in world.items if item.kind in ("series", "promoted")]
    assert len(set(titles)) == len(titles)
    assert sample(tmp_path, users=30, items=items).counts["items"] == items


def test_series_of_one_name_keep_distinct_titles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordlists, "make_series_name", lambda draw: "Copper Kites")
    monkeypatch.setattr(wordlists, "KINDS", ("Puzzle",))
    titles = [item.title for item in build_world(0, 80).items if item.kind == "series"]
    assert len(set(titles)) == len(titles)


# --- the planted law -----------------------------------------------------------------------------


def test_probabilities_add_up_to_one_and_skip_what_was_bought(world: World) -> None:
    for history in ([], [0], [3, 310, 315], list(range(15)), list(range(300, 320))):
        probability = list_probabilities(world, history)
        assert sum(probability) == pytest.approx(1, abs=1e-12)
        assert all(probability[item] == 0 for item in history)


def test_draws_follow_the_probabilities() -> None:
    """20,000 draws: every item's frequency within 5 standard deviations of its probability."""
    world = build_world(seed=1, items=60)
    stream, history, draws = Stream(9, purpose=0), [7, world.promoted[0]], 20_000
    seen = Counter(draw_next(world, history, stream) for _ in range(draws))
    for item, share in enumerate(list_probabilities(world, history)):
        deviation = (share * (1 - share) / draws) ** 0.5
        assert abs(seen[item] / draws - share) <= 5 * deviation, item


def test_the_shares_of_the_plan(world: World, purchases: list[Purchase]) -> None:
    """Outside interruptions, and where it was still to be had: .45 next volume, .25 complement."""
    taken: dict[str, list[bool]] = {"next": [], "complement": [], "promoted": []}
    for history, item in transitions(purchases):
        anchor = find_anchor(world, history)
        if anchor is None:
            continue
        taken["promoted"].append(item in world.promoted)
        following, complement = world.following[anchor], world.complement[anchor]
        if item < len(world.popular):
            if following not in history:
                taken["next"].append(item == following)
            if complement not in history:
                taken["complement"].append(item == complement)
    share = {rule: sum(values) / len(values) for rule, values in taken.items()}
    # Same-brand and popularity draws add to both; the standard error is about .006.
    assert 0.45 - 0.02 < share["next"] < 0.45 + 0.05
    assert 0.25 - 0.02 < share["complement"] < 0.25 + 0.03
    assert 0.04 < share["promoted"] < 0.06


def transitions(purchases: list[Purchase]) -> list[tuple[list[int], int]]:
    sequences: dict[int, dict[int, None]] = defaultdict(dict)
    for purchase in sorted(purchases, key=lambda purchase: purchase.day):
        sequences[purchase.user].setdefault(purchase.item)
    lists = [list(items) for items in sequences.values()]
    return [(items[:end], items[end]) for items in lists for end in range(1, len(items))]


def test_ties_keep_the_planted_order(world: World) -> None:
    """Sorting the files by user and time, ties by line, restores the order of buying."""
    order: dict[str, list[str]] = defaultdict(list)
    for line in sorted(reviews("2018"), key=lambda line: line["unixReviewTime"]):
        if line["asin"] not in order[line["reviewerID"]]:
            order[line["reviewerID"]].append(line["asin"])
    number = {item.item_id: index for index, item in enumerate(world.items)}
    found = [[number[item] for item in items] for items in order.values()]
    kinds = ("series", "promoted")
    found = [[item for item in items if world.items[item].kind in kinds] for items in found]
    following = sum(
        world.following[a] == b
        for items in found
        for a, b in pairwise(items)
        if a < len(world.popular)
    )
    assert following / sum(map(len, found)) > 0.3


def test_promoted_items_are_bought_often_and_rated_low(
    world: World, purchases: list[Purchase]
) -> None:
    bought = Counter(purchase.item for purchase in purchases)
    stars = defaultdict(list)
    for purchase in purchases:
        stars[purchase.item in world.promoted].append(purchase.stars)
    mean = {promoted: sum(values) / len(values) for promoted, values in stars.items()}
    assert mean[True] < 2 < 4 < mean[False]
    per_promoted = sum(bought[item] for item in world.promoted) / len(world.promoted)
    assert per_promoted > len(purchases) / len(world.items)
    titles = {item.title for item in world.items if item.kind == "series"}
    assert all(world.items[item].title.rpartition(" (")[0] in titles for item in world.promoted)


def test_popularity_is_skewed(purchases: list[Purchase]) -> None:
    counts = sorted(Counter(purchase.item for purchase in purchases).values(), reverse=True)
    assert sum(counts[: len(counts) // 10]) > 0.2 * sum(counts)


# --- the raw layouts and their dirt --------------------------------------------------------------

REVIEW_KEYS = {
    "2014": "reviewerID asin reviewerName helpful reviewText overall summary unixReviewTime "
    "reviewTime",
    "2018": "overall verified reviewTime reviewerID asin style reviewerName reviewText summary "
    "unixReviewTime vote",
    "2023": "rating title text images asin parent_asin user_id timestamp helpful_vote "
    "verified_purchase",
}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_reviews_have_the_genuine_keys_and_types(generation: SampleFormat) -> None:
    lines = reviews(generation)
    known = REVIEW_KEYS[generation].split()
    assert {key for line in lines for key in line} == set(known)
    for line in lines:
        assert list(line) == [key for key in known if key in line]
        stars = line["rating" if generation == "2023" else "overall"]
        assert type(stars) is float
        assert 1 <= stars <= 5
        low, high = (10**12, 2 * 10**12) if generation == "2023" else (10**9, 2 * 10**9)
        assert low < line[TIME_KEY[generation]] < high
    assert generation != "2018" or any(type(line.get("vote")) is str for line in lines)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_reviews_hold_every_kind_of_dirt(generation: SampleFormat) -> None:
    user, item, time = USER_KEY[generation], ITEM_KEY[generation], TIME_KEY[generation]
    lines = reviews(generation)
    pairs = Counter((line[user], line[item]) for line in lines)
    moments = Counter((line[user], line[time]) for line in lines)
    buyers = Counter(line[user] for line in lines)
    assert sum(count > 1 for count in pairs.values()) > 100, "repeated pairs"
    assert sum(count > 1 for count in moments.values()) > 1000, "tied times"
    assert sum(count < 5 for count in buyers.values()) > 10, "users below the 5-core"
    times = [line[time] for line in lines]
    assert times != sorted(times), "not in time order"
    assert any(line[item].isdigit() and line[item][0] == "0" for line in lines), "numbers as ids"
    if generation == "2023":
        assert any(line["asin"] != line["parent_asin"] for line in lines)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_metadata_holds_every_kind_of_dirt(generation: SampleFormat) -> None:
    shown = {line[ITEM_KEY[generation]]: line.get("title") for line in metadata(generation)}
    titles = [title for title in shown.values() if title]
    assert any("&amp;" in title for title in titles)
    assert any("&#39;" in title for title in titles)
    assert any(title != title.strip() for title in titles)
    assert any(title.startswith("<") for title in titles)
    assert any(not title for title in shown.values())
    assert {line[ITEM_KEY[generation]] for line in reviews(generation)} - set(shown)


def test_metadata_of_2014_is_no_json() -> None:
    path = SHIPPED / "amazon2014" / FORMATS["2014"].metadata
    for line in gzip.open(path, "rt", encoding="utf-8"):
        with pytest.raises(json.JSONDecodeError):
            json.loads(line)


def test_the_three_formats_tell_the_same_story() -> None:
    """Equal items and stars line by line, and clean titles equal to the shop's."""
    stories = [
        [(line[ITEM_KEY[g]], line["rating" if g == "2023" else "overall"]) for line in reviews(g)]
        for g in GENERATIONS
    ]
    assert stories[0] == stories[1] == stories[2]
    shop_titles = {i.item_id: i.title for i in build_world(0, 320).items if i.kind == "series"}
    for generation in GENERATIONS:
        for line in metadata(generation):
            if line[ITEM_KEY[generation]] in shop_titles:
                clean = html.unescape(line["title"]).strip()
                assert clean == shop_titles[line[ITEM_KEY[generation]]]


# --- the oracle ----------------------------------------------------------------------------------


def test_the_oracle_is_far_above_popularity(world: World, purchases: list[Purchase]) -> None:
    sequences = build_histories(world, purchases)
    oracle, popular = score_oracle(world, sequences), score_popularity(world, sequences)
    assert oracle["HR@10"] > 0.75
    assert popular["HR@10"] < oracle["HR@10"] / 5
    assert json.loads((SHIPPED / "amazon2018" / "oracle.json").read_text())["oracle"] == oracle


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_oracle_scores_what_prepare_makes(
    generation: SampleFormat, world: World, purchases: list[Purchase], tmp_path: Path
) -> None:
    """Same users, histories and test targets, whichever layout the shop was written in."""
    folder, layout = SHIPPED / f"amazon{generation}", FORMATS[generation]
    overrides = [
        f"data.format=amazon{generation}",
        f'data.reviews=["{(folder / layout.reviews).as_posix()}"]',
        f'data.metadata=["{(folder / layout.metadata).as_posix()}"]',
        "data.history=100",
        f"out={tmp_path.as_posix()}",
    ]
    prepared = prepare_data(read_recipe("quickstart", overrides), Path)
    ids, test = prepared.items["item_id"].tolist(), prepared.split("test")
    found = [[*h, target] for h, target in zip(test["history"], test["target"], strict=True)]
    expected = [[world.items[i].item_id for i in s] for s in build_histories(world, purchases)]
    assert sorted([ids[i] for i in items] for items in found) == sorted(expected)


def tiny_world() -> World:
    """Two brands: items 0-2 and 3-4; 5 is promoted, 6 an orphan; ids out of item order."""
    ids = ("b", "a", "d", "c", "f", "e", "g")
    kinds = ("series",) * 5 + ("promoted", "untitled")
    items = [Item(i, "brand", f"title {i}", k) for i, k in zip(ids, kinds, strict=True)]  # type: ignore[arg-type] # kinds are literals
    return World(
        items=tuple(items),
        weight=(5, 4, 3, 2, 1, 1, 1),
        brand=(0, 0, 0, 1, 1),
        following=(1, 2, 0, 4, 3),
        complement=(3, 4, 3, 0, 1),
        shelves=((0, 1, 2), (3, 4)),
        popular=(0, 1, 2, 3, 4),
        promoted=(5,),
        orphans=(6,),
    )


def test_probabilities_of_a_tiny_shop_by_hand() -> None:
    """After item 0, with nothing else seen: each rule's share written out."""
    probability = list_probabilities(tiny_world(), [0])
    expected = [0.0] * 7
    expected[5], expected[6] = 0.05, 0.03
    expected[1] += 0.92 * 0.45  # next volume
    expected[3] += 0.92 * 0.25  # complement
    expected[1] += 0.92 * 0.15 * 4 / 7  # same brand: weights 4 and 3
    expected[2] += 0.92 * 0.15 * 3 / 7
    for item, weight in ((1, 4), (2, 3), (3, 2), (4, 1)):  # popularity
        expected[item] += 0.92 * 0.15 * weight / 10
    assert probability == pytest.approx(expected, abs=1e-12)


def test_a_used_up_rule_falls_back_on_popularity() -> None:
    """Item 0's shelf, next volume and complement are gone: all but the interruptions is item 4."""
    probability = list_probabilities(tiny_world(), [1, 2, 3, 5, 0])
    assert probability == pytest.approx([0, 0, 0, 0, 0.97, 0, 0.03], abs=1e-12)


def test_oracle_against_brute_force() -> None:
    world = tiny_world()
    sequences = [[0, 1, 2], [3, 5, 4], [2, 0, 3], [1, 4, 5], [0, 3, 4]]
    catalogue = sorted({i for s in sequences for i in s}, key=lambda i: world.items[i].item_id)
    ranks = []
    for *history, target in sequences:
        share = list_probabilities(world, history)
        best_first = sorted(catalogue, key=lambda item: -share[item])  # stable: ties by id
        ranks.append(best_first.index(target) + 1)
    assert len(set(ranks)) > 1
    scores = score_oracle(world, sequences)
    for k in (1, 5, 10):
        hit = [rank <= k for rank in ranks]
        gain = [1 / log2(rank + 1) if rank <= k else 0 for rank in ranks]
        assert scores[f"HR@{k}"] == pytest.approx(sum(hit) / 5, abs=1e-6)
        assert scores[f"NDCG@{k}"] == pytest.approx(sum(gain) / 5, abs=1e-6)


def test_popularity_of_a_tiny_shop_by_hand() -> None:
    """Equal training counts rank in order of the item ids."""
    sequences = [[0, 2, 1, 4], [0, 1, 3, 2]]
    # Counts of all but the last two: 0 -> 2, 2 -> 1, 1 -> 1, 3 and 4 -> 0.
    # Ids: 0 "b", 1 "a", 2 "d", 3 "c", 4 "f": the ranking is 0, 1, 2, 3, 4; targets rank 5 and 3.
    scores = score_popularity(tiny_world(), sequences)
    assert scores["HR@1"] == 0
    assert scores["HR@5"] == scores["HR@10"] == 1
    assert scores["NDCG@5"] == pytest.approx((1 / log2(6) + 1 / log2(4)) / 2, abs=1e-6)


def test_histories_drop_what_prepare_drops() -> None:
    """By hand: time order with ties by line, first of repeats, no orphans, iterated core."""
    bought = [
        (0, 2, 9), (0, 0, 1), (0, 1, 1), (0, 0, 20), (0, 6, 3),  # 0 -> 1 -> 2, orphan out
        (1, 0, 1), (1, 1, 2), (1, 2, 3), (1, 3, 4),  # 3 occurs once: below the core
        (2, 3, 1), (2, 4, 2),  # too short once 3 and 4 are gone
    ]  # fmt: skip
    purchases = [Purchase(user, item, day, stars=5) for user, item, day in bought]
    assert build_histories(tiny_world(), purchases, core=2) == [[0, 1, 2], [0, 1, 2]]
