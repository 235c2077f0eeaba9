"""The site builds without a warning, and shows itself without another host."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.doc_pages import ROOT

pytestmark = pytest.mark.slow

LOADED = re.compile(r"""<(?:script|link|img|iframe)[^>]*?\b(?:src|href)=["']?(https?:)?//""")
IMPORTED = re.compile(r"""url\(["']?(?:https?:)?//|@import""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    assert [page.name for page in pages if LOADED.search(page.read_text(encoding="utf-8"))] == []
    styles = sorted(site.rglob("*.css"))
    assert [page.name for page in styles if IMPORTED.search(page.read_text())] == []


def test_results_are_pages_with_their_pictures(site: Path) -> None:
    methods = (site / "methods" / "ilrec.html").read_text(encoding="utf-8")
    assert 'href="../results/2026-11-23-instruments-study.html"' in methods
    assert (site / "results" / "2026-11-23-instruments-study.html").is_file()
    performance = (site / "performance.html").read_text(encoding="utf-8")
    assert 'src="results/growth/growth-items.png"' in performance
    assert (site / "results" / "growth" / "growth-items.png").is_file()


def test_no_code_of_the_site_is_published(site: Path) -> None:
    assert not list(site.rglob("*.py"))
