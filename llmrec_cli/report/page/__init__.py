"""The report: one HTML file that needs nothing but itself."""

from llmrec_cli.report.page.material import Page
from llmrec_cli.report.page.write import render_page, write_page

__all__ = ["Page", "render_page", "write_page"]
