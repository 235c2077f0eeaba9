"""From matplotlib's SVG file to an element of a page: small, in the page's colours and fonts."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET  # nosec B405 # reads only what we drew
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from markupsafe import Markup

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_NUMBER = re.compile(r"-?\d+\.\d+")
_FONT = re.compile(r"font(?:-family)?:[^;]*;? ?")
_FONT_SIZE = re.compile(r"font:[^;]*?([\d.]+)px[^;]*|font-size: ([\d.]+)px")
_UNTURNED = re.compile(r"rotate\(-?0[ .]")
_UNSEEN = "fill: none"


@dataclass(frozen=True, slots=True)
class Words:
    """What a picture is called, and what it shows, for those who do not see it.

    One without a title is decoration.
    """

    key: str  # within the page; its ids begin with it
    title: str
    description: str


def page_element(
    svg: bytes,
    words: Words,
    size: tuple[float, float],
    names: Mapping[str, str],
    variables: Mapping[str, str],
) -> Markup:
    """The ``svg`` element of a drawing.

    Args:
        svg: as matplotlib writes it, with texts as text.
        size: width and height that it was drawn for.
        names: what stands in place of each text of the drawing, where something does.
        variables: CSS variable of each colour.
    """
    root = ET.fromstring(svg)  # nosec B314 # noqa: S314 - of our own making
    _rename_ids(root, words.key)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.text, element.tail = (element.text or "").strip(), ""
        element.text = names.get(element.text, element.text)
        element.attrib = dict(_attributes(element, variables))
    root[:] = _essence(root)
    root.attrib = {"viewBox": f"0 0 {size[0]:g} {size[1]:g}"}
    _describe(root, words)
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704 - ET has escaped all text


def _describe(root: ET.Element, words: Words) -> None:
    if not words.title:
        root.attrib["aria-hidden"] = "true"
        return
    root.attrib |= {"role": "img", "aria-labelledby": f"{words.key}-title {words.key}-desc"}
    for place, (tag, text) in enumerate((("title", words.title), ("desc", words.description))):
        told = ET.Element(tag, {"id": f"{words.key}-{tag}"})
        told.text = text
        root.insert(place, told)


def _rename_ids(root: ET.Element, key: str) -> None:
    """Ids that something refers to are numbered, unique within the page; the others go.

    matplotlib's own are by chance.
    """
    used: dict[str, str] = {}

    def renamed(old: str) -> str:
        return used.setdefault(old, f"{key}-{len(used)}")

    for element in root.iter():
        if link := element.attrib.pop(_LINK, ""):
            element.attrib["href"] = f"#{renamed(link[1:])}"
        if clip := element.attrib.get("clip-path"):
            element.attrib["clip-path"] = f"url(#{renamed(clip[5:-1])})"
    for element in root.iter():
        own = element.attrib.pop("id", "")
        if own in used:
            element.attrib["id"] = used[own]


def _attributes(element: ET.Element, variables: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Coordinates to a tenth, for a unit is about a pixel; colours and fonts the page's own."""
    for name, value in element.attrib.items():
        if name in ("id", "href", "clip-path"):
            yield name, value
        elif not (name == "transform" and _UNTURNED.match(value)):
            rounded = _NUMBER.sub(lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), value)
            for colour, variable in variables.items():
                rounded = rounded.replace(colour, f"var({variable})")
            yield name, _fonts(rounded) if name == "style" else " ".join(rounded.split())


def _fonts(style: str) -> str:
    """A style without the family of its font: the page has one for pictures."""
    found = _FONT_SIZE.search(style)
    if not found:
        return style
    rest = _FONT.sub("", _FONT_SIZE.sub("", style)).strip("; ")
    return f"font-size: {found[1] or found[2]}px; {rest}"


def _essence(parent: ET.Element) -> Iterator[ET.Element]:
    """Children without groups that mean nothing, invisible paths, metadata and global styles."""
    for child in list(parent):
        if child.tag in ("metadata", "style"):
            continue
        child[:] = _essence(child)
        if child.tag in ("g", "defs") and not len(child):
            continue
        if child.tag == "g" and not child.attrib:
            yield from child
        elif not (child.tag == "path" and child.get("style") == _UNSEEN):
            yield child
