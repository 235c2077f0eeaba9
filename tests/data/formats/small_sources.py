"""Small sources, written where a test wants them, and read as ``prepare`` reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmrec_cli.config.data import DataSection
from llmrec_cli.data.formats import read_source
from llmrec_cli.data.formats.base import Source


def json_lines(*rows: object) -> bytes:
    """A file of one JSON value a line."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def read_small(folder: Path, files: dict[str, bytes], **section: Any) -> Source:
    """Write files, and read them as a ``[data]`` section says.

    Args:
        files: content by name.
        section: keys of ``[data]``; paths are names of ``files``.
    """
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return read_source(DataSection(**section), lambda name: folder / name, scratch)
