"""Evaluated runs as the entries of a comparison: seeds together, every entry with a name of its
own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrec_cli.comparing.cost import ancestors, mean_cost, run_cost
from llmrec_cli.manifest import read_run_manifest
from llmrec_cli.report.comparable import traits_of
from llmrec_cli.report.comparison import Cost, Kind
from llmrec_cli.report.entries import Entry, Evaluation, Ground, Trait
from llmrec_cli.run_folder import MANIFEST_FILE


@dataclass(frozen=True, eq=False)
class Opened:
    """An evaluated run with all that decides where it belongs."""

    run: Evaluation
    ground: Ground
    kind: Kind
    traits: Mapping[str, Trait]
    cost: Cost
    family: str  # what runs have in common that differ in nothing but their seed


def gathered(run: Evaluation, ground: Ground, folder: Path) -> Opened:
    """A run of a folder, with its kind, its traits, its cost and its family."""
    kind: Kind = "conventional" if run.run.startswith("baseline-") else "language model"
    traits = traits_of(run, ground, kind)
    cost = run_cost(folder, run.manifest, run.report)
    return Opened(run, ground, kind, traits, cost, _family(run, traits, folder))


def _family(run: Evaluation, traits: Mapping[str, Trait], folder: Path) -> str:
    """Settings without the seed, of the run and those it stands on; and what has to agree.

    The data count by their content (traits), so ``[data]`` with its paths is left out too.
    """
    paths = [folder.parent / name / MANIFEST_FILE for name in ancestors(run.manifest)]
    parents = [read_run_manifest(path) if path.is_file() else {} for path in paths]
    made = [_settings(manifest) for manifest in (run.manifest, *parents)]
    agree = {what: trait.key for what, trait in traits.items()}
    base = run.manifest.get("facts", {}).get("base")
    return json.dumps([run.run, made, agree, base], sort_keys=True)


def entries_of(opened: Sequence[Opened], notes: list[str]) -> list[Entry]:
    """Put seeds of one run together and name what is left.

    Args:
        opened: runs in the order of the table.
        notes: what a reader has to know is added here.
    """
    groups: list[list[Opened]] = []
    for one in opened:
        group = _group_for(one, groups, notes)
        if group is not None:
            group.append(one)
    names = _names([group[0].run for group in groups])
    return [_entry(name, group) for name, group in zip(names, groups, strict=True)]


def _group_for(one: Opened, groups: list[list[Opened]], notes: list[str]) -> list[Opened] | None:
    """The group that a run belongs to, perhaps a new one; None for what is there already."""
    for group in groups:
        if group[0].family != one.family:
            continue
        if one.run.seed is None:  # counted: the same on the same data
            notes.append(f"{one.run.label} is {group[0].run.label}: counted on the same data")
            return None
        if one.run.seed not in [other.run.seed for other in group]:
            return group
    groups.append([])
    return groups[-1]


def _entry(name: str, group: Sequence[Opened]) -> Entry:
    first, runs = group[0], sorted(group, key=lambda one: one.run.seed or 0)
    return Entry(
        name=name,
        kind=first.kind,
        ground=first.ground,
        evaluations=tuple(one.run for one in runs),
        traits=first.traits,
        cost=mean_cost([one.cost for one in runs]),
    )


def _names(runs: Sequence[Evaluation]) -> list[str]:
    """The run's name where no other entry has it, else with as much of its path as it takes."""
    parts = [_parts(run) for run in runs]
    names = []
    for own in parts:
        rivals = [other for other in parts if other is not own and other[-1] == own[-1]]
        depth = 1
        while depth < len(own) and any(other[-depth:] == own[-depth:] for other in rivals):
            depth += 1
        names.append("/".join(own[-depth:]))
    return names


def _parts(run: Evaluation) -> tuple[str, ...]:
    return run.folder.resolve().parts[1:] if run.folder is not None else (run.run,)


def _settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    settings = manifest.get("settings", {})
    return {key: value for key, value in settings.items() if key not in ("seed", "data")}
