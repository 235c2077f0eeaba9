"""Who carries out the relational part of `prepare`: polars in this process, or Apache Spark.

The relations are written once, over narwhals (``filters.py``, ``order.py``); an engine is only how
a parquet file becomes a lazy frame, and what has to be set up and taken down around that.  Both
give the same bytes: nothing in a prepared folder tells which one made it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from llmrec_cli.data.engines.embedded import in_process
from llmrec_cli.data.engines.engine import Engine, Log
from llmrec_cli.data.engines.spark import on_spark
from llmrec_cli.recipe.data import DataSection

__all__ = ["Engine", "Log", "engine_of"]


def open_engine(section: DataSection, log: Path) -> AbstractContextManager[Engine]:
    """The engine that a ``[data]`` section asks for, ready between enter and exit.

    Sources that come split have no relational part: they need no Spark, and start none.

    What it scans and writes lies in folders of this process.  Spark's executors must see them under
    the same paths: on a cluster, the recipe's ``out`` lies on a file system that all share.

    Args:
        log: where Spark's own messages go; the file stays only when Spark fails.

    Raises:
        MachineError: Spark is asked for and not installed, does not start, or fails.
    """
    if section.engine == "spark" and section.split != "given":
        return on_spark(section.spark, log)
    return in_process(section.memory)
