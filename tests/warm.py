"""Commands in processes forked from one that has imported the libraries.

A process of its own costs seconds of imports before it does anything, and the slow tests start
hundreds.  ``run`` asks a server, started once by a test session; it forks for each command.  What a
command finds is what it would find in a process of its own: working folder, environment, standard
streams, signals as a shell leaves them.  ``python -m tests.warm`` is the server.

    run --JSON line--> server --fork--> command
        <--JSON line--        <--exit--
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
_LIBRARIES = (  # what transformers imports when it is asked for it
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "peft",
    "accelerate.state",
    "safetensors.torch",
)


def run(cwd: Path, words: tuple[str, ...]) -> subprocess.CompletedProcess[str] | None:
    """``llmrec WORDS`` in ``cwd``, nothing on stdin; None: the environment is not the server's.

    (Libraries read some variables when they are imported.)
    """
    started = _start()
    if {**os.environ, **_OWN} != {**started.environment, **_OWN}:
        return None
    asked = {"cwd": str(cwd), "words": words}
    answer = started.ask(asked)
    return subprocess.CompletedProcess(
        ["llmrec", *words], answer["code"], answer["out"], answer["err"]
    )


_OWN = {"PYTEST_CURRENT_TEST": ""}  # pytest's, another one in each test


class _Server:
    """The server, as who asks it sees it."""

    def __init__(self) -> None:
        self.environment = dict(os.environ)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"], cwd=ROOT, stdin=pipe, stdout=pipe, text=True
        )
        atexit.register(self.process.kill)

    def ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Have a command run to its end."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        print(json.dumps(asked), file=stdin, flush=True)
        answer: dict[str, Any] = json.loads(stdout.readline())
        return answer


@cache
def _start() -> _Server:
    return _Server()


def _serve() -> None:
    for name in _LIBRARIES:
        importlib.import_module(name)
    package = importlib.import_module("llmrec_cli")
    for found in pkgutil.walk_packages(package.__path__, "llmrec_cli."):
        if not found.name.endswith(("__main__", "exported.rank")):
            importlib.import_module(found.name)
    if threading.active_count() > 1:
        raise RuntimeError("a library started a thread: forks would lack it")
    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if not child:
                _become(asked, out, err)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            answer = {"code": code, "out": _read(out), "err": _read(err)}
        print(json.dumps(answer), flush=True)


def _become(asked: dict[str, Any], out: IO[bytes], err: IO[bytes]) -> None:
    """In the child: the command, to its end."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(asked["cwd"])
        sys.argv = ["llmrec", *asked["words"]]
        sys.path[0] = ""
        runpy.run_module("llmrec_cli", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _read(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode()


if __name__ == "__main__":
    _serve()
