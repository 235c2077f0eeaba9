"""Pictures: text stays text, colours are the page's, and what is drawn is what was given."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest

import llmrec_cli.report
from llmrec_cli.evaluation.statistics import Interval
from llmrec_cli.report.figures import (
    FAINT,
    INK,
    PAPER,
    QUIET,
    SERIES,
    Dot,
    Line,
    Look,
    Whisker,
    choose_log_ticks,
    choose_look,
    draw_curves,
    draw_forest,
    draw_profile,
    draw_scatter,
    draw_swatch,
    draw_training,
    find_frontier,
    format_tick,
)
from llmrec_cli.utils.text import clean_line
from tests.report.sample_pages import HOSTILE, drawn, texts

CSS = (Path(llmrec_cli.report.__file__).parent / "templates/page.css").read_text()
BLUE = Look(SERIES[0], marker="o")


def whiskers(*names: str) -> list[Whisker]:
    return [
        Whisker(name, 0.1 * at, 0.1 * at - 0.05, 0.1 * at + 0.05, BLUE)
        for at, name in enumerate(names)
    ]


def test_every_look_differs_for_many_series() -> None:
    looks = [choose_look(place) for place in range(210)]
    assert len(set(looks)) == 210
    for one, other in itertools.pairwise(looks):
        assert one.colour != other.colour
        assert one.dash != other.dash
        assert one.marker != other.marker


def test_a_picture_is_drawn_in_the_pages_colours() -> None:
    picture = draw_forest(whiskers("a", "b"), "NDCG@10", 0.1, "Title: description")
    svg = drawn(picture.source)
    used = {colour for one in svg.all() for colour in re.findall("#[0-9a-f]{6}", str(one.attrs))}
    assert {INK, QUIET, FAINT, SERIES[0]} <= used <= {INK, QUIET, FAINT, PAPER, *SERIES}
    assert "NDCG@10" in texts(picture.source)
    assert picture.alt == "Title: description"
    assert svg.attrs["viewbox"] == f"0 0 {picture.width:g} {picture.height:g}"


def test_the_style_sheet_has_the_same_colours_by_day() -> None:
    day = CSS.partition("@media")[0]
    for name, colour in {"ink": INK, "quiet": QUIET, "faint": FAINT, "paper": PAPER}.items():
        assert f"--{name}: {colour};" in day


@pytest.mark.parametrize("name", [*HOSTILE[:4], *HOSTILE[5:], "%s {0} \\n", "源氏物語 💯"])
def test_names_stay_text(name: str) -> None:
    """Whatever XML or matplotlib's own fonts do not know."""
    picture = draw_forest(whiskers(name[:25], "calm"), "x", None, "")
    assert clean_line(name[:25]).replace("\uffff", "\ufffd") in texts(picture.source)
    calm = draw_forest(whiskers("c" * len(name[:25]), "calm"), "x", None, "")
    tags = [[one.tag for one in drawn(made.source).all()] for made in (picture, calm)]
    assert tags[0] == tags[1]


def test_long_names_are_cut() -> None:
    assert "n" * 27 + "…" in texts(draw_forest(whiskers("n" * 500), "x", None, "").source)


def test_a_forest_draws_intervals_where_they_are() -> None:
    """Positions are proportional to the figures: lows, means and highs of two entries."""
    svg = drawn(draw_forest(whiskers("a", "b"), "x", None, "").source)
    style = SERIES[0]
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
    alone = draw_forest(whiskers("a"), "x", 0.0, "")
    both = draw_forest([*whiskers("a"), nothing], "x", 0.0, "")
    assert "gone" in texts(both.source)
    marks = [
        len([u for u in drawn(one.source).all("use") if SERIES[0] in u.attrs["style"]])
        for one in (alone, both)
    ]
    assert marks == [1, 1]
    assert not [one for one in drawn(both.source).all() if "nan" in str(one.attrs).lower()]


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
    assert [one.name for one in find_frontier(dots)] == ["cheap", "best"]


@pytest.mark.parametrize(
    "xs", [(0.0, 0.0), (0.0, 5.0), (1.0, 1.0), (1e-4, 50.0), (1.0, 100.0), (0.0, 0.001, 40_000.0)]
)
def test_costs_of_any_size_have_a_place(xs: tuple[float, ...]) -> None:
    dots = [Dot(f"e{at}", x, 0.2 + at / 10, 0.1, 0.5, BLUE) for at, x in enumerate(xs)]
    svg = drawn(draw_scatter(dots, ("seconds", "quality"), "").source)
    named = {one.text: float(one.attrs["x"]) for one in svg.all("text")}
    assert {"seconds", "quality", *(dot.name for dot in dots)} <= set(named)
    assert all(0 <= x <= 400 for x in named.values())
    places = [float(use.attrs["x"]) for use in svg.all("use") if SERIES[0] in use.attrs["style"]]
    assert places == sorted(places)


def test_names_of_equal_dots_do_not_lie_on_each_other() -> None:
    dots = [Dot(f"entry number {at}", 5.0, 0.3, 0.25, 0.35, BLUE) for at in range(5)]
    svg = drawn(draw_scatter([*dots, Dot("far", 50, 0.9, 0.8, 1, BLUE)], ("s", "q"), "").source)
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
    one = texts(draw_profile("one", own, [other], ["1", "2+"], BLUE, "").source)
    two = texts(draw_profile("two", other, [own], ["1", "2+"], BLUE, "").source)
    assert [t for t in one if t != "one"] == [t for t in two if t != "two"]
    assert {"1", "2+"} <= set(one)


def test_profiles_of_zeros_and_of_unknown_intervals_are_drawn() -> None:
    nothing = [Interval(0.0, math.nan, math.nan)] * 3
    assert "0" in texts(draw_profile("one", nothing, [], ["1", "2", "3"], BLUE, "").source)


def test_curves_that_differ_by_orders_of_magnitude_are_logarithmic() -> None:
    steps = [1, 2, 3]
    near = texts(draw_curves([Line(steps, [1, 2, 3], BLUE)], "calm", "").source)
    far = texts(draw_curves([Line(steps, [1, 300, 20_000], BLUE)], "wild", "").source)
    below = texts(draw_curves([Line(steps, [-1, 0, 20_000], BLUE)], "below 0", "").source)
    assert {"1", "2", "3"} <= set(near)
    assert {"1", "100", "10k"} <= set(far)
    assert "20k" not in far
    assert {"0", "10k", "20k"} <= set(below)


@pytest.mark.parametrize("low", [1e-9, 0.04, 1.0, 700.0])
@pytest.mark.parametrize("wide", [20.0, 100.0, 5e3, 1e8, 1e30])
def test_logarithmic_scales_have_a_few_ticks_within(low: float, wide: float) -> None:
    for most in (3, 4, 5):
        found = choose_log_ticks(low, low * wide, most)
        assert 2 <= len(found) <= most + 1
        assert found == sorted(found)
        assert low <= found[0] <= found[-1] <= low * wide


def test_a_training_without_validations_has_one_part() -> None:
    loss = [Line([1, 2], [3.0, 2.0], BLUE)]
    short, tall = (
        draw_training("n", loss, scores, [2], (0, 1), "")
        for scores in ([], [Line([2], [0.5], BLUE)])
    )
    assert short.height < tall.height


def test_a_legend_shows_the_series_own_look() -> None:
    swatch = draw_swatch(choose_look(4))
    assert swatch.alt == ""
    styles = [one.attrs.get("style", "") for one in drawn(swatch.source).all("path")]
    assert any(SERIES[4] in style and "stroke-dasharray" in style for style in styles)


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
    assert format_tick(value) == text
