"""The world behind the synthetic sample: items, rules, shoppers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, count
from typing import Final, Literal, NamedTuple, TypeVar

import numpy as np

from llmrec_cli.errors import DataError

# Words for invented brands, toys and reviews; no brand is meant to be a real one.


_BRAND_STARTS: Final = (
    "Brindle Quill Fenn Marro Tazzo Ostra Velk Hazzle Corrin Dunmo Eldri Grav Ilmar Jorro Kestry "
    "Lumb Nettle Orvane Pellu Rusk Sarn Thimble Umbra Wexal Yarro Zephra Birch Caldo Drumm Farro"
).split()
_BRAND_ENDS: Final = (
    "wick marsh lark moss dale win bury combe fold garth holt keld lund mere ness"
).split()
_FIRST: Final = (
    "Amber Brass Clockwork Copper Crooked Dappled Distant Drifting Frosted Gilded Hidden Hollow "
    "Indigo Ivory Lantern Lunar Midnight Misty Mossy Nimble Painted Paper Pocket Restless Roaming "
    "Scarlet Secret Silver Sleepy Sunken Tiny Velvet Wandering Whistling Winter Wooden"
).split()
_SECOND: Final = (
    "Acorns Airships Badgers Beacons Canals Caravans Castles Comets Dragons Engines Falcons "
    "Fiddlers Ferrets Galleons Gardens Giants Harbours Islands Kites Lighthouses Mazes Meadows "
    "Moths Mountains Otters Owls Pirates Planets Rivers Robots Sparrows Submarines Tinkers Towers "
    "Trains Whales"
).split()
KINDS: Final = (
    "Puzzle",
    "Card Game",
    "Building Set",
    "Figure Pack",
    "Board Game",
    "Model Kit",
    "Storybook Set",
    "Train Set",
)

PRAISE: Final = (
    "Exactly as described.",
    "My niece plays with it every day.",
    "Good value, quick delivery!",
    'The kids call it "the best one yet".',
    "Sturdy pieces & clear rules.",
    "We already have the one before it {great series}.",
    "Tr\u00e8s joli, thank you \u2764",
    "Bought as a gift.\nShe loved it.",
    "Fits in the box [/] and in the bag.",
    "Love it",
)
COMPLAINTS: Final = (
    "Broke on the second day.",
    "Not what the pictures show.",
    "It was everywhere in the shop, I wish I had not bought it.",
    "Parts missing; returned.",
    "Cheap plastic, don't bother.",
)
SUMMARIES: Final = {
    1: ("One Star", "Disappointed"),
    2: ("Two Stars", "Meh"),
    3: ("Three Stars", "It's OK"),
    4: ("Four Stars", "Nice set"),
    5: ("Five Stars", "Great!", "A hit with the children"),
}
REVIEWERS: Final = ("Robin", "J. Doe", "toy fan", "Alex &amp; Sam", "M\u00e1rta", "K.")
EDITIONS: Final = ("Renewed", "Display Copy", "Travel Edition", "Limited Tin")


def make_brand_name(number: int) -> str:
    """Name of brand ``number`` (>= 0), distinct for every number."""
    starts, ends = len(_BRAND_STARTS), len(_BRAND_ENDS)
    generation, rest = divmod(number, starts * ends)
    # Neighbouring numbers differ in both halves; the map stays one-to-one.
    start, end = rest % starts, (rest // starts + rest) % ends
    name = _BRAND_STARTS[start] + _BRAND_ENDS[end]
    return f"{name} {generation + 1}" if generation else name


def make_series_name(draw: int) -> str:
    """Name of a series for a random whole number; every fifth has "&", every seventh "'s"."""
    draw, first = divmod(draw, len(_FIRST))
    draw, second = divmod(draw, len(_SECOND))
    draw, third = divmod(draw, len(_SECOND))
    if draw % 5 == 0:
        return f"{_SECOND[second]} & {_SECOND[third]}"
    if draw % 7 == 0:
        return f"{_SECOND[second][:-1]}'s {_FIRST[first]} {_SECOND[third]}"
    return f"{_FIRST[first]} {_SECOND[second]}"


# A synthetic toy shop whose users follow known rules, for ``llmrec sample``.
#
# Catalogue: brands of 3 series with 5 volumes each, a few *promoted* items (near-duplicate titles,
# often bought, rated low) and a few *orphans* (no usable title). The anchor of a history is its
# last series item. The next item is drawn by ``list_rules`` among the items that the shopper has
# not had: next volume, planted complement, same brand, popularity, and now and then an interruption
# by a promoted item or an orphan, which does not move the anchor. A filter that drops promoted
# items or orphans therefore leaves the structure as it is.
#
# Only whole numbers from PCG64's raw output decide, so every machine draws the same shop.


T = TypeVar("T")
Kind = Literal["series", "promoted", "untitled", "markup", "unlisted"]

SERIES_PER_BRAND: Final = 3
VOLUMES: Final = 5
LEAST_ITEMS: Final = 40

# What a shopper does next, out of 10,000.  Outside interruptions: .45 / .25 / .15 / .15.
PROMOTED: Final = 500
ORPHAN: Final = 300
NEXT_VOLUME: Final = 45 * 92
COMPLEMENT: Final = 25 * 92
SAME_BRAND: Final = 15 * 92
POPULAR: Final = 15 * 92

_ORPHAN_KINDS: Final[tuple[Kind, ...]] = ("untitled", "markup", "unlisted")
_DAYS: Final = 2500  # the shop's lifetime
_MOST_PURCHASES: Final = 30


class Stream:
    """Random choices from PCG64's raw 64-bit output, alike on every machine and numpy."""

    def __init__(self, seed: int, purpose: int) -> None:
        bits = np.random.PCG64(np.random.SeedSequence((seed, purpose)))
        self._raw: Iterator[int] = chain.from_iterable(
            bits.random_raw(4096).tolist() for _ in count()
        )

    def draw_below(self, bound: int) -> int:
        """A number in [0, bound); the bias of the remainder is below 2^-40 for bounds in use."""
        return next(self._raw) % bound

    def draw_chance(self, percent: int) -> bool:
        """True in ``percent`` of 100 cases."""
        return self.draw_below(100) < percent

    def draw_choice(self, values: Sequence[T]) -> T:
        """One of ``values``, all equally likely."""
        return values[self.draw_below(len(values))]

    def draw_index(self, weights: Sequence[int]) -> int:
        """An index, with probability proportional to its weight."""
        cumulative = list(accumulate(weights))
        return bisect_right(cumulative, self.draw_below(cumulative[-1]))

    def shuffle_values(self, values: Sequence[T]) -> list[T]:
        """The values in random order (Fisher-Yates)."""
        result = list(values)
        for last in range(len(result) - 1, 0, -1):
            other = self.draw_below(last + 1)
            result[last], result[other] = result[other], result[last]
        return result


class Item(NamedTuple):
    """One product; ``brand`` and ``title`` are clean, dirt is added when files are written."""

    item_id: str
    brand: str
    title: str  # what a shopper sees; orphans' titles never reach the files
    kind: Kind


class Purchase(NamedTuple):
    """One review: numbers of user and item, day of the shop's lifetime, stars."""

    user: int
    item: int
    day: int
    stars: int


@dataclass(frozen=True)
class World:
    """The shop.  Item numbers: series items first, then promoted ones, then orphans."""

    items: tuple[Item, ...]
    weight: tuple[int, ...]  # popularity of each item, > 0
    brand: tuple[int, ...]  # brand number of each series item
    following: tuple[int, ...]  # next volume of each series item (after the last: next series)
    complement: tuple[int, ...]  # planted complement of each series item, of another brand
    shelves: tuple[tuple[int, ...], ...]  # series items of each brand
    popular: tuple[int, ...]  # all series items
    promoted: tuple[int, ...]
    orphans: tuple[int, ...]


def build_world(seed: int, items: int) -> World:
    """The shop of a seed: 20 brands x 3 series x 5 volumes, 12 promoted items, 8 orphans at 320.

    Raises:
        DataError: fewer than 40 items, or a negative seed.
    """
    if seed < 0:
        raise DataError(f"seed = {seed}: expected at least 0")
    if items < LEAST_ITEMS:
        raise DataError(f"items = {items}: expected at least {LEAST_ITEMS}, to plant any structure")
    stream = Stream(seed, purpose=0)
    promoted, orphans = items * 3 // 80, items // 40
    series = items - promoted - orphans
    per_brand = SERIES_PER_BRAND * VOLUMES
    brand = tuple(number // per_brand for number in range(series))
    shelves = tuple(
        tuple(range(first, min(first + per_brand, series))) for first in range(0, series, per_brand)
    )
    return World(
        items=tuple(_invent_items(stream, series, promoted, orphans)),
        weight=(*_draw_weights(stream, series), *_draw_weights(stream, promoted), *[1] * orphans),
        brand=brand,
        following=tuple(_next_volume(number, shelves[brand[number]]) for number in range(series)),
        complement=tuple(_draw_complement(stream, number, brand) for number in range(series)),
        shelves=shelves,
        popular=tuple(range(series)),
        promoted=tuple(range(series, series + promoted)),
        orphans=tuple(range(series + promoted, items)),
    )


def _draw_weights(stream: Stream, count: int) -> list[int]:
    """Popularity weights that fall like 1/rank, in random order."""
    return stream.shuffle_values([1_000_000 // (rank + 5) for rank in range(count)])


def _next_volume(number: int, shelf: Sequence[int]) -> int:
    return number + 1 if number < shelf[-1] else shelf[0]


def _draw_complement(stream: Stream, number: int, brand: Sequence[int]) -> int:
    while brand[other := stream.draw_below(len(brand))] == brand[number]:
        pass
    return other


def _invent_items(stream: Stream, series: int, promoted: int, orphans: int) -> Iterator[Item]:
    taken: set[str] = set()
    titles: list[tuple[str, str]] = []
    for first in range(0, series, VOLUMES):
        brand = make_brand_name(first // (VOLUMES * SERIES_PER_BRAND))
        series_name, kind = (
            make_series_name(stream.draw_below(2**40)),
            stream.draw_choice(KINDS),
        )
        stem = f"{brand} {series_name} {kind}"
        if stem in taken:  # seldom: the same draws for two series of a brand
            stem = f"{stem} {first}"
        taken.add(stem)
        for volume in range(1, min(VOLUMES, series - first) + 1):
            titles.append((brand, f"{stem}, Vol. {volume}"))
    ids = _draw_item_ids(stream, series + promoted + orphans)
    yield from (Item(next(ids), brand, title, "series") for brand, title in titles)
    originals = stream.shuffle_values(titles)[: promoted + orphans]
    for number, (brand, title) in enumerate(originals[:promoted]):
        edition = EDITIONS[number % len(EDITIONS)]
        yield Item(next(ids), brand, f"{title} ({edition})", "promoted")
    for number, (brand, title) in enumerate(originals[promoted:]):
        yield Item(next(ids), brand, title, _ORPHAN_KINDS[number % len(_ORPHAN_KINDS)])


def _draw_item_ids(stream: Stream, count: int) -> Iterator[str]:
    """Ten characters as in the genuine files; every 25th looks like a number."""
    taken: set[str] = set()
    while len(taken) < count:
        if len(taken) % 25 == 0:
            fresh = f"{stream.draw_below(10**9):010d}"
        else:
            fresh = "B00" + draw_code(stream, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", 7)
        if fresh not in taken:
            taken.add(fresh)
            yield fresh


def draw_code(stream: Stream, alphabet: str, length: int) -> str:
    """A random identifier."""
    return "".join(alphabet[stream.draw_below(len(alphabet))] for _ in range(length))


def find_anchor(world: World, history: Sequence[int]) -> int | None:
    """The last series item of a history; promoted items and orphans do not count."""
    return next((item for item in reversed(history) if item < len(world.popular)), None)


def list_rules(world: World, anchor: int | None) -> list[tuple[int, Sequence[int]]]:
    """Shares (adding up to 10,000) with the items each chooses from, by popularity weight."""
    if anchor is None:
        return [(10_000, world.popular)]
    return [
        (PROMOTED, world.promoted),
        (ORPHAN, world.orphans),
        (NEXT_VOLUME, (world.following[anchor],)),
        (COMPLEMENT, (world.complement[anchor],)),
        (SAME_BRAND, world.shelves[world.brand[anchor]]),
        (POPULAR, world.popular),
    ]


def keep_unseen(world: World, candidates: Sequence[int], seen: Collection[int]) -> list[int]:
    """Candidates that are left; a rule with none left falls back on popularity."""
    left = [item for item in candidates if item not in seen]
    return left or [item for item in world.popular if item not in seen]


def draw_next(world: World, history: Sequence[int], stream: Stream) -> int:
    """The item that a shopper with this history takes next."""
    choices = list_rules(world, find_anchor(world, history))
    _, candidates = choices[stream.draw_index([share for share, _ in choices])]
    left = keep_unseen(world, candidates, set(history))
    return left[stream.draw_index([world.weight[item] for item in left])]


def draw_purchases(world: World, seed: int, users: int) -> list[Purchase]:
    """Every user's purchases in the order of the files: mixed, but a user's ties stay in order.

    About 3 % of the users buy fewer than five items; about 2 % of the purchases are reviewed again,
    on the same day or some days after the user's last one.

    Raises:
        DataError: no users.
    """
    if users < 1:
        raise DataError(f"users = {users}: expected at least 1")
    stream = Stream(seed, purpose=1)
    visits = [visit for user in range(users) for visit in _draw_visits(world, stream, user)]
    return _mix_order(stream, visits)


def _draw_visits(world: World, stream: Stream, user: int) -> Iterator[Purchase]:
    history: list[int] = []
    for _ in range(_draw_length(stream, len(world.popular))):
        history.append(draw_next(world, history, stream))
    gaps = [0 if stream.draw_chance(30) else 1 + stream.draw_below(40) for _ in history]
    first = stream.draw_below(_DAYS - sum(gaps) - 30)
    days = [first + offset for offset in accumulate(gaps)]
    for item, day in zip(history, days, strict=True):
        stars = _draw_stars(stream, world.items[item].kind)
        yield Purchase(user, item, day, stars)
        if stream.draw_chance(2):
            again = day if stream.draw_chance(50) else days[-1] + 1 + stream.draw_below(29)
            yield Purchase(user, item, again, stars)


def _draw_length(stream: Stream, series: int) -> int:
    if stream.draw_chance(3):
        return 2 + stream.draw_below(3)
    length = 6
    while length < min(_MOST_PURCHASES, series // 2) and stream.draw_chance(80):
        length += 1
    return length


def _draw_stars(stream: Stream, kind: Kind) -> int:
    """Promoted items are bought often and rated low."""
    shares = (55, 35, 10, 0, 0) if kind == "promoted" else (1, 2, 7, 25, 65)
    return 1 + stream.draw_index(shares)


def _mix_order(stream: Stream, visits: Sequence[Purchase]) -> list[Purchase]:
    """Random file order, except that one user's purchases of one day keep theirs.

    Ties in time break by file order, so this alone keeps the planted order readable.
    """
    order = stream.shuffle_values(range(len(visits)))
    slots: dict[tuple[int, int], list[int]] = {}
    for slot, number in enumerate(order):
        slots.setdefault((visits[number].user, visits[number].day), []).append(slot)
    result = list(visits)
    queues = {key: iter(positions) for key, positions in slots.items()}
    for visit in visits:
        result[next(queues[visit.user, visit.day])] = visit
    return result
