"""Commands in processes forked from one that has imported the libraries.

A process of its own costs seconds of imports before it does anything, and the slow tests start
hundreds.  ``run`` asks a server, started once by a test session; it forks for each command.  What a
command finds is what it would find in a process of its own: working folder, environment, standard
streams, signals as a shell leaves them.  It ends as one does, too.  Two things differ: all modules
of the package are imported, and all commands of a session have one seed of ``hash``.  A test that
compares two processes for that uses ``subprocess``.  ``python -m tests.warm`` is the server.

    run --JSON line--> server --fork--> command
        <--JSON line--        <--exit--
"""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from llmrec_cli.cli.app import silence_libraries

ROOT = Path(__file__).parents[1]
_LIBRARIES = (  # what transformers imports when it is asked for it
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "peft",
    "accelerate.state",
    "safetensors.torch",
)
_OWN = {"PYTEST_CURRENT_TEST": ""}  # pytest's, another one in each test
_busy = threading.Lock()  # the server does one thing at a time
_session = dict[str, str]()  # the environment of tests that set no variable; see ``begin``


def begin() -> None:
    """The environment of now is the server's, whichever test is the first to ask for one."""
    _session.clear()
    _session.update(os.environ)


def run(
    cwd: Path, words: tuple[str, ...], module: str = "llmrec_cli"
) -> subprocess.CompletedProcess[str] | None:
    """``llmrec WORDS`` in ``cwd``, nothing on stdin.

    None: a process of its own has to do it.  The environment is not the server's (libraries read
    some variables when they are imported), or another thread has a command run.
    """
    if not _busy.acquire(blocking=False):
        return None
    try:
        started = _start()
        if {**os.environ, **_OWN} != {**started.environment, **_OWN}:
            return None
        answer = started.ask({"cwd": str(cwd), "words": words, "module": module})
    finally:
        _busy.release()
    return subprocess.CompletedProcess(
        ["llmrec", *words], answer["code"], answer["out"], answer["err"]
    )


class _Server:
    """The server, as who asks it sees it."""

    def __init__(self) -> None:
        self.environment = dict(_session)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"],
            cwd=ROOT,
            env=self.environment,
            stdin=pipe,
            stdout=pipe,
            text=True,
        )
        atexit.register(self.stop)

    def ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Have a command run to its end.

        Raises:
            RuntimeError: the server has ended; the next command gets another one.
        """
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            print(json.dumps(asked), file=stdin, flush=True)
            answer: dict[str, Any] = json.loads(stdout.readline())
        except BaseException as broken:  # an interrupt too: the answer would be the next one's
            _start.cache_clear()
            self.stop()
            if not isinstance(broken, OSError | ValueError):
                raise
            raise RuntimeError(
                f"the server of tests.warm ended with {self.process.returncode}"
            ) from broken
        return answer

    def stop(self) -> None:
        """End it; nothing is left of it."""
        atexit.unregister(self.stop)
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what was not sent yet
                pipe.close()


@cache
def _start() -> _Server:
    return _Server()


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints when it is imported is no answer
    before = dict(os.environ)
    silence_libraries()
    for name in _LIBRARIES:
        importlib.import_module(name)
    package = importlib.import_module("llmrec_cli")
    for found in pkgutil.walk_packages(package.__path__, "llmrec_cli."):
        if not found.name.endswith(("__main__", "exported.rank")):
            importlib.import_module(found.name)
    if threading.active_count() > 1:
        raise RuntimeError("a library started a thread: forks would lack it")
    os.environ.clear()  # some libraries add to it when they are imported
    os.environ |= before
    gc.freeze()  # a collection of a child would copy what it shares with the server
    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if not child:
                _become(asked, out, err)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            answer = {"code": code, "out": _read(out), "err": _read(err)}
        print(json.dumps(answer), file=answers, flush=True)


def _become(asked: dict[str, Any], out: IO[bytes], err: IO[bytes]) -> NoReturn:
    """In the child: the command, to its end.

    It ends as a process of its own does, but that modules are not taken down: that would touch, and
    so copy, all memory that it shares with the server.
    """
    code, interrupted = 1, False
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        np.random.seed()  # every child would have the same state
        os.chdir(asked["cwd"])
        sys.argv = ["llmrec", *asked["words"]]
        sys.path[0] = os.getcwd()
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            code = ended.code or 0
        else:
            print(ended.code, file=sys.stderr)
    except BaseException as raised:
        sys.excepthook(*sys.exc_info())
        interrupted = isinstance(raised, KeyboardInterrupt)
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        if interrupted:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(code)


def _read(stream: IO[bytes]) -> str:
    """As ``subprocess`` does in text mode; bytes that are no text become escapes."""
    stream.seek(0)
    return io.TextIOWrapper(stream, encoding="utf-8", errors="backslashreplace").read()


if __name__ == "__main__":
    _serve()
