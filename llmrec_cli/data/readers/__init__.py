"""Readers of raw files: ``read`` turns whatever a recipe names into a ``Source``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from llmrec_cli.data.readers import (
    amazon2014,
    amazon2018,
    amazon2023,
    interactions,
    rank_pairs,
    ratings,
    semantic_ids,
    split2023,
    windows,
)
from llmrec_cli.data.readers.lines import beginnings
from llmrec_cli.data.readers.source import Locate, Source
from llmrec_cli.recipe.data import DataFormat, DataSection

__all__ = ["Source", "check_beginnings", "read"]

_READERS: Final[dict[DataFormat, Callable[[DataSection, Locate, Path], Source]]] = {
    "amazon2014": amazon2014.read,
    "amazon2018": amazon2018.read,
    "amazon2023": amazon2023.read,
    "ratings2014": ratings.read,
    "ratings2018": ratings.read,
    "ratings2023": ratings.read,
    "split2023": split2023.read,
    "interactions": interactions.read,
    "msl-windows": windows.read,
    "semantic-ids": semantic_ids.read,
    "rank-pairs": rank_pairs.read,
}


def check_beginnings(section: DataSection, locate: Locate) -> None:
    """Read the first lines of every source, as ``read`` would: a few MiB of each file.

    Raises:
        LlmrecError: what ``read`` would say of them.
    """
    with TemporaryDirectory(prefix="llmrec-check-") as scratch, beginnings():
        read(section, locate, Path(scratch))


def read(section: DataSection, locate: Locate, scratch: Path) -> Source:
    """Read the files of a ``[data]`` section.

    Args:
        section: format and files.
        locate: path in the recipe -> path on disk.
        scratch: an existing, empty folder for ``interactions.parquet``.

    Raises:
        DataError: anything wrong in a file, as one line ``path:line: problem; expected ...``.
        RecipeError: the section lacks a file or column that its format needs.
        MachineError: a file exists but cannot be read, or the scratch folder cannot be written.
    """
    return _READERS[section.format](section, locate, scratch)
