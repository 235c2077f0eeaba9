"""A page with everything on it, and names that try everything, for the tests of the report."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any

from llmrec_cli.data.audit import Verdict
from llmrec_cli.evaluation.comparison import Comparison, Cost
from llmrec_cli.evaluation.statistics import Interval
from llmrec_cli.report.page.data import (
    Audited,
    BeamError,
    Curve,
    Fact,
    Page,
    RowGroup,
    RunLog,
    ShownItem,
    Slicing,
    TopList,
    UserCase,
)
from tests.evaluation.sample_entries import compared, entry_of

SCRIPT = "<script>document.title = 'owned'; window.owned = 1</script>"
HOSTILE = (
    SCRIPT,
    "</title></style></svg><img src=x onerror='window.owned = 1'>",
    "]]> <!-- &#60;b&#62; &lt;i&gt;",
    "\u202eevil\u2066 a\x00b\x1b[31mred\uffff",
    "\N{GRINNING FACE}" * 10_000,
    "{{ 7*7 }} {% raw %} name0000",
    "=cmd|' /C calc'!A0",
    '"><svg onload="window.owned = 1">',
    "$\\frac{a}{b}$ #1f4fd8 rotate(-0 1)",
    "javascript:window.owned=1 url(https://example.invalid/x)",
    "שלום עולם",
    "a" * 300,
)
CALM = ("sasrec", "sft", "msl", "other")
COST = Cost(12.5, 1.0, 25.0, "cpu", 1, 25.0, 58_300, 2**29, 3.0, 2**28, 7.5)


def comparison_of(names: tuple[str, ...] = CALM, **changes: Any) -> Comparison:
    """Four entries: a conventional one, the baseline, one of two seeds, one that ranks others."""
    conventional, base, method, apart = names
    found = compared(
        entry_of(conventional, 1, hit=0.5, kind="conventional"),
        entry_of(base, 2),
        entry_of(method, 3, 4, hit=0.8),
        entry_of(apart, 5, hit=1.0, rows=30),
        baseline=base,
    )
    costs = [replace(COST, lineage_seconds=seconds) for seconds in (0.0, 25.0, 500.0, 7.0)]
    standings = tuple(
        replace(standing, cost=cost) for standing, cost in zip(found.standings, costs, strict=True)
    )
    return replace(found, standings=standings, **changes)


def full_page(names: tuple[str, ...] = CALM, title: str = "A book", user: str = "u1") -> Page:
    """A page with every section.

    Args:
        names: of the entries.
        title, user: that stand for all titles and users.
    """
    return Page(
        maker="llmrec",
        comparison=comparison_of(names, notes=(f"note on {title}",)),
        experiments=(names[0],),
        facts=(Fact("Data", title), Fact("Split", "leave-one-out")),
        logs=tuple(_logs(names)),
        slicings=(_slicing("popularity", names), _slicing("history", names)),
        beam_errors=(BeamError(names[1], 40, Interval(0.2, 0.1, 0.3)),),
        audits=(Audited("prepared", tuple(_verdicts(title))),),
        users=tuple(_user(f"{user}{at}", title, names) for at in range(10)),
    )


def _logs(names: tuple[str, ...]) -> list[RunLog]:
    steps = (1, 2, 3, 4)
    rising = Curve(steps, (0.1, 0.2, 0.3, 0.35))
    falling = Curve(steps, (6.0, 4.0, 3.0, 2.5))
    valid = {
        "valid_loss": Curve((2, 4), (4.5, 3.0)),
        "valid_ndcg@5": Curve((2, 4), (0.1, 0.2)),
    }
    preference = dict.fromkeys(("margin", "accuracy", "d_chosen", "d_rejected"), rising)
    layers = {"self_hard": falling, "self_hard_layer_1": falling, "self_hard_layer_2": rising}
    return [
        RunLog(names[1], f"e/{names[1]}", 0, {"loss": falling, **valid, "tau": rising}, 4),
        RunLog(names[2], f"s1/{names[2]}", 1, {"loss": falling, **preference}, None),
        RunLog(names[2], f"s2/{names[2]}", 2, {"loss": falling, **layers, "cpo": falling}, 2),
    ]


def _slicing(by: Any, names: tuple[str, ...]) -> Slicing:
    groups = (RowGroup(0, 0, 10, 9), RowGroup(1, 12, 20, 15), RowGroup(13, 40_000, 10, 10))
    own = (Interval(0.1, 0.05, 0.15), Interval(0.2, 0.1, 0.3), Interval(0.4, float("nan"), 0.5))
    return Slicing(by, "ndcg@5", groups, dict.fromkeys(names[:3], own), 20)


def _verdicts(title: str) -> list[Verdict]:
    return [
        Verdict("items of one title", "ok", 0, 9, "Every item has its own."),
        Verdict("leaks", "warning", 3, 9, "3 of 9 leak.", (title,)),
        Verdict("ties", "note", 1, 9, "One tie.", (title, title)),
    ]


def _user(user: str, title: str, names: tuple[str, ...]) -> UserCase:
    listed = (ShownItem("Another", False, True), ShownItem(title, True, False))
    lists = [TopList(names[0], listed, 2), TopList(names[1], (ShownItem(title, False, False),), 0)]
    return UserCase(user, 0, (title, "Second"), title, 3, tuple(lists))


VOID = {"meta", "br", "img", "link", "input"}


@dataclass
class Element:
    """An element with its attributes, and elements and text within."""

    tag: str
    attrs: dict[str, str]
    nodes: list[Element | str] = field(default_factory=list)

    @property
    def children(self) -> list[Element]:
        return [node for node in self.nodes if isinstance(node, Element)]

    def all(self, tag: str = "", **attrs: str) -> list[Element]:
        """Descendants of a tag, with these attributes; ``class_`` is among the classes."""
        found = []
        for child in self.children:
            classes = child.attrs.get("class", "").split()
            wanted = {key: value for key, value in attrs.items() if key != "class_"}
            if (
                tag in ("", child.tag)
                and wanted.items() <= child.attrs.items()
                and attrs.get("class_", "") in ("", *classes)
            ):
                found.append(child)
            found += child.all(tag, **attrs)
        return found

    @property
    def text(self) -> str:
        """All text within, spaces made one."""
        parts = [node if isinstance(node, str) else node.text for node in self.nodes]
        return " ".join(" ".join(parts).split())


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Element("", {})]
        self.unclosed: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        assert len(element.attrs) == len(attrs), f"an attribute twice: {tag} {attrs}"
        self.open[-1].nodes.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].nodes.append(data)


def parsed(html: str) -> Element:
    """The document, whose tags must all be closed in order."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert len(reader.open) == 1, f"never closed: {[one.tag for one in reader.open[1:]]}"
    return reader.open[0]


def drawn(source: str) -> Element:
    """The picture behind an ``img`` element's address; a browser shows only well-formed XML."""
    svg = base64.b64decode(source.removeprefix("data:image/svg+xml;base64,"), validate=True)
    ET.fromstring(svg)  # noqa: S314 - of our own making
    (root,) = parsed(svg.decode()).children
    assert root.tag == "svg"
    return root


def texts(source: str) -> list[str]:
    """The words within a picture."""
    return [one.text for one in drawn(source).all("text")]


def without_pictures(html: str) -> str:
    """A page whose pictures have no content."""
    return re.sub(r'src="data:[^"]*"', 'src="data:"', html)
