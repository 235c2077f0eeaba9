"""The audit of the data, and ten users with what they are recommended."""

from __future__ import annotations

from llmrec_cli.report.page.document import (
    Column,
    Finding,
    Line,
    Prose,
    Section,
    User,
    Users,
    Verdicts,
)
from llmrec_cli.report.page.material import Page, TopList, UserCase
from llmrec_cli.report.page.words import count, name_of, shown

_EXAMPLE = 60


def audit(page: Page) -> Section:
    """Verdicts on the data, what misleads first."""
    several = len(page.audits) > 1
    blocks = tuple(
        Verdicts(
            name_of(audited.name) if several else "",
            tuple(
                Finding(
                    verdict.level,
                    verdict.check,
                    verdict.text,
                    tuple(shown(example, _EXAMPLE) for example in verdict.examples),
                )
                for level in ("warning", "note", "ok")
                for verdict in audited.verdicts
                if verdict.level == level
            ),
        )
        for audited in page.audits
        if audited.verdicts
    )
    return Section("audit", "Audit of the data", blocks)


def users(page: Page) -> Section:
    """Users with their history, their target and every entry's list."""
    if not page.users:
        return Section("users", "", ())
    prose = Prose(
        "These are the users whose id has the smallest SHA-256: nobody chose them for their lists, "
        "and the same data show the same users. Histories run from old to new; of entries with "
        "several seeds the first one's lists are shown. "
        "A grey title stands in the history already."
    )
    title = f"{count(len(page.users), 'user')}, side by side"
    shown_users = tuple(_user(place, case) for place, case in enumerate(page.users, start=1))
    return Section("users", title, (prose, Users(shown_users)))


def _user(place: int, case: UserCase) -> User:
    found = [one for one in case.lists if one.rank]
    best = min((one.rank for one in found), default=0)
    summary = f"target found by {len(found)} of {len(case.lists)}"
    summary += f", best at place {best}" if best else ""
    times = "never" if not case.target_count else count(case.target_count, "time")
    return User(
        place=place,
        name=name_of(case.user),
        summary=summary,
        history=tuple(map(shown, case.history)),
        target=shown(case.target),
        seen=f"in training {times}",
        columns=tuple(map(_column, case.lists)),
    )


def _column(one: TopList) -> Column:
    lines = tuple(
        Line(shown(item.title), "target" if item.target else "seen" if item.seen else "")
        for item in one.items
    )
    verdict = f"target at place {one.rank}" if one.rank else "target not found"
    return Column(name_of(one.entry), verdict, bool(one.rank), lines)
