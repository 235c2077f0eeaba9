"""polars in this process, streaming, with a bound on its memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import polars as pl

from llmrec_cli.data.engines.engine import Engine

POLARS: Final = Engine("polars", reading={"glob": False})  # a path is no pattern
_BUDGET: Final = "POLARS_OOC_MEMORY_BUDGET_MB"


@contextmanager
def in_process(memory: int) -> Iterator[Engine]:
    """The embedded engine.

    Args:
        memory: MiB; sorts, windows and groups that need more go through files in polars' spill
            folder (below ``/var/tmp``; ``POLARS_OOC_SPILL_DIR`` moves it).  polars 2.1 does so; an
            older polars, or one whose spill folder is full, takes the memory that it needs.

    Raises:
        OSError: the disk refuses what polars writes; it reports that as an error of its own.
    """
    before = os.environ.get(_BUDGET)
    _set_budget(str(memory))
    try:
        yield POLARS
    except pl.exceptions.PolarsError as error:
        refused = re.search(r"\(os error (\d+)\)", str(error))
        if refused is None:
            raise
        raise OSError(int(refused[1]), os.strerror(int(refused[1]))) from error
    finally:
        _set_budget(before)


def _set_budget(value: str | None) -> None:
    """polars takes its budget from the environment, and looks again when a Config is loaded."""
    if value is None:
        os.environ.pop(_BUDGET, None)
    else:
        os.environ[_BUDGET] = value
    pl.Config.load(pl.Config.save())
