"""The engines that clean and sort interactions: polars in this process, or Apache Spark."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import polars as pl

from llmrec_cli.config.data import DataSection
from llmrec_cli.data.backends.base import Engine, Log
from llmrec_cli.data.backends.spark import on_spark

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


# The engine of `prepare`: polars in this process, or Apache Spark.
#
# The relations are written once, over narwhals (``cleaning.py``, ``splitting.py``). An engine only
# turns a parquet file into a lazy frame, and manages the setup around it. Both engines write the
# same bytes.


__all__ = ["Engine", "Log", "engine_of"]


def open_engine(section: DataSection, log: Path) -> AbstractContextManager[Engine]:
    """The engine that a ``[data]`` section asks for, ready between enter and exit.

    Sources that come split have no relational part: Spark is not started for them.

    It scans and writes in folders of this process.  Spark's executors must see these under the same
    paths: on a cluster, the recipe's ``out`` must be on a file system that all share.

    Args:
        log: where Spark's own messages go; the file stays only when Spark fails.

    Raises:
        MachineError: Spark is asked for and not installed, does not start, or fails.
    """
    if section.engine == "spark" and section.split != "given":
        return on_spark(section.spark, log)
    return in_process(section.memory)
