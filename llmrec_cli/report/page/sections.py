"""The sections of the page, in order; those without material are left out."""

from __future__ import annotations

from llmrec_cli.report.page.board import leaderboard
from llmrec_cli.report.page.costs import costs
from llmrec_cli.report.page.document import Section, with_content
from llmrec_cli.report.page.findings import audit, users
from llmrec_cli.report.page.groups import beam_error, by_group, lists
from llmrec_cli.report.page.intervals import intervals
from llmrec_cli.report.page.logged import logged_sections
from llmrec_cli.report.page.material import Page
from llmrec_cli.report.page.training import training_curves


def sections_of(page: Page) -> tuple[Section, ...]:
    """All that the page has to show."""
    return with_content(
        (
            leaderboard(page.comparison),
            intervals(page.comparison),
            costs(page.comparison),
            *by_group(page),
            lists(page),
            beam_error(page),
            training_curves(page),
            *logged_sections(page.logs),
            audit(page),
            users(page),
        )
    )
