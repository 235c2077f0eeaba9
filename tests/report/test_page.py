"""The report page without a browser: what is on it, what is left out, and that text stays text."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib
import pytest

from llmrec_cli.errors import MachineError
from llmrec_cli.evaluation.entries import UNKNOWN
from llmrec_cli.report.figures import shorten_label
from llmrec_cli.report.formatting import cut_name, cut_text, typeset_ends, typeset_figure
from llmrec_cli.report.page import Page, render_page, write_page
from llmrec_cli.report.page.comparison import summarize_board
from tests.evaluation.sample_entries import compared, entry_of
from tests.report.sample_pages import (
    HOSTILE,
    Element,
    comparison_of,
    drawn,
    full_page,
    parsed,
    texts,
    without_pictures,
)

TITLES = {
    "leaderboard": "Leaderboard",
    "intervals": "Intervals",
    "cost": "Cost",
    "by-popularity": "By popularity of the target",
    "by-history": "By length of the history",
    "lists": "What is recommended",
    "beam-error": "Beam error",
    "training": "Training curves",
    "temperature": "Adaptive temperature",
    "preferences": "Preferences",
    "layers": "Self-hard negatives by layer",
    "further": "Further logged figures",
    "audit": "Audit of the data",
    "users": "10 users, side by side",
}


@pytest.fixture(scope="module")
def html() -> str:
    return render_page(full_page())


@pytest.fixture(scope="module")
def document(html: str) -> Element:
    return parsed(html)


def anchors(document: Element) -> dict[str, str]:
    return {a.attrs["href"]: a.text for a in document.all("nav")[0].all("a")}


def tables(document: Element, label: str) -> list[list[str]]:
    """The rows of the table under that label, headings first."""
    (group,) = document.all("div", role="group", **{"aria-label": label})
    return [[cell.text for cell in row.children] for row in group.all("tr")]


def test_every_section_is_there_and_in_the_contents(document: Element) -> None:
    assert anchors(document) == {f"#{key}": title for key, title in TITLES.items()}
    headings = [h.text for section in document.all("section") for h in section.all("h2")]
    numbered = [f"{at} {title}" for at, title in enumerate(TITLES.values(), start=1)]
    assert headings == numbered


def bare_page(name: str = "e") -> Page:
    """One entry, without anything beside its figures."""
    whole = comparison_of()
    alone = replace(whole.standings[0], cost=UNKNOWN)
    return Page("llmrec", replace(whole, standings=(alone,), baseline=None), (name,), ())


def test_what_has_no_material_is_left_out() -> None:
    document = parsed(render_page(bare_page()))
    assert list(anchors(document)) == ["#leaderboard", "#intervals", "#lists"]
    assert not [h for h in document.all("h3") if not h.text]
    assert not document.all("div", class_="notes")


def test_one_group_alone_is_no_section() -> None:
    slicing = full_page().slicings[0]
    alone = replace(slicing, groups=slicing.groups[:1])
    sections = anchors(parsed(render_page(replace(bare_page(), slicings=(alone,)))))
    assert not [key for key in sections if key.startswith("#by-")]


def test_the_leaderboard_has_every_metric_of_both_policies(document: Element) -> None:
    comparison = full_page().comparison
    for policy, label in (("keep", "History kept"), ("remove", "History removed")):
        headings, *rows = tables(document, label)
        assert headings == ["entry", "rows", "users", "HR@1", "HR@5", "NDCG@5", "MRR@5"]
        for row, standing in zip(rows, comparison.standings, strict=True):
            metrics = standing.metrics[policy]  # type: ignore[index]  # a literal of the loop
            own = [metrics[name] for name in ("hr@1", "hr@5", "ndcg@5", "mrr@5")]
            assert row[1:3] == [str(standing.n_rows), str(standing.n_users)]
            assert row[3:] == [
                f"{typeset_figure(e.mean)} {typeset_ends(e.low, e.high)}" for e in own
            ]


def test_contrasts_have_p_holm_what_was_detectable_and_why_not(document: Element) -> None:
    headings, *rows = tables(document, "History kept: NDCG@5 against sft")
    assert headings[2:] == ["difference", "p", "p (Holm)", "detectable", "comparable"]
    comparison = full_page().comparison
    contrast = comparison.standings[2].contrasts["keep"]["ndcg@5"]
    assert (
        rows[2][2]
        == f"{typeset_figure(contrast.mean, '+')} {typeset_ends(contrast.low, contrast.high, '+')}"
    )
    assert [row[-1] for row in rows[:3]] == ["yes", "baseline", "yes"]
    assert rows[3][-1] == comparison.standings[3].why_not
    assert rows[3][2:-1] == ["-"] * 4


def test_where_nothing_varies_the_page_calls_no_difference_detectable() -> None:
    """Two runs of the same lists, in the leaderboard and in the folded table of every metric."""
    same = compared(entry_of("base", 1), entry_of("same", 1), baseline="base")
    page = replace(bare_page(), comparison=same)
    document = parsed(render_page(page))
    _, *rows = tables(document, "History kept: NDCG@5 against base")
    assert [row[5] for row in rows] == ["-", "-"]
    headings, *folded = tables(document, "Differences of every metric")
    assert {row[headings.index("detectable")] for row in folded} == {"-"}


def test_seeds_stand_one_by_one(document: Element) -> None:
    _, row = tables(document, "Over seeds")
    by_seed = full_page().comparison.standings[2].metrics["keep"]["ndcg@5"].by_seed
    assert row[0] == "msl"
    assert row[1] == "3, 4"
    assert row[3] == ", ".join(map(typeset_figure, by_seed))


def test_what_does_not_compare_is_marked_and_never_the_best(document: Element) -> None:
    (group,) = document.all("div", role="group", **{"aria-label": "History kept"})
    names = [row.children[0].text for row in group.all("tr")[1:]]
    assert names == ["sasrec", "sft", "msl", "other does not compare"]
    best = [row.children[0].text for row in group.all("tr") if row.all("td", class_="best")]
    comparison = full_page().comparison
    means = [s.metrics["keep"]["ndcg@5"].mean for s in comparison.standings]
    assert max(means) == means[3]  # the guard below can fail
    assert best == ["msl"]
    assert summarize_board(comparison).startswith(
        f"Highest NDCG@5, history kept: msl with {typeset_figure(means[2])}"
    )
    assert "1 of them, marked so, does not compare" in document.all("p", class_="lead")[0].text
    cost = tables(document, "Data: quality against cost")
    assert {row[0] for row in cost[1:]} == {"sasrec", "sft", "msl"}


def test_rows_are_as_wide_as_their_headings(document: Element) -> None:
    found = document.all("table")
    assert len(found) > 15
    for table in found:
        widths = {len(row.children) for row in table.all("tr")}
        assert len(widths) == 1, table.text[:200]
        assert all(row.children[0].attrs.get("scope") for row in table.all("tr"))


def test_every_picture_is_described_and_has_its_data(document: Element) -> None:
    shown = [img for box in document.all("div", class_="panels") for img in box.all("img")]
    assert len(shown) > 15
    for img in shown:
        title, _, description = img.attrs["alt"].partition(": ")
        assert title
        assert description
        assert drawn(img.attrs["src"]).all("text")
    swatches = [img for img in document.all("img") if not img.attrs["alt"]]
    assert len(swatches) + len(shown) == len(document.all("img"))
    for swatch in swatches:
        assert not drawn(swatch.attrs["src"]).all("text")
    for figure in document.all("figure"):
        (details,) = figure.all("details")
        assert details.all("summary")[0].text.startswith("Data")
        assert details.all("td")


def test_ids_are_unique_and_every_reference_has_its_target(document: Element) -> None:
    everything = document.all()
    ids = [one.attrs["id"] for one in everything if "id" in one.attrs]
    assert len(set(ids)) == len(ids)
    for one in everything:
        targets = one.attrs.get("aria-labelledby", "").split()
        targets += [one.attrs["href"][1:]] if "href" in one.attrs else []
        targets += re.findall(r"url\(#([^)]+)\)", " ".join(one.attrs.values()))
        assert set(targets) <= set(ids), one


def test_headings_never_skip_a_level(document: Element) -> None:
    levels = [int(one.tag[1]) for one in document.all() if re.fullmatch(r"h\d", one.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_it_works_without_a_mouse(document: Element) -> None:
    body = document.all("body")[0]
    assert body.children[0].attrs["href"] == "#main"
    assert document.all("main")[0].attrs["id"] == "main"
    assert document.all("html")[0].attrs["lang"] == "en"
    for box in document.all("div", class_="scroll"):
        assert box.attrs["tabindex"] == "0"
        assert box.attrs["aria-label"]


def check_harmless(html: str) -> Element:
    """Neither the page nor a picture in it runs or fetches anything."""
    document = parsed(html)
    check_elements(document.all(), "#", "data:image/svg+xml;base64,")
    for img in document.all("img"):
        check_elements(drawn(img.attrs["src"]).all(), "#")
    assert "url(" not in document.all("style")[0].text
    assert "@import" not in document.all("style")[0].text
    return document


def check_elements(elements: list[Element], *sources: str) -> None:
    for one in elements:
        assert one.tag not in {"script", "iframe", "object", "embed", "link", "base", "form"}
        assert not [name for name in one.attrs if name.startswith("on")], one
        for name in ("href", "src", "srcset", "xlink:href"):
            assert one.attrs.get(name, "#").startswith(sources), one
        style = one.attrs.get("style", "") + one.attrs.get("clip-path", "")
        assert not re.search(r"url\((?!#)", style), one


def test_nothing_comes_from_outside(html: str) -> None:
    document = check_harmless(html)
    assert "http" not in without_pictures(html).replace("http-equiv", "")
    (policy,) = document.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy.attrs["content"].startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert html.index("Content-Security-Policy") < html.index("<style")


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, len(HOSTILE), 4))
def test_hostile_text_stays_text_everywhere(first: int, document: Element) -> None:
    one, two, three, four = HOSTILE[first : first + 4]
    names = (f"{one}1", f"{two}2", f"3{three}", f"4{four}")
    page = replace(full_page(names, title=two, user=three), experiments=(four,))
    html = render_page(page)
    found = check_harmless(html)
    assert [one.tag for one in found.all()] == [one.tag for one in document.all()]
    assert found.all("h1")[0].text == cut_name(four)
    user = found.all("details", class_="user")[0]
    assert user.all("h3")[0].text == cut_name(f"{three}0")
    assert user.all("mark")[0].text == cut_text(two)
    board = found.all("div", role="group", **{"aria-label": "History kept"})[0]
    assert [row.children[0].text for row in board.all("tr")[1:4]] == [*map(cut_name, names[:3])]
    alts = [img.attrs["alt"] for img in found.all("img")]
    assert all(any(cut_name(name) in alt for alt in alts) for name in names)
    in_pictures = {text for img in found.all("img") for text in texts(img.attrs["src"])}
    assert {" ".join(shorten_label(cut_name(name)).split()) for name in names} <= in_pictures
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", html)


def test_a_long_title_does_not_make_a_long_page() -> None:
    users, long = full_page().users, full_page(title="a" * 100_000).users
    short, cut = (len(render_page(replace(bare_page(), users=found))) for found in (users, long))
    assert cut < short + 20_000


@pytest.mark.slow
def test_equal_pages_are_equal_bytes_whatever_matplotlib_is_set_to(html: str) -> None:
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30, "xtick.direction": "in", "axes.titlepad": 40}):
        assert render_page(full_page()) == html
    assert dict(matplotlib.rcParams) == before


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(tmp_path: Path, html: str) -> None:
    """Hash seeds and clocks have no part in it."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from tests.report.sample_pages import full_page\n"
        "from llmrec_cli.report.page import write_page\n"
        "write_page(Path(sys.argv[2]), full_page())\n"
    )
    file = tmp_path / "report.html"
    words = [sys.executable, "-c", code, str(Path(__file__).parents[2]), str(file)]
    subprocess.run(words, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert file.read_text(encoding="utf-8") == html
    pictures = [drawn(img.attrs["src"]).text for img in parsed(html).all("img")]
    for text in (without_pictures(html), *pictures):
        assert not re.search(r"20\d\d-\d\d-\d\d|\d\d:\d\d", text)


def test_the_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_page(path, bare_page())
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(MachineError, match="nowhere"):
        write_page(tmp_path / "nowhere" / "report.html", bare_page())


def test_the_audit_shows_what_misleads_first(document: Element) -> None:
    levels = [one.text for one in document.all("span", class_="level")]
    assert levels == ["warning", "note", "ok"]


def test_the_target_is_marked_in_every_list_that_has_it(document: Element) -> None:
    user = document.all("details", class_="user")[0]
    assert user.all("summary")[0].text == "u10 target found by 1 of 2, best at place 2"
    first, second = user.all("div", class_="column")
    assert [li.attrs.get("class") for li in first.all("li")] == ["seen", "target"]
    assert first.all("mark")[0].text == "A book"
    assert first.all("p")[0].text == "target at place 2"
    assert not second.all("mark")
    assert second.all("p")[0].text == "target not found"


def test_names_that_are_nothing_but_control_characters_have_a_stand_in() -> None:
    assert parsed(render_page(bare_page("\x00\x1b"))).all("h1")[0].text == "(no name)"


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [
        (0.0782, "", ".0782"),
        (-0.008, "+", "\N{MINUS SIGN}.0080"),
        (0.008, "+", "+.0080"),
        (10.5, "", "10.5000"),  # the 0 before the point is not a leading one
        (-10.5, "", "\N{MINUS SIGN}10.5000"),
        (float("nan"), "", "?"),
        (None, "", "?"),
    ],
)
def test_figures_are_in_the_fields_short_form(value: float, sign: str, text: str) -> None:
    assert typeset_figure(value, sign) == text


def test_long_text_is_cut_by_what_is_seen() -> None:
    assert cut_text("a" * 200, 10) == "aaaaaaaaa…"
    assert cut_text("\N{GRINNING FACE}" * 200, 10) == "\N{GRINNING FACE}" * 4 + "…"
    assert cut_text("short", 10) == "short"
