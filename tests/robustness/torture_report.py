"""What the kills hit and what became of the runs, as JSON and as a Markdown page."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.machine import as_line, machine


@dataclass(frozen=True)
class Hit:
    """One kill: how it was aimed, the phase that it hit, and the newest checkpoint it left."""

    kind: str
    phase: str
    step: int


@dataclass
class Outcome:
    """The runs of one case."""

    case: str
    processes: int
    runs: int = 0
    refusals: int = 0
    hits: list[Hit] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line."""
        verdict = "; ".join(self.problems) or "all ended like the uninterrupted run"
        return (
            f"{self.case}, {self.processes} process(es): {len(self.hits)} kills and "
            f"{self.refusals} refused operations over {self.runs} runs: {verdict}"
        )


def write_report(
    folder: Path, outcomes: list[Outcome], size: str, seed: int, minutes: float
) -> None:
    """Write ``DATE-torture.json`` and ``.md`` into a folder, and print the latter."""
    facts = machine()
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "size": size,
        "seed": seed,
        "minutes": round(minutes, 1),
        "machine": facts,
        "cases": [asdict(outcome) for outcome in outcomes],
    }
    (folder / f"{facts['date']}-torture.json").write_text(json.dumps(document, indent=2) + "\n")
    text = _markdown(outcomes, size, seed, minutes, as_line(facts))
    (folder / f"{facts['date']}-torture.md").write_text(text)
    print(text)


def _markdown(
    outcomes: list[Outcome], size: str, seed: int, minutes: float, machine_line: str
) -> str:
    kills = sum(len(outcome.hits) for outcome in outcomes)
    broken = sum(bool(outcome.problems) for outcome in outcomes)
    verdict = "no promise was broken" if not broken else f"{broken} cases broke a promise"
    return f"""# Killed and resumed: {kills} kills, {verdict}

`python -m tests.robustness.torture --size {size} --seed {seed}`, {minutes:.0f} minutes;
{machine_line}.

Each kill is `SIGKILL` to the whole process group.  A run is resumed until it is done; its folder
(checkpoints, optimizer, state, metrics rows, written model, and what was mined or precomputed) must
then equal an uninterrupted run's byte for byte, clock times and command lines apart, with no file
more or less.

{_runs_table(outcomes)}

Where the kills hit, by how they were aimed:

{_hits_table(outcomes)}
{_problems(outcomes)}"""


def _runs_table(outcomes: list[Outcome]) -> str:
    rows: list[tuple[str, ...]] = [
        ("case", "processes", "runs", "kills", "inside a save", "refusals", "bit-identical")
    ]
    for o in outcomes:
        inside = sum(hit.phase.startswith(("save", "prune")) for hit in o.hits)
        same = "NO" if o.problems else "all"
        counts = (o.processes, o.runs, len(o.hits), inside, o.refusals)
        rows.append((o.case, *map(str, counts), same))
    return _table(rows)


def _hits_table(outcomes: list[Outcome]) -> str:
    hits = [hit for outcome in outcomes for hit in outcome.hits]
    kinds = sorted({hit.kind for hit in hits})
    counted = Counter((hit.phase, hit.kind) for hit in hits)
    phases = Counter(hit.phase for hit in hits)
    rows = [("phase", *kinds, "all")]
    for phase, count in phases.most_common():
        rows.append((phase, *(str(counted[phase, kind] or "") for kind in kinds), str(count)))
    return _table(rows)


def _problems(outcomes: list[Outcome]) -> str:
    broken = [outcome for outcome in outcomes if outcome.problems]
    return "".join(f"\n## {o.case}, {o.processes}\n\n" + "\n".join(o.problems) for o in broken)


def _table(rows: list[tuple[str, ...]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])
