"""The table of architectures is what the look at them says."""

from __future__ import annotations

import pytest

from benchmarks.architectures import BEGIN, END, PAGE, Row, look_at, names, with_table

pytestmark = pytest.mark.slow  # a model of each architecture

TEXT = PAGE.read_text(encoding="utf-8")
LINES = TEXT.partition(BEGIN)[2].partition(END)[0].splitlines()
SHOWN = {
    cells[0]: Row(cells[0], (cells[1], cells[2]), cells[3])
    for line in LINES
    if line.startswith("| ") and not line.startswith("| model type ")
    for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
}


def test_the_page_lists_every_causal_language_model() -> None:
    assert list(SHOWN) == names(), "run python -m benchmarks.architectures"


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "mistral", "mpt", "gpt_neo", "gemma2", "bert", "llama, dynamic"]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_page_says_what_a_look_says(name: str) -> None:
    found = look_at(name)
    assert SHOWN[name].cells == found.cells
    named = [part.rpartition(" ")[0] for part in found.note.split(", ")]
    assert [part.rpartition(" ")[0] for part in SHOWN[name].note.split(", ")] == named


def test_only_the_table_is_rewritten() -> None:
    row = Row("llama", ("yes", "no"), "tree 0.2")
    found = with_table(f"Before.\n\n{BEGIN}\nold\n{END}\nafter\n", [row])
    assert found.startswith(f"Before.\n\n{BEGIN}\n")
    assert found.endswith(f"| llama | yes | no | tree 0.2 |\n{END}\nafter\n")
    assert "old" not in found
    assert with_table(found, [row]) == found
