"""Readers of raw files: ``read`` turns whatever a recipe names into a ``Source``.

A format is read by the file of its name (``msl-windows``: ``msl_windows.py``), or by the one that
its ``Format`` names, with a function ``read(section, locate, scratch) -> Source``.  This file
imports nothing heavy: ``config.formats`` imports it where a file declares a format of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeAlias

from llmrec_cli.config import formats

if TYPE_CHECKING:
    from llmrec_cli.config.data import DataSection
    from llmrec_cli.data.formats.base import Locate, Source

    Reader: TypeAlias = Callable[[DataSection, Locate, Path], Source]


def find_reader(name: str) -> Reader:
    """What reads the files of a format of ``config.formats``."""
    reader: Reader = importlib.import_module(f"{__name__}.{formats.FORMATS[name].reader}").read
    return reader


def check_beginnings(section: DataSection, locate: Locate) -> None:
    """Read the first lines of every source, as ``read`` would: a few MiB of each file.

    Raises:
        LlmrecError: what ``read`` would say of them.
    """
    from llmrec_cli.data.formats.parsing import read_only_beginnings

    with TemporaryDirectory(prefix="llmrec-check-") as scratch, read_only_beginnings():
        read_source(section, locate, Path(scratch))


def read_source(section: DataSection, locate: Locate, scratch: Path) -> Source:
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
    return find_reader(section.format)(section, locate, scratch)
