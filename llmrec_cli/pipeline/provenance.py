"""What a run is made from, and a run's session: lock, trackers, cost, end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.index import INDEX_FILE, INDEX_HASH
from llmrec_cli.errors import ArtefactError
from llmrec_cli.models.loading import base_folder
from llmrec_cli.pipeline.setup import HISTORY_FACT, base_source, history_fact, wording_fact
from llmrec_cli.runs.record import (
    BASE_FILES,
    PREPARED,
    explain_fact,
    finish_run,
    list_differences,
    start_run,
)
from llmrec_cli.runs.run import Run
from llmrec_cli.runs.tracking import Trackers, open_trackers
from llmrec_cli.training.distributed import Ranks, measure_usage
from llmrec_cli.utils.files import ADAPTER_FOLDER, MANIFEST_FILE, MODEL_FOLDER, hash_file
from llmrec_cli.utils.locks import lock_run, roll_back
from llmrec_cli.utils.progress import Progress

# Provenance of a run: hashes of prepared data and of the backbone's tokenizer and weights.
#
# A run's manifest records them as facts. Every later use of the run compares them with the files as
# they are then.


CHAT_FACT: Final = "chat_template"  # of prompts that are chats; None: they are none
COMMIT: Final = "commit"  # of a hub's repository, in place of its weights and configuration
_ABSENT: Final = (HISTORY_FACT, CHAT_FACT, INDEX_HASH)  # facts that older runs are without
_TOKENIZER: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


def describe_inputs(recipe: Recipe, tokenizer: Any, *, weights: bool = True) -> dict[str, Any]:
    """Hashes of everything that training and decoding read; facts of a run's manifest.

    Args:
        weights: False: without the base's weights, which take a second for about 1 GB.
    """
    return {
        INDEX_HASH: _hash_index(recipe),  # first: what follows from it, differs with it
        PREPARED: hash_file(recipe.prepared_folder / MANIFEST_FILE),
        "base": recipe.model.backbone,
        BASE_FILES: _hash_base(recipe, weights),
        "vocabulary": len(tokenizer),
        CHAT_FACT: _hash_chat(tokenizer) if recipe.prompt.chat else None,
        **history_fact(recipe),
        **wording_fact(recipe),
    }


def hash_weights(run: Run) -> dict[str, str]:
    """The SHA-256 of a finished run's weights by file; of one without weights nothing."""
    weights = sorted(
        path
        for name in (ADAPTER_FOLDER, MODEL_FOLDER)
        for path in (run.folder / name).glob("*.safetensors")
    )
    return {path.name: hash_file(path) for path in weights}


def hash_parts(run: Run) -> dict[str, dict[str, str]]:
    """``hash_weights`` of the parts of a guided run, by name."""
    return {part.name: hash_weights(part) for part in run.parts}


def require_same_parts(run: Run) -> None:
    """Refuse a guided run whose parts were trained anew since its weight was chosen.

    Raises:
        ArtefactError: names the first part that differs.
    """
    recorded = run.read_manifest("facts")["facts"].get("parts", {})
    for name, found in hash_parts(run).items():
        if recorded.get(name) != found:
            raise ArtefactError(
                f"{run.folder}: was made with other weights of {name} than lie beside it; evaluate "
                f"it again: llmrec eval RECIPE --run {run} --again"
            )


def _hash_index(recipe: Recipe) -> str | None:
    return None if recipe.id_tokens is None else hash_file(recipe.tokens_folder / INDEX_FILE)


def _hash_chat(tokenizer: Any) -> str:
    """SHA-256 of the tokenizer's chat template, which may lie in one of several files."""
    return hashlib.sha256(json.dumps(tokenizer.chat_template).encode()).hexdigest()


def require_all_inputs(recipe: Recipe, tokenizer: Any, runs: Iterable[Run]) -> None:
    """``require_same_inputs`` of all trained language models among finished runs.

    The untouched backbone's run is compared where it is opened (``pipeline.zero_shot``).

    Raises:
        ArtefactError: as ``require_same_inputs``.
    """
    parts = dict.fromkeys(part for run in runs for part in run.parts)
    trained = [run for run in parts if run.holds_weights]
    whole_model = recipe.model.tuning == "full"
    now = describe_inputs(recipe, tokenizer, weights=not whole_model) if trained else {}
    for run in trained:
        require_same_inputs(run, now, whole_model=whole_model)


def require_same_inputs(run: Run, now: Mapping[str, Any], *, whole_model: bool) -> None:
    """Refuse a run that was made from other data or another base.

    Args:
        now: ``describe_inputs``, and further facts of the run to compare.
        whole_model: its folder holds all weights; of the base, the tokenizer alone is read.

    Raises:
        ArtefactError: names what differs, with both values.
    """
    recorded = run.read_manifest("facts")["facts"]
    made, make = ("made", "make it") if run.is_untouched else ("trained", "train")
    about_base = f"model.backbone = {now['base']!r}"
    for key, before, after in _compare_facts(recorded, now, whole_model):
        pin = f'set model.revision = "{before}", or ' if key == f"{BASE_FILES}.{COMMIT}" else ""
        raise ArtefactError(
            f"{run.folder}: {made} with {key} = {before!r}, now it is {after!r} "
            f"({explain_fact(key) or about_base}); {pin}put back what it was {made} with, or "
            f"{make} again under another recipe name (name=...)"
        )


def _compare_facts(
    recorded: Mapping[str, Any], now: Mapping[str, Any], whole_model: bool
) -> Iterator[tuple[str, Any, Any]]:
    """What differs among the facts that both have; the folder of a base does not matter."""
    named = BASE_FILES not in recorded and not Path(now["base"]).is_dir()
    skipped = {BASE_FILES} if named else {BASE_FILES, "base"}
    for key, found in now.items():
        before = recorded.get(key, None if key in _ABSENT else found)
        if key not in skipped:
            yield from list_differences({key: before}, {key: found})
    before, after = recorded.get(BASE_FILES), now[BASE_FILES]
    if before is None:  # a run of an older version
        return
    on_hub = COMMIT in after  # its cache holds what was asked for, which may be more by now
    for name in sorted(before.keys() & after.keys() if on_hub else before.keys() | after.keys()):
        needed = not whole_model or name in _TOKENIZER
        if needed and before.get(name) != after.get(name):
            yield f"{BASE_FILES}.{name}", before.get(name), after.get(name)


def _hash_base(recipe: Recipe, weights: bool) -> dict[str, str]:
    """SHA-256 of the tokenizer's files, and of configuration and weights, or their commit."""
    folder, commit = base_folder(base_source(recipe), recipe.model.revision)
    names = [name for name in _TOKENIZER if (folder / name).is_file()]
    if commit is None and weights:
        names += ["config.json", *sorted(path.name for path in folder.glob("*.safetensors"))]
    found = {name: hash_file(folder / name) for name in names}
    return found if commit is None else found | {COMMIT: commit}


# A training command's use of its run's folder: lock, start, trackers, cost, end.
#
# lock -> start_run -> the training, measured -> finish_run; input that turns out to be wrong
# before anything was trained leaves no folder behind


@dataclass
class RunSession:
    """A run's folder that this process, or its group, has locked."""

    run: Run
    trackers: Trackers
    is_finished: bool = False  # by another process, while this one waited: nothing is left to do
    outcome: Mapping[str, Any] = field(default_factory=dict)  # for the manifest, set at the end


@contextmanager
def open_session(
    recipe: Recipe,
    run: Run,
    facts: Mapping[str, Any],
    ranks: Ranks,
    progress: Progress,
    *,
    resume: bool,
) -> Iterator[RunSession]:
    """``start_run`` by the first process.  Without an exception, the run is finished at the end.

    Its cost is measured meanwhile (of a resumed run: since it was resumed).

    Raises:
        ArtefactError: as ``start_run``; or another run of llmrec works in the folder.
        MachineError, RecipeError: a tracker of the recipe cannot work here.
    """
    folder = run.folder
    with (
        open_trackers(recipe.track, folder, writes=ranks.is_first, say=progress.say) as trackers,
        lock_run(folder) if ranks.is_first else nullcontext(),
    ):
        session, existed = RunSession(run, trackers), folder.exists()
        ranks.first(lambda: start_run(recipe, run, facts, resume=resume))
        if ranks.most(int(ranks.is_first and run.is_done)):
            session.is_finished = True
            yield session
            return
        with measure_usage(ranks.device) as usage, roll_back(folder, existed or not ranks.is_first):
            yield session
        cost = usage.to_record(ranks)
        ranks.first(lambda: finish_run(run, session.outcome, cost))
