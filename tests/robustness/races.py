"""``python -m tests.robustness.races``: every pair of commands of one experiment, at once.

Two commands are forked at a random offset in a copy of the same experiment.  Each one has to end
well, or to refuse by name what the other one has in hand; one of them has to end well.  Afterwards
every folder is whole, each manifest vouches for what lies beside it, and nothing is left over.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path

from benchmarks.machine import as_line, machine
from benchmarks.small import RECIPE
from llmrec_cli.cli import app
from llmrec_cli.data.prepared import load_prepared
from llmrec_cli.errors import LlmrecError
from llmrec_cli.utils.files import HASHES_FILE, check_folder, read_json

COMMANDS = {
    "prepare": "prepare tiny.toml",
    "sft": "sft tiny.toml",
    "baseline": "baseline --model itemknn tiny.toml",
    "align": "align --method msl tiny.toml",
    "eval": "eval tiny.toml --run baseline-pop",
    "run": "run tiny.toml",
    "recommend": "recommend --run runs/tiny/sft --history 0102390101 --json",
    "export": "export --run runs/tiny/sft --to exported",
}
SERVING = ("recommend", "export")  # need a model that is trained
REFUSALS = (
    "another llmrec is working in it",
    "another llmrec is evaluating it",
    "is finished and is never overwritten",
    "exists already and is never overwritten",
    "was evaluated on test before",
    "nothing is overwritten",
    "not a prepared folder",  # of what needs data, beside prepare
)
PAIRS = tuple(combinations_with_replacement(COMMANDS, 2))
PRELOADED = ("torch", "transformers", "llmrec_cli.pipeline.run", "llmrec_cli.serving.export")
OFFSETS = (0.0, 0.02, 0.1, 0.5, 2.0)  # seconds: the longest that one draws from


@dataclass
class Tried:
    """What the tries of one pair of commands ended in."""

    pair: tuple[str, str]
    ends: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def make_homes(scratch: Path) -> None:
    """Experiments to begin with: nothing yet; data and no base model; and a trained model.

    In a child: what these commands start (threads) must not be there when commands are forked.
    """
    states = {"fresh": (), "prepared": ("prepare",), "trained": ("prepare", "sft")}
    for state, words in states.items():
        home = scratch / state
        home.mkdir()
        (home / "tiny.toml").write_text(RECIPE.replace('parent = "sft"', 'parent = "base"'))
        for word in words:
            code, said = ended(typed(COMMANDS[word], home, 0.0, scratch / "said"), scratch / "said")
            if code:
                raise SystemExit(f"{word}: exit code {code}: {said}")


def state_for(pair: tuple[str, str]) -> str:
    """The experiment that a pair begins with."""
    if set(pair) & set(SERVING):
        return "trained"
    return "fresh" if "prepare" in pair or pair == ("run", "run") else "prepared"


def typed(words: str, cwd: Path, offset: float, said: Path) -> int:
    """Begin a command line in a process forked from this one; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.chdir(cwd)
        time.sleep(offset)
        sys.argv = ["llmrec", *words.split()]
        app.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)


def ended(child: int, said: Path) -> tuple[int, str]:
    """Exit code of a command and the last line that it said, once it has ended."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    lines = said.read_text(errors="replace").splitlines()
    return code, lines[-1][:300] if lines else ""


def race(pair: tuple[str, str], home: Path, scratch: Path, draw: random.Random) -> tuple[str, str]:
    """Two commands at once: how they ended, and what is wrong with that (empty: nothing)."""
    place = scratch / "at"
    shutil.copytree(home, place)
    order, offset = list(pair), draw.uniform(0, draw.choice(OFFSETS))
    draw.shuffle(order)
    texts = [scratch / "said-0", scratch / "said-1"]
    children = [
        typed(COMMANDS[name], place, delay, text)
        for name, delay, text in zip(order, (0.0, offset), texts, strict=True)
    ]
    ends = [ended(child, text) for child, text in zip(children, texts, strict=True)]
    wrong = [*wrong_ends(order, ends), *checked(place, scratch / "wrong")]
    shutil.rmtree(place)
    shown = "both done" if not any(code for code, _ in ends) else "one refused"
    return shown, f"{' and '.join(order)} {offset:.3f} s later: {'; '.join(wrong)}" if wrong else ""


def wrong_ends(order: Sequence[str], ends: Sequence[tuple[int, str]]) -> Iterator[str]:
    """Ends that are neither done nor a refusal by name; or that nobody was done."""
    for name, (code, said) in zip(order, ends, strict=True):
        if code and not (code == 2 and any(text in said for text in REFUSALS)):
            yield f"{name} ended with {code}: {said}"
    if all(code for code, _ in ends):
        yield "both were refused"


def checked(place: Path, answer: Path) -> list[str]:
    """``wrong_files`` in a child, for reading starts threads too."""
    child = os.fork()
    if child == 0:
        answer.write_text("nothing could be read")
        try:
            answer.write_text("\n".join(wrong_files(place)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return answer.read_text().splitlines()


def wrong_files(place: Path) -> Iterator[str]:
    """Folders that are not whole, and what is left over."""
    try:
        for manifest in place.glob("runs/*/prepared/manifest.json"):
            load_prepared(manifest.parent)
        for hashes in place.rglob(HASHES_FILE):
            check_folder(hashes.parent)
        for file in place.glob("runs/**/*.json"):
            read_json(file)
    except LlmrecError as error:
        yield str(error)
    ending = re.compile(r"\.(tmp|partial|part)$")
    left = [path.name for path in place.rglob("*") if ending.search(path.name)]
    if left:
        yield f"left over: {left}"


def raced(
    pairs: Sequence[tuple[str, str]],
    times: int,
    minutes: float,
    seed: int,
    report: Callable[[str], None],
) -> list[Tried]:
    """Every pair so many times, one of each pair in turn, or until the time is over."""
    for name in PRELOADED:  # once; nothing of it is used here, so no threads run
        importlib.import_module(name)
    found, draw, begun = [Tried(pair) for pair in pairs], random.Random(seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="races-") as name:
        scratch = Path(name)
        make_homes(scratch)
        for _ in range(times):
            for tried in found:
                if time.monotonic() - begun > 60 * minutes:
                    return found
                home = scratch / state_for(tried.pair)
                shown, problem = race(tried.pair, home, scratch, draw)
                tried.ends[shown] += 1
                if problem:
                    tried.problems.append(problem)
                    report(f"WRONG: {problem}")
    return found


def as_table(found: Sequence[Tried]) -> list[str]:
    """A line per pair, in Markdown."""
    lines = ["| pair | tries | both done | one refused by name | wrong |", "|---|---|---|---|---|"]
    for one in found:
        done, refused = one.ends["both done"], one.ends["one refused"]
        wrong, tries = len(one.problems), one.ends.total()
        name = " + ".join(one.pair)
        lines.append(f"| {name} | {tries} | {done} | {refused} | {wrong} |")
    return lines


def main() -> int:
    """Race all pairs; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.robustness.races", description=__doc__)
    parser.add_argument("--pairs", type=int, default=50, help="tries of each pair of commands")
    parser.add_argument("--minutes", type=float, default=600.0, help="stop after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--out", type=Path, help="folder for a page of what was found")
    given = parser.parse_args()
    pairs = [pair for pair in PAIRS if set(pair) <= set(given.commands)]
    say = partial(print, flush=True)
    found = raced(pairs, given.pairs, given.minutes, given.seed, say)
    wrong = [problem for one in found for problem in one.problems]
    total = sum(one.ends.total() for one in found)
    head = f"{total} pairs of commands at random offsets, {len(wrong)} wrong"
    lines = [head, "", *as_table(found)]
    print("\n".join(lines))
    if given.out:
        facts = machine()
        title = f"# Two commands of one experiment at once, {facts['date']}"
        about = f"`python -m tests.robustness.races`: {as_line(facts)}."
        page = [title, "", about, *lines, *([""] if wrong else []), *(f"- {w}" for w in wrong), ""]
        (given.out / f"{facts['date']}-races.md").write_text("\n".join(page))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
