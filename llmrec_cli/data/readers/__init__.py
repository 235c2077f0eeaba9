"""Readers of raw files: ``read`` turns whatever a recipe names into a ``Source``."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from llmrec_cli.data.readers.lines import beginnings
from llmrec_cli.data.readers.source import Locate, Source
from llmrec_cli.recipe.data import DataSection

__all__ = ["Source", "check_beginnings", "read"]


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
    reader = import_module(f"{__name__}.{section.form.reader}")
    source: Source = reader.read(section, locate, scratch)
    return source
