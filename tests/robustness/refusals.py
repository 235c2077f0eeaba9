"""``python -m tests.robustness.refusals``: every command on a machine that refuses.

A small finished experiment lies on a disk of its own, which is read-only, full, or nearly full;
or the command's stdout is full or has lost its reader.  Each command is typed into each:

- the exit code is 3, with one line that names a path of that disk (or stdout) and the reason;
- what lay there before is as it was, and nothing half-written bears a final name;
- once there is space again, the same command (with ``--resume`` where its run was begun) succeeds.

Disks are made in a mount name space of this process alone: Linux, and the right to have one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import as_line, machine
from tests.robustness.refusals_disk import Disk, content, in_name_space, make_home, typed

WRITING = {  # typed beside a finished experiment and one that is only prepared
    "prepare": "prepare tiny.toml name=new",
    "tokenize": "tokenize tiny.toml name=half tokens.kind=semantic-id tokens.vectors=random",
    "sft": "sft tiny.toml name=half",
    "align dmpo": "align --method dmpo more.toml name=done",
    "align ilrec": "align --method ilrec more.toml name=done",
    "baseline": "baseline --model gru4rec more.toml name=done",
    "eval": "eval --split valid --run align-msl tiny.toml name=done",
    "run": "run tiny.toml name=new",
    "compare": "compare runs/done --out b.md --out b.csv --out b.tex --out b.json --out b.html",
    "export": "export --run runs/done/align-msl --to exported",
    "export-lists": "export-lists --run runs/done/sft --to sft.trec --qrels test.qrels",
    "export-data": "export-data tiny.toml name=done --to recbole",
    "sample": "sample --out raw --users 50 --items 40",
    "recipes copy": "recipes copy quickstart --to recipe.toml",
    "sweep": "sweep tiny.toml name=half --grid train.learning_rate=1e-3 --stage sft",
}
SAYING = {
    "recommend": "recommend --run runs/done/align-msl --history 0102390101 --json",
    "audit": "audit runs/done",
    "validate": "validate tiny.toml",
    "compare": "compare runs/done",
    "recipes ls": "recipes ls",
    "runs ls": "runs ls",
    "schema": "schema",
    "env": "env",
}
SPACE = {"full": 0, "40 KiB left": 40 << 10, "200 KiB left": 200 << 10}
STDOUT = ("stdout full", "stdout unread")
FAULTS = ("read-only", *SPACE, *STDOUT)
COMMANDS = tuple(dict.fromkeys((*WRITING, *SAYING)))
APPENDED = (".lock", ".log", ".jsonl", ".db")  # may be empty for a while; so may what says "alive"
PRELOADED = (
    "torch",
    "transformers",
    "llmrec_cli.pipeline.run",
    "llmrec_cli.serving.export",
    "llmrec_cli.sweep.search",
)


@dataclass
class Outcome:
    """How one command ended on one machine."""

    fault: str
    command: str
    code: int
    said: str
    again: int | None = None  # exit code once the fault is gone
    problems: list[str] = field(default_factory=list)


def refused(disk: Disk, fault: str, name: str, said: Path) -> Outcome:
    """One command on a disk that refuses, and again on one that does not."""
    words = WRITING[name]
    locked = fault == "read-only"
    if locked:
        disk.lock(locked=True)
    else:
        disk.fill(SPACE[fault])
    code, out, err = typed(words, disk.at, said)
    end = Outcome(fault, name, code, last_line(err).replace(f"{disk.at}/", ""))
    if code or locked:
        reason = "Read-only file system" if locked else "No space left on device|disk is full"
        end.problems += wrong_end(code, err, [str(disk.at), "runs/", *words.split()], reason)
        end.problems += [f"stdout: {out}"] if out else []
    end.problems += half_written(disk.at, disk.before)
    if locked:
        disk.lock(locked=False)
    else:
        disk.empty()
    if code:
        end.again, problem = again(words, disk, said)
        end.problems += problem
    return end


def again(words: str, disk: Disk, said: Path) -> tuple[int, list[str]]:
    """The same command without the fault, as a user would type it after reading the message."""
    code, _, err = typed(words, disk.at, said)
    if code == 2 and "--resume" in err:
        code, _, err = typed(f"{words} --resume", disk.at, said)
    left = [str(path.relative_to(disk.at)) for path in disk.at.rglob("*.tmp")]
    problems = [f"afterwards: exit code {code}: {last_line(err)}"] if code else []
    return code, problems + ([f"left over in the end: {left}"] if left else [])


def wrong_end(code: int, err: str, names: Sequence[str], reason: str) -> list[str]:
    """What is wrong with the end of a command that had to fail."""
    errors = [line for line in err.splitlines() if ": error: " in line]
    checks = {
        f"exit code {code}": code == 3,
        f"{len(errors)} error lines": len(errors) == 1,
        "the reason is not told": any(re.search(reason, line) for line in errors),
        "no path is named": any(name in line for line in errors for name in names),
        "a traceback": "Traceback" not in err,
        "more lines after the error": not errors or err.splitlines()[-1] == errors[-1],
    }
    return [problem for problem, right in checks.items() if not right]


def half_written(folder: Path, before: Mapping[str, str]) -> list[str]:
    """What changed, and what is new and neither whole nor marked as unfinished.

    Args:
        before: what ``content`` told of the folder.
    """
    now = content(folder)
    changed = [name for name, digest in before.items() if now.get(name) != digest]
    problems = [f"changed: {name}" for name in changed if not _may_change(name)]
    for name in sorted(set(now) - set(before)):
        path = folder / name
        grows = path.suffix in APPENDED or path.name.startswith(".alive-")
        if path.stat().st_size == 0 and not grows:
            problems.append(f"empty: {name}")
        elif path.suffix == ".json" and not _is_json(path):
            problems.append(f"half-written: {name}")
    return problems


def _may_change(name: str) -> bool:
    """A manifest also counts how often a split was opened."""
    return name.endswith("manifest.json")


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def last_line(text: str) -> str:
    """Its last line, shortened."""
    lines = text.splitlines()
    return lines[-1][:300] if lines else ""


def unheard(home: Path, name: str, fault: str, said: Path) -> Outcome:
    """One command whose stdout is full or read by nobody."""
    where = "/dev/full" if fault == "stdout full" else fault.removeprefix("stdout ")
    code, _, err = typed(SAYING[name], home, said, stdout=where)
    end = Outcome(fault, name, code, last_line(err))
    if fault == "stdout full":
        end.problems = wrong_end(code, err, ["stdout"], "No space left on device")
    elif code or "error" in err:
        end.problems = [f"exit code {code}: {last_line(err)}"]
    return end


def tried(
    scratch: Path,
    faults: Sequence[str],
    commands: Sequence[str],
    report: Callable[[Outcome], None],
) -> list[Outcome]:
    """Every one of the commands on every one of the machines."""
    home, said = scratch / "home", scratch / "said"
    for folder in (home, said):
        folder.mkdir()
    for name in PRELOADED:  # once, not in every command; nothing of it is used, so no threads run
        importlib.import_module(name)
    maker = os.fork()
    if maker == 0:
        make_home(home)
        os._exit(0)
    if os.waitpid(maker, 0)[1]:
        raise SystemExit("the experiment could not be made")
    found: list[Outcome] = []
    for fault in [fault for fault in ("read-only", *SPACE) if fault in faults]:
        for name in [name for name in WRITING if name in commands]:
            disk = Disk(home, scratch / "disk")
            found.append(refused(disk, fault, name, said))
            report(found[-1])
            disk.gone()
    for fault in [fault for fault in STDOUT if fault in faults]:
        for name in [name for name in SAYING if name in commands]:
            found.append(unheard(home, name, fault, said))
            report(found[-1])
    return found


def show(end: Outcome) -> None:
    """A line, and one for each problem."""
    print(f"{end.fault} | {end.command} | {end.code} | {end.said}", flush=True)
    for problem in end.problems:
        print(f"   WRONG: {problem}", flush=True)


def write_report(folder: Path, found: Sequence[Outcome]) -> None:
    """Write ``DATE-refusals.md`` into a folder."""
    facts = machine()
    lines = [
        f"# Machines that refuse, {facts['date']}",
        "",
        f"`python -m tests.robustness.refusals`: {as_line(facts)}.",
        summary(found),
        "",
        "| machine | command | exit code | last line | once there is space |",
        "|---|---|---|---|---|",
    ]
    for end in found:
        said = end.said.replace("|", "/")
        then = "; ".join(end.problems) or {None: "", 0: "done"}.get(end.again, str(end.again))
        lines.append(f"| {end.fault} | {end.command} | {end.code} | {said} | {then} |")
    path = folder / f"{facts['date']}-refusals.md"
    path.write_text("\n".join([*lines, ""]))


def summary(found: Sequence[Outcome]) -> str:
    """How many commands were tried, refused, and ended wrongly."""
    wrong = sum(bool(end.problems) for end in found)
    return f"{len(found)} tried, {sum(end.code == 3 for end in found)} refused, {wrong} wrong"


def main() -> None:
    """Try all of it and print what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for a page of what was found")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    arguments = parser.parse_args()
    in_name_space("tests.robustness.refusals")
    with tempfile.TemporaryDirectory() as scratch:
        found = tried(Path(scratch), arguments.faults, arguments.commands, show)
    if arguments.out:
        write_report(arguments.out, found)
    print(summary(found))
    sys.exit(any(end.problems for end in found))


if __name__ == "__main__":
    main()
