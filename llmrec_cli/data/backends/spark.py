"""The Spark engine: a new session for one `prepare`, or the existing session of this process.

Messages of Spark go to a log file, and a failure becomes one line.  A missing Java or pyspark is
reported before anything is read.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any, Final

from llmrec_cli.config.data import SparkSection
from llmrec_cli.data.backends.base import Engine
from llmrec_cli.errors import MachineError

_ASKED: Final = 'data.engine = "spark"'
_LONGEST: Final = 300  # characters of Spark's own message
_NO_JVM: Final = "JAVA_GATEWAY_EXITED"
_PATIENCE: Final = 60  # seconds for a JVM to end
_SUBMITTED: Final = "PYSPARK_GATEWAY_PORT"  # spark-submit has started the JVM


@contextmanager
def on_spark(settings: SparkSection, log: Path) -> Iterator[Engine]:
    """The engine on Spark.

    A session that is active in this process is used as it is and left running; otherwise one is
    started with ``settings`` (under ``spark-submit``, with what that was given), and its JVM ends
    with it.

    Args:
        log: what the JVM writes to its standard error; removed unless Spark fails.

    Raises:
        MachineError: no pyspark, no Java, or anything that Spark refuses or loses.
    """
    _require_pyspark()
    from pyspark.sql import SparkSession

    running = SparkSession.getActiveSession()
    if running is not None:
        with _quiet_bridge(), _failures_in_one_line(None):
            yield _make_engine(running)
        return
    _require_java()
    with _quiet_bridge(), _start_session(settings, log) as session:
        yield _make_engine(session)
    log.unlink(missing_ok=True)


def _make_engine(session: Any) -> Engine:
    """Paths are this file system's (not the cluster's default one), and no patterns."""
    return Engine(
        "pyspark",
        address=lambda path: f"file://{path.resolve()}",
        reading={"session": session, "__globPaths__": "false"},
    )


@contextmanager
def _start_session(settings: SparkSection, log: Path) -> Iterator[Any]:
    """A session of a JVM of its own, whose output goes to ``log``; both end here."""
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway
    from pyspark.sql import SparkSession

    conf = SparkConf().setAppName("llmrec prepare").set("spark.ui.showConsoleProgress", "false")
    conf.setAll(list(settings.options.items()))
    if settings.master is not None:
        conf.setMaster(settings.master)
    with _failures_in_one_line(log), log.open("wb") as messages:
        gateway = launch_gateway(conf, {"stdout": messages, "stderr": messages})
    context = None
    try:
        with _failures_in_one_line(log):  # in here: Java is asked for the reason while it lives
            with _as_before():
                context = SparkContext(conf=conf, gateway=gateway)
            yield SparkSession.builder.getOrCreate()
    finally:
        _end_session(context, gateway)
        SparkContext._gateway = SparkContext._jvm = None  # the next session needs a new JVM


@contextmanager
def _as_before() -> Iterator[None]:
    """Start a context without Spark's warning about pandas, which is not used here.

    Afterwards, the handler of interrupts is the one from before.
    """
    interrupt = signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
    with suppress(ValueError):  # outside the main thread pyspark leaves the signal alone
        signal.signal(signal.SIGINT, interrupt)


def _end_session(context: Any, gateway: Any) -> None:
    """Stop what runs, and let the JVM go: its memory is wanted by what comes next."""
    from py4j.protocol import Py4JError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a JVM that is gone already
        if context is not None:
            with suppress(Py4JError, ConnectionError):
                context.stop()
            context.stop()  # where the JVM was gone, this Python's side of it
    gateway.shutdown()
    if gateway.proc is not None:  # None under spark-submit
        gateway.proc.stdin.close()  # on which it exits
        try:
            gateway.proc.wait(_PATIENCE)
        except TimeoutExpired:
            gateway.proc.kill()
            gateway.proc.wait()


@contextmanager
def _quiet_bridge() -> Iterator[None]:
    """Hide the tracebacks that py4j logs when the JVM is gone: the error says enough."""
    loggers = (logging.getLogger(), logging.getLogger("py4j.clientserver"))
    for logger in loggers:
        logger.addFilter(_not_of_the_bridge)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_not_of_the_bridge)


def _not_of_the_bridge(record: logging.LogRecord) -> bool:
    return "py4j" not in Path(record.pathname).parts


@contextmanager
def _failures_in_one_line(log: Path | None) -> Iterator[None]:
    """Turn exceptions of Spark and its bridge into a MachineError, without Java's stack."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JError, ConnectionError) as error:
        said = _find_cause(error)
        if log is not None:
            said = f"{_read_complaint(log) if _NO_JVM in said else said} (Spark's messages: {log})"
        raise MachineError(f"{_ASKED}: Spark failed: {said}") from None


def _find_cause(error: Exception) -> str:
    """The first line of the message of Spark, Java or the bridge."""
    from py4j.protocol import Py4JError

    said = getattr(error, "desc", None)  # as captured by pyspark
    java = getattr(error, "java_exception", None)
    try:
        said = said or (java.toString() if java is not None else str(error))
    except (Py4JError, ConnectionError):
        said = "its JVM has ended"
    return _cut_line(next(iter(str(said).strip().splitlines()), type(error).__name__))


def _read_complaint(log: Path) -> str:
    """The reason in the log of a JVM that ended too early to be asked."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines()]
    reasons = [line for line in lines if re.search(r"(Exception|Error)\b.*: ", line)]
    return _cut_line(next(iter(reasons), "Java ended at once"))


def _cut_line(line: str) -> str:
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


def _require_pyspark() -> None:
    if find_spec("pyspark") is None:
        raise MachineError(f"{_ASKED}: pyspark is not installed: pip install 'llmrec[spark]'")


def _require_java() -> None:
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else "java"
    if _SUBMITTED not in os.environ and shutil.which(java) is None:
        raise MachineError(
            f"{_ASKED}: no Java: {java} is not there; install Java 17 or newer, or set JAVA_HOME"
        )
