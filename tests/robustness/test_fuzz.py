"""Every parser under pseudo-random input, for seconds; ``make fuzz`` runs the same for long."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from llmrec_cli.errors import DataError, MachineError
from tests.robustness.fuzz.mutate import mutated
from tests.robustness.fuzz.target import Target, Tried, attempt, lay_out
from tests.robustness.fuzz.targets import TARGETS

pytestmark = pytest.mark.slow

SLOW = ("recommend", "export", "prepared", "resume", "compare", "base-model")  # of models
MIXED = ("download-words", "recipe-overrides")  # no word of theirs is right for every question
SEED = 20261124


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_input_is_read_or_refused_in_one_line(target: Target) -> None:
    tried = Tried(target.name)
    for number in range(3 if target.name in SLOW else 12):
        attempt(target, SEED, number, tried)
    assert not tried.found, "\n".join(story for _, story in tried.found)


@pytest.mark.parametrize(
    "target", [t for t in TARGETS if t.name not in (*SLOW, *MIXED)], ids=lambda t: t.name
)
def test_right_input_is_read(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise nothing but refusals would be tried."""
    lay_out(target.corpus[0], tmp_path)
    monkeypatch.chdir(tmp_path)
    target.run(tmp_path, Random(3))


def _raises(error: BaseException) -> Target:
    def run(folder: Path, rng: Random) -> None:
        raise error

    return Target("made", lambda: [{"a": b"1"}], run)


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (DataError("a.csv:1: not a number"), 0),
        (DataError("two\nlines"), 1),
        (DataError(""), 1),
        (MachineError("of the machine, and the input is to blame"), 1),
        (IndexError("list index out of range"), 1),
    ],
)
def test_what_counts_as_a_finding(error: BaseException, found: int) -> None:
    tried = Tried("made")
    attempt(_raises(error), 0, 0, tried)
    assert (len(tried.found), tried.refused.total()) == (found, 1 - found)


def test_an_input_follows_from_target_seed_and_number() -> None:
    files = {"a.json": b'{"a": [1, 2, {"b": null}]}', "b.csv": b"1,2\n3,4\n", "c.toml": b"a = 1\n"}
    first, second = ([mutated(files, Random(f"{seed}/{n}")) for n in range(50)] for seed in (1, 1))
    assert first == second
    assert first != [mutated(files, Random(f"2/{n}")) for n in range(50)]
    assert sum(found != files for found in first) > 45
