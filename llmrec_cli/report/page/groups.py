"""The compared metric by groups of rows, and what the recommended lists look like."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from llmrec_cli.report.comparison import Comparison
from llmrec_cli.report.figures.axes import short_number
from llmrec_cli.report.figures.canvas import DASHES, SERIES, Look
from llmrec_cli.report.figures.forest import Whisker, forest
from llmrec_cli.report.figures.profile import ROOM, profile
from llmrec_cli.report.figures.svg import Words
from llmrec_cli.report.page.common import HISTORY, LOOKS, table_of
from llmrec_cli.report.page.document import Block, Cell, Figure, Prose, Section, Table
from llmrec_cli.report.page.material import BeamError, Group, Page, Slicing
from llmrec_cli.report.page.words import count, ends, figure, name_of
from llmrec_cli.report.tables import sheets

_TITLES: Final = {
    "popularity": "By popularity of the target",
    "history": "By length of the history",
}
_BEAM_TEXT = (
    "A beam keeps a few beginnings of titles at each step and may lose the best entries on the "
    "way; the exact search proves its list. This is how often the two differ."
)


def by_group(page: Page) -> Iterator[Section]:
    """A section per way to group rows; one group alone would repeat the leaderboard."""
    for slicing in page.slicings:
        if len(slicing.groups) > 1:
            blocks = (Prose(_explained(slicing, page)), _profiles(slicing, page.comparison))
            yield Section(f"by-{slicing.by}", _TITLES[slicing.by], blocks)


def lists(page: Page) -> Section:
    """Lists as a whole: their variety, and AUC where it was asked for."""
    comparison, blocks = page.comparison, list[Block]()
    if comparison.headline != "pairs":
        label = f"Variety and popularity, {HISTORY[comparison.headline]}"
        blocks.append(table_of(sheets.lists(comparison), label))
    if any(standing.auc for standing in comparison.standings):
        blocks.append(table_of(sheets.auc(comparison), "Target against one other item (AUC)"))
    return Section("lists", "What is recommended", tuple(blocks))


def beam_error(page: Page) -> Section:
    """How often a beam does not find what there is to find."""
    blocks = (Prose(_BEAM_TEXT), _beam(page.beam_errors)) if page.beam_errors else ()
    return Section("beam-error", "Beam error", blocks)


def _explained(slicing: Slicing, page: Page) -> str:
    groups = "; ".join(
        f"{_unbroken(bounds(group))} ({count(group.rows, 'row')}, {count(group.users, 'user')})"
        for group in slicing.groups
    )
    shown, known = len(slicing.estimates), len(page.comparison.standings)
    left = "" if shown == known else f" {known - shown} entries rank other rows and are left out."
    if slicing.by == "popularity":
        what = "Rows grouped by how often the target's entry occurs in training"
    else:
        cut = f", at most {slicing.longest}" if slicing.longest else ""
        what = f"Rows grouped by the number of items in the history that a model is shown{cut}"
    return f"{what}, in groups of about equal size where ties allow: {groups}.{left}"


def _unbroken(text: str) -> str:
    return text.replace("\N{EN DASH}", "\N{WORD JOINER}\N{EN DASH}\N{WORD JOINER}")


def bounds(group: Group) -> str:
    """3-7, or 5."""
    low, high = group.low, group.high
    return f"{low:,}" if low == high else f"{low:,}\N{EN DASH}{high:,}"


def _below(groups: tuple[Group, ...]) -> list[str]:
    """The same as pictures have room for: else from where on, 16+."""
    names = [bounds(group) for group in groups]
    if sum(map(len, names)) <= ROOM:
        return names
    return [
        f"{short_number(group.low)}{'' if group.low == group.high else '+'}" for group in groups
    ]


def _profiles(slicing: Slicing, comparison: Comparison) -> Figure:
    names = [bounds(group) for group in slicing.groups]
    kinds = {standing.name: standing.kind for standing in comparison.standings}
    panels, below = [], _below(slicing.groups)
    for place, (entry, own) in enumerate(slicing.estimates.items()):
        others = [found for name, found in slicing.estimates.items() if name != entry]
        told = "; ".join(
            f"{name}: {figure(interval.mean)} {ends(interval.low, interval.high)}"
            for name, interval in zip(names, own, strict=True)
        )
        shown = name_of(entry)
        words = Words(
            f"{slicing.by}-{place}", f"{slicing.metric.upper()} of {shown} by {slicing.by}", told
        )
        panels.append(profile(words, shown, own, others, below, LOOKS[kinds[entry]]))
    caption = (
        f"{slicing.metric.upper()} by group, {HISTORY[comparison.headline]}, with 95 % intervals "
        "over users; all other entries pale behind. Equal scales."
    )
    return Figure(tuple(panels), caption, _data(slicing, names), size="small")


def _data(slicing: Slicing, names: list[str]) -> Table:
    rows = tuple(
        (
            Cell((name_of(entry),)),
            *(Cell((figure(one.mean), ends(one.low, one.high))) for one in own),
        )
        for entry, own in slicing.estimates.items()
    )
    label = f"Data: {slicing.metric.upper()} {_TITLES[slicing.by].lower()}"
    return Table(label, ("entry", *names), rows, folded=True)


def _beam(errors: tuple[BeamError, ...]) -> Figure:
    look = Look(SERIES[0], DASHES[0], "o")
    lines = [
        Whisker(name_of(one.entry), one.share.mean, one.share.low, one.share.high, look)
        for one in errors
    ]
    told = "; ".join(f"{one.name} {figure(one.mean)} {ends(one.low, one.high)}" for one in lines)
    words = Words("beam-error", "Beam error", told)
    rows = tuple(
        (
            Cell((name_of(one.entry),)),
            Cell((f"{one.rows:,}",)),
            Cell((figure(one.share.mean), ends(one.share.low, one.share.high))),
        )
        for one in errors
    )
    data = Table("Data: beam error", ("entry", "rows", "share"), rows, folded=True)
    caption = "Share of rows whose beam list is not the exact one; 95 % intervals over users."
    return Figure((forest(words, lines, "share of rows", None),), caption, data)
