"""The report page in headless Chromium: what a reader sees, and what hostile titles cannot do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmrec_cli.report.figures import SERIES
from llmrec_cli.report.formatting import cut_name
from llmrec_cli.report.page import render_page
from tests.report.browser import Opened, chromium
from tests.report.sample_pages import HOSTILE, SCRIPT, drawn, full_page, texts

pytestmark = pytest.mark.slow  # a browser

WIDTHS, SCHEMES = (390, 1280), ("light", "dark")
UNFOLD = "document.querySelectorAll('details').forEach(d => d.open = true)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def html() -> str:
    """A page whose names, titles and users are all hostile."""
    page = full_page(HOSTILE[:4], title=SCRIPT, user=HOSTILE[7])
    return render_page(replace(page, experiments=(HOSTILE[1],)))


@pytest.fixture(scope="module")
def file(html: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_reads_on_a_desk_and_on_a_phone_by_day_and_by_night(
    browser: Any, file: Path, width: int, scheme: str
) -> None:
    with Opened(browser, file, width, scheme) as opened:
        assert opened.said == []
        assert opened.asked == [file.as_uri()]
        root = "document.documentElement"
        assert opened.value(f"{root}.scrollWidth") <= opened.value(f"{root}.clientWidth")
        opened.value(UNFOLD)
        assert opened.value(f"{root}.scrollWidth") <= opened.value(f"{root}.clientWidth")
        assert opened.page.locator("section > h2").count() == 14
        pictures = opened.page.locator("figure .panels img")
        boxes = pictures.evaluate_all("all => all.map(one => one.getBoundingClientRect().toJSON())")
        assert len(boxes) > 15
        assert all(box["width"] >= 150 and box["height"] >= 50 for box in boxes)
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
        loaded = opened.page.locator("img").evaluate_all("all => all.map(one => one.naturalWidth)")
        assert all(loaded)
        shade = opened.value("getComputedStyle(document.body).backgroundColor")
        light = sum(map(int, shade.removeprefix("rgb(").removesuffix(")").split(","))) / 3
        assert (light > 200) == (scheme == "light")


def test_hostile_names_are_read_not_run(browser: Any, file: Path) -> None:
    with Opened(browser, file) as opened:
        assert opened.value("window.owned") is None
        assert opened.page.locator("h1").inner_text() == cut_name(HOSTILE[1])
        assert "owned" not in opened.page.title() or "onerror" in opened.page.title()
        assert opened.page.locator("script, iframe").count() == 0
        sources = [img.get_attribute("src") for img in opened.page.locator("img").all()]
        assert all(source.startswith("data:image/svg+xml;") for source in sources)
        mark = opened.page.locator("mark").first
        assert mark.inner_text() == SCRIPT
        board = opened.page.locator("[aria-label='History kept'] tbody th").all()
        names = [cell.inner_text().splitlines()[0] for cell in board]
        assert names == list(map(cut_name, HOSTILE[:4]))
        assert any("<script>" in text for source in sources for text in texts(source))


@pytest.mark.parametrize(
    "smuggled",
    [
        "<script>window.owned = 1</script>",
        "<img src='data:image/png;base64,x' onerror='window.owned = 1'>",
        "<iframe srcdoc='<script>parent.owned = 1</script>'></iframe>",
    ],
)
def test_even_a_smuggled_script_could_not_run(
    browser: Any, html: str, tmp_path: Path, smuggled: str
) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(html.replace("<body>", f"<body>{smuggled}"), encoding="utf-8")
    with Opened(browser, bad) as opened:
        opened.page.wait_for_timeout(50)
        assert opened.value("window.owned") is None
        assert any("Content Security Policy" in said for said in opened.said)


def test_it_works_by_keyboard_alone(browser: Any, file: Path) -> None:
    with Opened(browser, file) as opened:
        keyboard = opened.page.keyboard
        keyboard.press("Tab")
        skip = opened.page.locator(".skip")
        box = skip.bounding_box()
        assert skip.evaluate("s => s === document.activeElement")
        assert box
        assert box["y"] >= 0  # it has come into sight
        keyboard.press("Tab")
        link = opened.value("document.activeElement.getAttribute('href')")
        assert link == "#leaderboard"
        outline = opened.value("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        keyboard.press("Enter")
        assert opened.value("location.hash") == "#leaderboard"
        folded = opened.page.locator("details").first
        assert not folded.evaluate("d => d.open")
        folded.locator("summary").focus()
        keyboard.press("Enter")
        assert folded.evaluate("d => d.open")


def test_a_wide_table_scrolls_within_itself_by_keyboard(browser: Any, file: Path) -> None:
    with Opened(browser, file, 390) as opened:
        box = opened.page.locator("[aria-label='History kept']")
        assert box.evaluate("b => b.scrollWidth > b.clientWidth")
        box.focus()
        opened.page.keyboard.press("ArrowRight")
        for _ in range(100):  # it scrolls smoothly
            if box.evaluate("b => b.scrollLeft") > 30:
                break
            opened.page.wait_for_timeout(20)
        assert box.evaluate("b => b.scrollLeft") > 30
        name = box.locator("tbody th").first.bounding_box()
        assert name
        assert name["x"] >= 0  # what a row is called stays in sight
        assert opened.value("window.scrollX") == 0


CONTRASTS = """() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = c => {
    const [r, g, b] = c.slice(0, 3).map(v => v / 255)
      .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
  };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || e.tagName === 'STYLE') continue;
    const pair = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    const ratio = (Math.max(...pair) + .05) / (Math.min(...pair) + .05);
    if (ratio < 4.5) found.push(`${e.tagName} ${ratio.toFixed(2)} ${e.textContent.slice(0, 40)}`);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_text_has_contrast(browser: Any, file: Path, scheme: str) -> None:
    """WCAG 2.2, 1.4.3 (AA): 4.5 : 1."""
    with Opened(browser, file, 1280, scheme) as opened:
        opened.value(UNFOLD)
        assert opened.value(CONTRASTS) == []


DRAWN_CONTRASTS = """colours => {
  const light = c => {
    const [r, g, b] = [...c].slice(0, 3).map(v => v / 255)
      .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const pen = document.createElement('canvas').getContext('2d');
  const shown = (colour, filter) => {
    pen.filter = filter;
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 300, 150);
    return pen.getImageData(50, 50, 1, 1).data;
  };
  const filter = getComputedStyle(document.querySelector('.panels img')).filter;
  const paper = light(shown(getComputedStyle(document.body).backgroundColor, 'none'));
  return colours.map(colour => {
    const ink = light(shown(colour, filter));
    return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
  });
}"""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pictures_have_contrast(browser: Any, file: Path, scheme: str) -> None:
    """As they are shown by day and by night: text 4.5 : 1, curves 3 : 1 (WCAG 2.2, 1.4.3, 1.4.11).

    The colour of every word in every picture is among those that are tried.
    """
    with Opened(browser, file, 1280, scheme) as opened:
        sources = [img.get_attribute("src") for img in opened.page.locator(".panels img").all()]
        words = [word.attrs["style"] for source in sources for word in drawn(source).all("text")]
        inks = sorted({"".join(re.findall(r"(?<!\S)fill: (#\w+)", style)) for style in words})
        assert len(inks) == 2
        assert min(opened.page.evaluate(DRAWN_CONTRASTS, inks)) >= 4.5
        assert min(opened.page.evaluate(DRAWN_CONTRASTS, list(SERIES))) >= 3
