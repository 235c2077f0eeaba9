"""What mkdocs cannot know: results lie beside ``docs/``, and pages quote them.

The records of ``benchmarks/results`` become pages of the site, and links that leave ``docs/`` for
them (as they must in the repository) lead there.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
LIST = re.compile(r"(?m)^([^\s#|>*-].*)\n(?=[-*] |1\. )")
LINK = re.compile(r"(\]\()(?:\.\./)+benchmarks/(results/[^)\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the results, pages and pictures, without a place in the navigation."""
    for path in sorted(RESULTS.rglob("*")):
        if path.suffix in (".md", ".png"):
            name = f"results/{path.relative_to(RESULTS).as_posix()}"
            found = File.generated(config, name, abs_src_path=str(path))
            found.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(found)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links into ``benchmarks/results`` to the pages made of it.

    A list right behind a line of text gets the empty line that Python's Markdown wants there, and
    GitHub's does not.
    """
    here = posixpath.dirname(page.file.src_uri) or "."
    spaced = LIST.sub(r"\1\n\n", markdown)
    return LINK.sub(lambda found: found[1] + posixpath.relpath(found[2], here), spaced)
