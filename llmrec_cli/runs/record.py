"""A run's manifest: what it records, and the checks that use it.

    start_run -> (training) -> finish_run -> count_opening, once per evaluation

A manifest holds the run's settings and facts, by whom and how it was made, its outcome and cost.
A run's folder is never overwritten; whoever goes on with it or uses it is compared with them.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import tomli_w

from llmrec_cli import __version__
from llmrec_cli.config.loader import PATH_KEYS
from llmrec_cli.config.model import FROM_MEAN, NEW_TOKENS, TokenStart
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.index import INDEX_HASH
from llmrec_cli.errors import ArtefactError, BegunError, MissingRunError
from llmrec_cli.runs.run import Run, Settings, flatten_table
from llmrec_cli.utils.files import check_folder, translate_os_errors, write_atomically, write_json
from llmrec_cli.utils.locks import lock_evaluation, lock_run
from llmrec_cli.utils.text import redact, redact_values
from llmrec_cli.utils.variables import read_variables

if TYPE_CHECKING:
    from llmrec_cli.training.distributed import Ranks

BASE_FILES: Final = "base_files"  # hashes of a base's files, among a language model's facts
WORDING: Final = "wording"  # hash of the words of prompts, another one; absent: there are none
ITEM_TASK_WORDS: Final = "item_task_words"  # the same of a stage's item tasks
PREPARED: Final = "prepared"  # hash of the manifest of the prepared data, a fact of every run
_MEANINGS: Final = {
    WORDING: "a hash of the words of prompt.template",
    ITEM_TASK_WORDS: "a hash of the words of its item tasks",
    PREPARED: "a hash of the prepared data",
    INDEX_HASH: "a hash of the semantic IDs",
}
_ADVICE: Final = {  # where these differ
    "settings": "use the same recipe",
    "facts": "put back what it was started with",
}
_LATER_FACTS: Final = (BASE_FILES, WORDING)  # that earlier versions did not record
Existing = Literal["refuse", "again", "keep"]
"""What an evaluation does where a report is: an error, evaluate anew, or leave the run alone."""
_EARLIER_START: Final[TokenStart] = FROM_MEAN  # of versions that did not know the choice
EVALUATED: Final = "evaluated"  # of a manifest: what an evaluation was asked for, by split
_PATH_KEYS: Final = frozenset(".".join(keys) for keys in PATH_KEYS)
_PACKAGES: Final = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "numpy",
    "pandas",
    "polars",
)


def start_run(recipe: Recipe, run: Run, facts: Mapping[str, Any], *, resume: bool) -> None:
    """Create the folder of a run, or go on in it.

    Args:
        facts: what the run depends on besides the recipe (hashes of data, catalogue, parent); on
            ``resume`` they must be what they were.

    Raises:
        BegunError: it exists, and ``resume`` is off.
        ArtefactError: it is finished; or recipe or facts changed since.
    """
    folder = run.folder
    if run.is_done and not resume:
        raise ArtefactError(
            f"{folder}: is finished and is never overwritten; choose another name (name=...)"
        )
    if folder.exists() and not resume:
        raise BegunError(
            f"{folder}: exists already and is never overwritten; choose another name (name=...)"
        )
    described = {"run": run.name, "settings": _describe_settings(recipe, run), "facts": dict(facts)}
    if run.manifest_file.is_file():
        _continue_run(recipe, run, described)
        return
    with translate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(run.recipe_file, tomli_w.dumps(redact_values(recipe.to_table())).encode())
    write_json(run.manifest_file, {**described, **collect_circumstances(), "status": "running"})


def _continue_run(recipe: Recipe, run: Run, described: dict[str, Any]) -> None:
    recorded = _read_record(run, recipe)
    begun_without = {key for key in _LATER_FACTS if key not in recorded["facts"]}
    known = {key: fact for key, fact in described["facts"].items() if key not in begun_without}
    described = {**described, "facts": known}
    _require_equal(run, recorded, described)
    if recorded.get("variables") not in (None, now := _read_variables()):
        write_json(run.manifest_file, {**recorded, "variables_resumed": now})


def finish_run(run: Run, outcome: Mapping[str, Any], cost: Mapping[str, Any]) -> None:
    """Mark a run as done, and record how it ended and what it took."""
    ended = {"outcome": dict(outcome), "cost": dict(cost), "status": "done"}
    write_json(run.manifest_file, {**run.read_manifest(), **ended})


def add_to_manifest(run: Run, key: str, value: Mapping[str, Any]) -> None:
    """Put a table beside the others in a run's manifest."""
    write_json(run.manifest_file, {**run.read_manifest(), key: dict(value)})


def count_opening(run: Run, split: str, asked: Settings) -> None:
    """Count in the run's manifest how often a split was opened for it, and record for what.

    Args:
        asked: ``pipeline.setup.describe_evaluation`` of the recipe.

    Raises:
        ArtefactError: another llmrec works in the folder.
    """
    with lock_run(run.folder):  # evaluations on two splits count in one file
        there = run.manifest_file.is_file()
        manifest = run.read_manifest() if there else dict[str, Any](status="done")
        opened = manifest.setdefault("opened", {})
        opened[split] = opened.get(split, 0) + 1
        manifest.setdefault(EVALUATED, {})[split] = asked
        write_json(run.manifest_file, manifest)


@contextmanager
def open_evaluation(run: Run, split: str, ranks: Ranks, existing: Existing) -> Iterator[bool]:
    """A run that this process evaluates alone; whether there is anything to do.

    Args:
        existing: what to do with a report that another process has written meanwhile.

    Raises:
        ArtefactError: another llmrec is evaluating it; or a report is there, to be refused.
    """
    with lock_evaluation(run.folder, split) if ranks.is_first else nullcontext():
        there = ranks.most(int(ranks.is_first and run.is_evaluated(split)))
        if there and existing == "refuse":
            raise evaluated_before(run, split)
        yield not there or existing == "again"


def require_same_evaluation(recipe: Recipe, run: Run, split: str, asked: Settings) -> None:
    """Refuse to keep a report that was made for another ``[eval]``; older runs recorded none.

    Args:
        asked: as ``count_opening`` records it, of the recipe.

    Raises:
        ArtefactError: names the first key that differs, with both values.
    """
    recorded = run.read_manifest().get(EVALUATED)
    if not isinstance(recorded, dict) or split not in recorded:
        return
    known = {key: now for key, now in asked.items() if key in recorded[split] or key != WORDING}
    filled = _fill(recorded[split], run.find_defaults(recipe, run.evaluation_settings(recipe)))
    for key, before, now in list_differences(filled, known):
        meaning = f" ({told})" if (told := explain_fact(key)) else ""
        raise ArtefactError(
            f"{run.folder}: was evaluated on {split} with {key} = {before!r}, now {now!r}{meaning};"
            " use the same recipe, or evaluate again: llmrec eval RECIPE --again (the manifest "
            "counts it)"
        )


def evaluated_before(run: Run, split: str) -> ArtefactError:
    """What to say of a report that is there."""
    return ArtefactError(
        f"{run.folder}: was evaluated on {split} before, and {split} is opened once per run; "
        "add --again to repeat it (the manifest counts it)"
    )


def require_same_settings(recipe: Recipe, run: Run) -> None:
    """Refuse a recipe that a run was not made with.

    Raises:
        ArtefactError: names the first key that differs, with both values.
    """
    recorded = {"settings": _read_record(run, recipe)["settings"], "facts": {}}
    _require_equal(run, recorded, {"settings": _describe_settings(recipe, run), "facts": {}})


def require_same_prompt(recipe: Recipe, run: Run) -> None:
    """Refuse a recipe whose prompts are not those that a run was trained on.

    Raises:
        ArtefactError: names the first key that differs, with both values.
    """
    recorded, now = _read_record(run, recipe)["settings"], run.settings(recipe)
    before, after = (
        {"settings": {"prompt": s.get("prompt")}, "facts": {}} for s in (recorded, now)
    )
    _require_equal(run, before, after)


def describe_other_settings(recipe: Recipe, run: Run) -> str | None:
    """Which choices a run was made with that a recipe no longer has; None: it has them all.

    Keys that only one of them knows are of another version; paths are compared by content.
    """
    recorded, now = _read_record(run, recipe)["settings"], _describe_settings(recipe, run)
    differ = [
        (key, before, after)
        for key, before, after in list_differences(recorded, now)
        if None not in (before, after) and not key.startswith("eval.") and key not in _PATH_KEYS
    ]
    if not differ:
        return None
    (key, before, after), *others = differ
    more = f", and {len(others)} more keys differ" if len(others) > 1 else ""
    more = f", and {others[0][0]} differs" if len(others) == 1 else more
    return f"{run} was made with {key} = {before!r}, the recipe now has {after!r}{more}"


def check_finished(recipe: Recipe, run: Run) -> bool:
    """Whether a run is finished.

    Raises:
        ArtefactError: it is, but was made with other settings.
    """
    if run.is_guided:  # what it was evaluated for is compared where its report is kept
        return run.is_done
    if run.is_done and "settings" in run.read_manifest():  # Pop's, which eval fits, may lack them
        require_same_settings(recipe, run)
    return run.is_done


def require_same_stage(recipe: Recipe, run: Run, facts: Mapping[str, Any]) -> None:
    """Refuse a finished run of another stage table, or one that stands on other facts.

    What only chose among its checkpoints (``[eval]``) may differ.

    Raises:
        ArtefactError: names the first key that differs, with both values.
    """
    recorded = _read_record(run, recipe)
    before = {"settings": {"stage": recorded["settings"].get("stage")}, "facts": recorded["facts"]}
    now = {"settings": {"stage": run.settings(recipe)["stage"]}, "facts": dict(facts)}
    _require_equal(run, before, now)


def require_same_facts(run: Run, facts: Mapping[str, Any]) -> None:
    """Refuse a run that stands on other facts than these; one that it did not record is taken.

    Raises:
        ArtefactError: names the first fact that differs, with both values.
    """
    recorded = run.read_manifest("facts")["facts"]
    before = {key: recorded[key] for key in facts if key in recorded}
    now = {key: facts[key] for key in before}
    _require_equal(run, {"settings": {}, "facts": before}, {"settings": {}, "facts": now})


def require_done(recipe: Recipe, run: Run) -> None:
    """Refuse a run that is not finished, or a trained language model whose result is damaged.

    Raises:
        MissingRunError: the message says what to run.
        ArtefactError: a file is damaged.
    """
    if run.is_done:
        if run.holds_weights:
            check_folder(run.result_folder(recipe))
        return
    raise MissingRunError(f"{run.folder}: {describe_state(run)}", describe_command(run))


def describe_state(run: Run) -> str:
    """Of a run that is not finished."""
    return "is not finished" if run.folder.exists() else "does not exist"


def describe_command(run: Run) -> str:
    """The command that makes a run, or goes on with it."""
    resume = " --resume" if _can_be_resumed(run) else ""
    return f"llmrec {' '.join(run.command)} RECIPE{resume}"


def _can_be_resumed(run: Run) -> bool:
    return run.folder.exists() and not run.is_made_by_eval


def _read_record(run: Run, recipe: Recipe) -> dict[str, Any]:
    """A manifest; keys that an earlier version did not know have the values it worked with.

    A key that is new has its default in common with earlier versions: its default is what they did.

    Args:
        recipe: that the run is compared with.
    """
    recorded = run.read_manifest("settings", "facts")
    settings = recorded["settings"]
    if recipe.token_start is not None and isinstance(model := settings.get("model"), dict):
        settings["model"] = {NEW_TOKENS: _EARLIER_START, **model}
    recorded["settings"] = _fill(settings, run.find_defaults(recipe, run.settings(recipe)))
    return recorded


def _fill(recorded: Settings, defaults: Settings) -> Settings:
    """Recorded settings with the defaults of keys that they lack, as nested tables."""
    filled: Settings = {}
    for key, value in {**defaults, **flatten_table(recorded)}.items():
        *tables, name = key.split(".")
        table = filled
        for inner in tables:
            table = table.setdefault(inner, {})
        table[name] = value
    return filled


def find_token_start(recipe: Recipe, run: Run | None) -> TokenStart | None:
    """What rows of new tokens start from in a run; None: nothing is to be chosen.

    Args:
        run: with its manifest, if it was begun; it, and what it starts from, know better than a
            recipe that leaves the choice open.
    """
    if recipe.token_start is None or recipe.model.new_tokens is not None or run is None:
        return recipe.token_start
    begun = [stage for stage in run.lineage if stage.manifest_file.is_file()]
    model = _read_record(begun[-1], recipe)["settings"].get("model") if begun else None
    start: TokenStart | None = model[NEW_TOKENS] if isinstance(model, dict) else recipe.token_start
    return start


def _describe_settings(recipe: Recipe, run: Run) -> Settings:
    """What a run depends on in a recipe, ``model.new_tokens`` as ``find_token_start`` has it."""
    settings = run.settings(recipe)
    if "model" not in settings:  # of a conventional model
        return settings
    model = {key: value for key, value in settings["model"].items() if key != NEW_TOKENS}
    if (start := find_token_start(recipe, run)) is not None:
        model[NEW_TOKENS] = start
    return {**settings, "model": model}


def _require_equal(run: Run, recorded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for group, advice in _ADVICE.items():
        for key, before, after in list_differences(recorded[group], now[group]):
            meaning = f" ({told})" if (told := explain_fact(key)) else ""
            raise ArtefactError(
                f"{run.folder}: started with {key} = {before!r}, now {after!r}{meaning}; {advice} "
                "or choose another name (name=...)"
            )


def explain_fact(key: str) -> str | None:
    """What the values of a fact are, in the words of a recipe; None: its key says so."""
    return _MEANINGS.get(key)


def list_differences(before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Where two trees of tables differ: dotted key, and both values; None: not there.

    Two paths of the same file are the same value, however they are written.
    """
    old, new = flatten_table(before), flatten_table(now)
    for key in sorted(set(old) | set(new)):
        values = old.get(key), new.get(key)
        was, now_is = map(_resolve_paths, values) if key in _PATH_KEYS else values
        if was != now_is:
            yield key, *values


def _resolve_paths(value: Any) -> Any:
    """Absolute paths, links followed, in place of paths that exist."""
    if isinstance(value, list):
        return [_resolve_paths(entry) for entry in value]
    there = isinstance(value, str) and os.path.exists(value)
    return os.path.realpath(value) if there else value


def collect_circumstances() -> dict[str, Any]:
    """Command, versions, source state and machine, for the manifest."""
    return {
        "command": ["llmrec", *map(redact, sys.argv[1:])],
        "llmrec": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "git": describe_source(),
        "variables": _read_variables(),
    }


def _read_variables() -> dict[str, str]:
    found: dict[str, str] = redact_values(read_variables())
    return found


def describe_source() -> str | None:
    """``git describe`` of the folder that llmrec runs from its source; None elsewhere."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, check=True)  # nosec B603 # noqa: S603 - fixed words
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip()
