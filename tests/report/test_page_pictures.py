"""Pictures: text stays text, colours are the page's, and what is drawn is what was given."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest
from pages_made import HOSTILE, Element, parsed

import llmrec_cli.report
from llmrec_cli.report.figures.axes import log_ticks, short_number
from llmrec_cli.report.figures.canvas import SERIES, VARIABLES, Look, look
from llmrec_cli.report.figures.curves import PLAIN, Line, Training, curves, swatch, training
from llmrec_cli.report.figures.forest import Whisker, forest
from llmrec_cli.report.figures.profile import profile
from llmrec_cli.report.figures.scatter import Dot, frontier, scatter
from llmrec_cli.report.figures.svg import Words
from llmrec_cli.report.statistics import Interval

CSS = (Path(llmrec_cli.report.__file__).parent / "templates/page.css").read_text()
WORDS = Words("key", "Title", "Description")
BLUE = Look(SERIES[0], PLAIN, "o")


def drawn(svg: str) -> Element:
    (element,) = parsed(svg).children
    return element


def texts(svg: str) -> list[str]:
    return [one.text for one in drawn(svg).all("text")]


def whiskers(*names: str) -> list[Whisker]:
    return [
        Whisker(name, 0.1 * at, 0.1 * at - 0.05, 0.1 * at + 0.05, BLUE)
        for at, name in enumerate(names)
    ]


def test_every_look_differs_for_many_series() -> None:
    looks = [look(place) for place in range(210)]
    assert len(set(looks)) == 210
    for one, other in itertools.pairwise(looks):
        assert one.colour != other.colour
        assert one.dash != other.dash
        assert one.marker != other.marker


def test_a_picture_is_one_element_in_the_pages_colours() -> None:
    svg = forest(WORDS, whiskers("a", "b"), "NDCG@10", 0.1)
    assert svg.startswith('<svg viewBox="0 0 400 ')
    assert not re.search(r"#[0-9a-f]{6}\b|http|font-family|<\?xml|<style|DOCTYPE", svg)
    assert set(re.findall(r"var\((--[\w]+)\)", svg)) <= set(VARIABLES.values())
    assert "NDCG@10" in texts(svg)


def test_the_style_sheet_knows_every_colour_by_day_and_by_night() -> None:
    for variable in VARIABLES.values():
        assert len(re.findall(rf"{variable}: #", CSS)) == 2


@pytest.mark.parametrize("name", [*HOSTILE[:4], *HOSTILE[5:], "%s {0} \\n"])
def test_names_stay_text(name: str) -> None:
    svg = forest(WORDS, whiskers(name[:25], "calm"), "x", None)
    assert " ".join(name[:25].split()) in texts(svg)
    calm = forest(WORDS, whiskers("c" * len(name[:25]), "calm"), "x", None)
    assert [one.tag for one in drawn(svg).all()] == [one.tag for one in drawn(calm).all()]


def test_long_names_are_cut() -> None:
    assert "n" * 27 + "…" in texts(forest(WORDS, whiskers("n" * 500), "x", None))


def test_titles_and_descriptions_are_escaped() -> None:
    svg = drawn(forest(Words("k", HOSTILE[0], HOSTILE[1]), whiskers("a"), "x", None))
    assert svg.all("title")[0].text == HOSTILE[0]
    assert svg.all("desc")[0].text == HOSTILE[1]


def test_two_pictures_of_a_page_share_no_id() -> None:
    ids = [
        re.findall(r' id="([^"]+)"', forest(Words(key, "t", "d"), whiskers("a", "b"), "x", 0.0))
        for key in ("one", "two")
    ]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])
    assert len(set(ids[0])) == len(ids[0])


def test_a_forest_draws_intervals_where_they_are() -> None:
    """Positions are proportional to the figures: lows, means and highs of two entries."""
    svg = drawn(forest(WORDS, whiskers("a", "b"), "x", None))
    style = "var(--s1)"
    bars = [
        p for p in svg.all("path") if style in p.attrs.get("style", "") and p.attrs.get("clip-path")
    ]
    ends = [[float(x) for x in re.findall(r"[ML] ([\d.-]+)", bar.attrs["d"])] for bar in bars]
    dots = [float(use.attrs["x"]) for use in svg.all("use") if style in use.attrs["style"]]
    (low_a, high_a), (low_b, high_b) = (pair for pair in ends if len(pair) == 2)
    unit = high_a - low_a
    assert high_b - low_b == pytest.approx(unit, abs=0.2)
    assert low_b - low_a == pytest.approx(unit, abs=0.2)  # means differ by as much as a width
    assert dots == pytest.approx([(low_a + high_a) / 2, (low_b + high_b) / 2], abs=0.2)


def test_what_is_unknown_is_not_drawn() -> None:
    nothing = Whisker("gone", math.nan, math.nan, math.nan, BLUE)
    alone = forest(WORDS, whiskers("a"), "x", 0.0)
    both = forest(WORDS, [*whiskers("a"), nothing], "x", 0.0)
    assert "gone" in texts(both)
    marks = [
        len([u for u in drawn(svg).all("use") if "--s1" in u.attrs["style"]])
        for svg in (alone, both)
    ]
    assert marks == [1, 1]
    assert "nan" not in both.lower().replace("gone", "")


def test_the_frontier_holds_what_nothing_as_cheap_surpasses() -> None:
    def dot(name: str, x: float, mean: float) -> Dot:
        return Dot(name, x, mean, math.nan, math.nan, BLUE)

    dots = [
        dot("slow", 9, 0.5),
        dot("best", 3, 0.5),
        dot("cheap", 1, 0.1),
        dot("worse", 2, 0.05),
        dot("tie", 1, 0.05),
    ]
    assert [one.name for one in frontier(dots)] == ["cheap", "best"]


@pytest.mark.parametrize(
    "xs", [(0.0, 0.0), (0.0, 5.0), (1.0, 1.0), (1e-4, 50.0), (1.0, 100.0), (0.0, 0.001, 40_000.0)]
)
def test_costs_of_any_size_have_a_place(xs: tuple[float, ...]) -> None:
    dots = [Dot(f"e{at}", x, 0.2 + at / 10, 0.1, 0.5, BLUE) for at, x in enumerate(xs)]
    svg = drawn(scatter(WORDS, dots, ("seconds", "quality")))
    named = {one.text: float(one.attrs["x"]) for one in svg.all("text")}
    assert {"seconds", "quality", *(dot.name for dot in dots)} <= set(named)
    assert all(0 <= x <= 400 for x in named.values())
    places = [float(use.attrs["x"]) for use in svg.all("use") if "--s1" in use.attrs["style"]]
    assert places == sorted(places)


def test_names_of_equal_dots_do_not_lie_on_each_other() -> None:
    dots = [Dot(f"entry number {at}", 5.0, 0.3, 0.25, 0.35, BLUE) for at in range(5)]
    svg = drawn(scatter(WORDS, [*dots, Dot("far", 50, 0.9, 0.8, 1, BLUE)], ("s", "q")))
    at = [
        (float(t.attrs["x"]), float(t.attrs["y"]))
        for t in svg.all("text")
        if t.text.startswith("entry")
    ]
    assert len(at) == 5
    for place, (x, y) in enumerate(at):
        for other_x, other_y in at[:place]:
            assert abs(y - other_y) > 8 or abs(x - other_x) > 60


def test_a_profile_has_the_same_scale_for_every_entry() -> None:
    own, other = [Interval(0.1, 0.05, 0.2)] * 2, [Interval(0.4, 0.3, 0.8)] * 2
    one = texts(profile(WORDS, "one", own, [other], ["1", "2+"], BLUE))
    two = texts(profile(WORDS, "two", other, [own], ["1", "2+"], BLUE))
    assert [t for t in one if t != "one"] == [t for t in two if t != "two"]
    assert {"1", "2+"} <= set(one)


def test_profiles_of_zeros_and_of_unknown_intervals_are_drawn() -> None:
    nothing = [Interval(0.0, math.nan, math.nan)] * 3
    assert "0" in texts(profile(WORDS, "one", nothing, [], ["1", "2", "3"], BLUE))


def test_curves_that_differ_by_orders_of_magnitude_are_logarithmic() -> None:
    steps = [1, 2, 3]
    near = texts(curves(WORDS, [Line(steps, [1, 2, 3], BLUE)], "calm"))
    far = texts(curves(WORDS, [Line(steps, [1, 300, 20_000], BLUE)], "wild"))
    below = texts(curves(WORDS, [Line(steps, [-1, 0, 20_000], BLUE)], "below 0"))
    assert {"1", "2", "3"} <= set(near)
    assert {"1", "100", "10k"} <= set(far)
    assert "20k" not in far
    assert {"0", "10k", "20k"} <= set(below)


@pytest.mark.parametrize("low", [1e-9, 0.04, 1.0, 700.0])
@pytest.mark.parametrize("wide", [20.0, 100.0, 5e3, 1e8, 1e30])
def test_logarithmic_scales_have_a_few_ticks_within(low: float, wide: float) -> None:
    for most in (3, 4, 5):
        found = log_ticks(low, low * wide, most)
        assert 2 <= len(found) <= most + 1
        assert found == sorted(found)
        assert low <= found[0] <= found[-1] <= low * wide


def test_a_training_without_validations_has_one_part() -> None:
    loss = [Line([1, 2], [3.0, 2.0], BLUE)]
    short, tall = (
        training(WORDS, Training("n", loss, [], scores, [2], (0, 1)))
        for scores in ([], [Line([2], [0.5], BLUE)])
    )
    heights = [float(re.findall(r'viewBox="0 0 \S+ (\S+)"', svg)[0]) for svg in (short, tall)]
    assert heights[0] < heights[1]


def test_a_legend_shows_the_series_own_look() -> None:
    svg = swatch("key", look(4))
    assert 'aria-hidden="true"' in svg
    assert "role" not in svg
    assert "var(--s5)" in svg
    assert "stroke-dasharray" in svg


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.25, ".25"),
        (0, "0"),
        (-0.5, "\N{MINUS SIGN}.5"),
        (1500, "1.5k"),
        (2e6, "2M"),
        (10.5, "10.5"),
        (1e-5, "1e\N{MINUS SIGN}05"),
    ],
)
def test_ticks_are_short(value: float, text: str) -> None:
    assert short_number(value) == text
