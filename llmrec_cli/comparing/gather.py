"""Evaluated runs as the entries of a comparison: seeds together, every entry with a name of its
own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmrec_cli.comparing.cost import average_costs, find_ancestors, measure_cost
from llmrec_cli.comparing.evaluated import PreparedFolders, load_evaluation
from llmrec_cli.report.comparable import traits_of
from llmrec_cli.report.comparison import Cost, Kind
from llmrec_cli.report.entries import Entry, Evaluation, Ground, Trait
from llmrec_cli.runs.run import Run


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """An evaluated run with all that decides where it belongs."""

    run: Evaluation
    ground: Ground
    kind: Kind
    traits: Mapping[str, Trait]
    cost: Cost
    family: str  # what runs have in common that differ in nothing but their seed


def load_run(run: Run, folders: PreparedFolders) -> LoadedRun:
    """An evaluated run, with its kind, its traits, its cost and its family.

    Raises:
        ArtefactError: as ``load_evaluation``.
    """
    evaluation, ground = load_evaluation(run, folders)
    kind: Kind = "language model" if run.is_language_model else "conventional"
    traits = traits_of(evaluation, ground, kind)
    cost = measure_cost(run, evaluation.manifest, evaluation.report)
    family = _identify_family(evaluation, traits, run)
    return LoadedRun(evaluation, ground, kind, traits, cost, family)


def _identify_family(evaluation: Evaluation, traits: Mapping[str, Trait], run: Run) -> str:
    """Settings without the seed, of the run and those it stands on; and what has to agree.

    The data count by their content (traits), so ``[data]`` with its paths is left out too.
    """
    ancestors = find_ancestors(run, evaluation.manifest)
    parents = [one.read_manifest() if one.manifest_file.is_file() else {} for one in ancestors]
    made = [_select_settings(manifest) for manifest in (evaluation.manifest, *parents)]
    agree = {what: trait.key for what, trait in traits.items()}
    base = evaluation.manifest.get("facts", {}).get("base")
    return json.dumps([run.name, made, agree, base], sort_keys=True)


def build_entries(opened: Sequence[LoadedRun], notes: list[str]) -> list[Entry]:
    """Put seeds of one run together and name what is left.

    Args:
        opened: runs in the order of the table.
        notes: what a reader has to know is added here.
    """
    groups: list[list[LoadedRun]] = []
    for one in opened:
        group = _find_group(one, groups, notes)
        if group is not None:
            group.append(one)
    names = _name_groups([group[0].run for group in groups])
    return [_build_entry(name, group) for name, group in zip(names, groups, strict=True)]


def _find_group(
    one: LoadedRun, groups: list[list[LoadedRun]], notes: list[str]
) -> list[LoadedRun] | None:
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


def _build_entry(name: str, group: Sequence[LoadedRun]) -> Entry:
    first, runs = group[0], sorted(group, key=lambda one: one.run.seed or 0)
    return Entry(
        name=name,
        kind=first.kind,
        ground=first.ground,
        evaluations=tuple(one.run for one in runs),
        traits=first.traits,
        cost=average_costs([one.cost for one in runs]),
    )


def _name_groups(runs: Sequence[Evaluation]) -> list[str]:
    """The run's name where no other entry has it, else with as much of its path as it takes."""
    parts = [_path_parts(run) for run in runs]
    names = []
    for own in parts:
        rivals = [other for other in parts if other is not own and other[-1] == own[-1]]
        depth = 1
        while depth < len(own) and any(other[-depth:] == own[-depth:] for other in rivals):
            depth += 1
        names.append("/".join(own[-depth:]))
    return names


def _path_parts(run: Evaluation) -> tuple[str, ...]:
    return run.folder.resolve().parts[1:] if run.folder is not None else (run.run,)


def _select_settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    settings = manifest.get("settings", {})
    return {key: value for key, value in settings.items() if key not in ("seed", "data")}
