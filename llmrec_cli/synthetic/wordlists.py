"""Words for invented brands, toys and reviews; no brand is meant to be a real one."""

from __future__ import annotations

from typing import Final

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
