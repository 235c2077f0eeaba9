"""The report: one self-contained HTML file.

``data`` is what it shows, as values; ``comparison`` and ``curves`` make sections of them; ``write``
fills the templates.
"""

from llmrec_cli.report.page.data import Page
from llmrec_cli.report.page.write import render_page, write_page

__all__ = ["Page", "render_page", "write_page"]
