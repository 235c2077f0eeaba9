"""A small experiment, disks that can be filled and locked, and commands typed on them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.small import RECIPE
from llmrec_cli.cli import app
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.pipeline.run import run
from llmrec_cli.utils.progress import Silent

DISK = 24 << 20  # bytes
MORE = """
extends = "tiny.toml"
[baseline.gru4rec]
hidden = 16
[align.dmpo]
parent = "sft"
[align.ilrec]
parent = "sft"
n = 1
crr = false
"""


def make_home(home: Path) -> None:
    """A finished experiment ``done``, and ``half``, which is prepared and has its base model."""
    (home / "tiny.toml").write_text(RECIPE)
    (home / "more.toml").write_text(MORE)
    before = Path.cwd()
    os.chdir(home)
    try:
        run(read_recipe("tiny.toml", ["name=done"]), progress=Silent())
        (home / "runs/half").mkdir()
        for part in ("prepared", "base"):
            shutil.copytree(home / "runs/done" / part, home / "runs/half" / part)
    finally:
        os.chdir(before)


class Disk:
    """A file system in memory with the home on it."""

    def __init__(self, home: Path, at: Path) -> None:
        self.at = at
        at.mkdir()
        _mount("-t", "tmpfs", "-o", f"size={DISK}", "llmrec", str(at))
        shutil.copytree(home, at, dirs_exist_ok=True)
        self.before = content(at)

    def fill(self, left: int) -> None:
        """Leave so many bytes."""
        free = os.statvfs(self.at)
        with (self.at / "ballast").open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, free.f_bavail * free.f_bsize - left)

    def empty(self) -> None:
        """Give the space back."""
        (self.at / "ballast").unlink()

    def lock(self, *, locked: bool) -> None:
        """Read-only, or not any more."""
        _mount("-o", f"remount,{'ro' if locked else 'rw'}", str(self.at))

    def gone(self) -> None:
        """Forget it."""
        subprocess.run(["umount", str(self.at)], check=True)
        self.at.rmdir()


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its path within the folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "ballast")
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def typed(words: str, cwd: Path, said: Path, *, stdout: str | None = None) -> tuple[int, str, str]:
    """A command line in a process forked from this one: exit code, stdout and stderr.

    Args:
        said: folder, on another disk, for what it says.
        stdout: where its stdout goes instead; ``unread``: a pipe without a reader.
    """
    texts = said / "out", said / "err"
    child = os.fork()
    if child == 0:
        _redirect(texts[1], 2)
        if stdout == "unread":
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, 1)
        else:
            _redirect(Path(stdout) if stdout else texts[0], 1)
        code = 1
        try:
            os.chdir(cwd)
            sys.argv = ["llmrec", *words.split()]
            app.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    shown = [path.read_text(errors="replace") if path.exists() else "" for path in texts]
    for path in texts:
        path.unlink(missing_ok=True)
    return os.waitstatus_to_exitcode(status), shown[0], shown[1]


def _redirect(path: Path, descriptor: int) -> None:
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(opened, descriptor)
    os.close(opened)


def in_name_space(module: str) -> None:
    """Start a module again where it may mount; does not return unless that has happened."""
    if os.environ.get("LLMREC_REFUSALS") == "inside":
        return
    words = ["unshare", "--map-root-user", "--mount", sys.executable, "-m", module]
    os.environ["LLMREC_REFUSALS"] = "inside"
    os.execvp(words[0], [*words, *sys.argv[1:]])  # noqa: S606 - fixed words
