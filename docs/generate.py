"""Write the pages that follow from the code: commands, the keys of a recipe, the Python face.

``make docs`` runs it; ``tests/docs/test_docs_generated.py`` fails where a page is not what this
makes.  Besides the pages it owns the list of commands in ``mkdocs.yml``, and the list of metrics in
``add-a-metric.md``.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # this checkout, not an installed one

from generate_commands import command_pages, nav_lines
from generate_python import python_page
from generate_recipe import recipe_page

from llmrec_cli.evaluation.metrics import define_metrics

DOCS = Path(__file__).resolve().parent
MKDOCS = DOCS.parent / "mkdocs.yml"
BEGIN, END = "# commands: written by make docs", "# end of commands"
METRICS_PAGE = DOCS / "add-a-metric.md"
METRICS_BEGIN, METRICS_END = "<!-- metrics: written by make docs -->", "<!-- end of metrics -->"


def generated() -> dict[Path, str]:
    """Every file that is generated, and what it has to hold."""
    found = {DOCS / name: text for name, text in command_pages(DOCS).items()}
    found[DOCS / "recipe.md"] = recipe_page()
    found[DOCS / "python.md"] = python_page()
    found[MKDOCS] = with_commands(MKDOCS.read_text(encoding="utf-8"))
    found[METRICS_PAGE] = with_metrics(METRICS_PAGE.read_text(encoding="utf-8"))
    return found


def with_metrics(page: str) -> str:
    """The page with the metrics that there are between its two marks."""
    before, rest = page.split(METRICS_BEGIN)
    _, after = rest.split(METRICS_END)
    rows = [f"| `{name}` | {definition} |" for name, definition in define_metrics().items()]
    table = "\n".join(["| metric | of a row |", "|---|---|", *rows])
    return f"{before}{METRICS_BEGIN}\n{table}\n\n{METRICS_END}{after}"


def with_commands(config: str) -> str:
    """mkdocs.yml with the commands that there are between its two marks."""
    before, rest = config.split(BEGIN)
    indent = before[before.rindex("\n") + 1 :]
    _, after = rest.split(END)
    lines = "\n".join(f"{indent}{line}" for line in [BEGIN, *nav_lines(), END])
    return before.removesuffix(indent) + lines + after


def unknown() -> list[Path]:
    """Pages of commands that no longer exist."""
    return sorted(set((DOCS / "commands").glob("*.md")) - set(generated()))


def main() -> None:
    """Write what differs, remove what has no command any more, and say so."""
    for path, text in generated().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"written: {path.relative_to(DOCS.parent)}")
    for path in unknown():
        path.unlink()
        print(f"removed: {path.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
