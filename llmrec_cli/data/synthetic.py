"""An invented toy shop whose shoppers follow known rules: the truth behind ``llmrec sample``.

Catalogue: brands of 3 series with 5 volumes each, a few *promoted* items (near-duplicate titles,
often bought, rated low) and a few *orphans* (no usable title).  The anchor of a history is its last
series item; the next item is drawn by ``rules`` among the items that the shopper has not had yet:
next volume, planted complement, same brand, popularity, and now and then an interruption by a
promoted item or an orphan, which does not move the anchor.  A filter that drops promoted items or
orphans therefore leaves the structure as it is.

Only whole numbers from PCG64's raw output decide, so every machine draws the same shop.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal, NamedTuple, TypeVar

from llmrec_cli.data import synthetic_names as names
from llmrec_cli.data.synthetic_stream import Stream
from llmrec_cli.errors import DataError

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
        items=tuple(_products(stream, series, promoted, orphans)),
        weight=(*_skewed(stream, series), *_skewed(stream, promoted), *[1] * orphans),
        brand=brand,
        following=tuple(_after(number, shelves[brand[number]]) for number in range(series)),
        complement=tuple(_complement(stream, number, brand) for number in range(series)),
        shelves=shelves,
        popular=tuple(range(series)),
        promoted=tuple(range(series, series + promoted)),
        orphans=tuple(range(series + promoted, items)),
    )


def _skewed(stream: Stream, count: int) -> list[int]:
    """Popularity weights that fall like 1/rank, in random order."""
    return stream.shuffled([1_000_000 // (rank + 5) for rank in range(count)])


def _after(number: int, shelf: Sequence[int]) -> int:
    return number + 1 if number < shelf[-1] else shelf[0]


def _complement(stream: Stream, number: int, brand: Sequence[int]) -> int:
    while brand[other := stream.below(len(brand))] == brand[number]:
        pass
    return other


def _products(stream: Stream, series: int, promoted: int, orphans: int) -> Iterator[Item]:
    taken: set[str] = set()
    titles: list[tuple[str, str]] = []
    for first in range(0, series, VOLUMES):
        brand = names.brand_name(first // (VOLUMES * SERIES_PER_BRAND))
        series_name, kind = names.series_name(stream.below(2**40)), stream.choice(names.KINDS)
        stem = f"{brand} {series_name} {kind}"
        if stem in taken:  # seldom: the same draws for two series of a brand
            stem = f"{stem} {first}"
        taken.add(stem)
        for volume in range(1, min(VOLUMES, series - first) + 1):
            titles.append((brand, f"{stem}, Vol. {volume}"))
    ids = _item_ids(stream, series + promoted + orphans)
    yield from (Item(next(ids), brand, title, "series") for brand, title in titles)
    originals = stream.shuffled(titles)[: promoted + orphans]
    for number, (brand, title) in enumerate(originals[:promoted]):
        edition = names.EDITIONS[number % len(names.EDITIONS)]
        yield Item(next(ids), brand, f"{title} ({edition})", "promoted")
    for number, (brand, title) in enumerate(originals[promoted:]):
        yield Item(next(ids), brand, title, _ORPHAN_KINDS[number % len(_ORPHAN_KINDS)])


def _item_ids(stream: Stream, count: int) -> Iterator[str]:
    """Ten characters as in the genuine files; every 25th looks like a number."""
    taken: set[str] = set()
    while len(taken) < count:
        if len(taken) % 25 == 0:
            fresh = f"{stream.below(10**9):010d}"
        else:
            fresh = "B00" + code(stream, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", 7)
        if fresh not in taken:
            taken.add(fresh)
            yield fresh


def code(stream: Stream, alphabet: str, length: int) -> str:
    """A random identifier."""
    return "".join(alphabet[stream.below(len(alphabet))] for _ in range(length))


def anchor_of(world: World, history: Sequence[int]) -> int | None:
    """The last series item of a history; promoted items and orphans do not count."""
    return next((item for item in reversed(history) if item < len(world.popular)), None)


def rules(world: World, anchor: int | None) -> list[tuple[int, Sequence[int]]]:
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


def unseen(world: World, candidates: Sequence[int], seen: Collection[int]) -> list[int]:
    """Candidates that are left; a rule with none left falls back on popularity."""
    left = [item for item in candidates if item not in seen]
    return left or [item for item in world.popular if item not in seen]


def draw_next(world: World, history: Sequence[int], stream: Stream) -> int:
    """The item that a shopper with this history takes next."""
    choices = rules(world, anchor_of(world, history))
    _, candidates = choices[stream.weighted([share for share, _ in choices])]
    left = unseen(world, candidates, set(history))
    return left[stream.weighted([world.weight[item] for item in left])]


def next_probabilities(world: World, history: Sequence[int]) -> list[float]:
    """Probability of every item to come next; the law that ``draw_next`` draws from."""
    probability = [0.0] * len(world.items)
    seen = set(history)
    for share, candidates in rules(world, anchor_of(world, history)):
        left = unseen(world, candidates, seen)
        total = sum(world.weight[item] for item in left)
        for item in left:
            probability[item] += share / 10_000 * world.weight[item] / total
    return probability


def shop(world: World, seed: int, users: int) -> list[Purchase]:
    """Every user's purchases in the order of the files: mixed, but a user's ties stay in order.

    About 3 % of the users buy fewer than five items; about 2 % of the purchases are reviewed again,
    on the same day or some days after the user's last one.

    Raises:
        DataError: no users.
    """
    if users < 1:
        raise DataError(f"users = {users}: expected at least 1")
    stream = Stream(seed, purpose=1)
    visits = [visit for user in range(users) for visit in _visits(world, stream, user)]
    return _mixed(stream, visits)


def _visits(world: World, stream: Stream, user: int) -> Iterator[Purchase]:
    history: list[int] = []
    for _ in range(_length(stream, len(world.popular))):
        history.append(draw_next(world, history, stream))
    gaps = [0 if stream.chance(30) else 1 + stream.below(40) for _ in history]
    first = stream.below(_DAYS - sum(gaps) - 30)
    days = [first + offset for offset in accumulate(gaps)]
    for item, day in zip(history, days, strict=True):
        stars = _stars(stream, world.items[item].kind)
        yield Purchase(user, item, day, stars)
        if stream.chance(2):
            again = day if stream.chance(50) else days[-1] + 1 + stream.below(29)
            yield Purchase(user, item, again, stars)


def _length(stream: Stream, series: int) -> int:
    if stream.chance(3):
        return 2 + stream.below(3)
    length = 6
    while length < min(_MOST_PURCHASES, series // 2) and stream.chance(80):
        length += 1
    return length


def _stars(stream: Stream, kind: Kind) -> int:
    """Promoted items are bought often and rated low."""
    shares = (55, 35, 10, 0, 0) if kind == "promoted" else (1, 2, 7, 25, 65)
    return 1 + stream.weighted(shares)


def _mixed(stream: Stream, visits: Sequence[Purchase]) -> list[Purchase]:
    """Random file order, except that one user's purchases of one day keep theirs.

    Ties in time break by file order, so this alone keeps the planted order readable.
    """
    order = stream.shuffled(range(len(visits)))
    slots: dict[tuple[int, int], list[int]] = {}
    for slot, number in enumerate(order):
        slots.setdefault((visits[number].user, visits[number].day), []).append(slot)
    result = list(visits)
    queues = {key: iter(positions) for key, positions in slots.items()}
    for visit in visits:
        result[next(queues[visit.user, visit.day])] = visit
    return result
