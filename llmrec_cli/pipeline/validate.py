"""``llmrec validate``: all checks without training, and a list of what would run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from llmrec_cli.config.data import DataSection
from llmrec_cli.config.names import RunKind
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.errors import DataError
from llmrec_cli.runs.record import check_finished, find_token_start
from llmrec_cli.runs.run import Run, align_run, experiment_of, sft_run
from llmrec_cli.runs.tracking import require_trackers
from llmrec_cli.utils.files import MANIFEST_FILE, read_json
from llmrec_cli.utils.progress import Silent
from llmrec_cli.utils.text import redact_values

WHOLE = 64 << 20  # bytes of sources up to which they are prepared for real, in a temporary folder

COUNTED = 10_000  # rows of a split whose prompts are made to see what has no room in them


def validate(recipe: Recipe, *, rows: bool, time: bool = False) -> Iterator[str]:
    """Lines for the terminal; nothing is left behind.

    Args:
        rows: also look at the rows as a model would see them, from what is prepared, or from small
            sources prepared in a temporary folder.  Without it only the first lines of each source
            are read, and no model is imported.
        time: with ``rows``, also load the backbone, time some of its passes, and say how long the
            stages will take.

    Raises:
        LlmrecError: the first thing that would stop a run.
    """
    from llmrec_cli.pipeline.prepare import require_all_fields

    require_trackers(recipe.track)
    require_all_fields(recipe)
    sources = list(_sources(recipe))
    yield from ("resolved recipe:", *_indent(tomli_w.dumps(redact_values(recipe.to_table()))))
    yield from sources
    if rows:
        yield from _trial(recipe, time)
    else:
        yield from _describe_prepared(recipe)
    yield from _describe_guide(recipe)
    for run in experiment_of(recipe).runs:
        state = "finished" if check_finished(recipe, run) else "would run"
        yield f"{run}: {state}"
    if not rows:
        yield "add --rows to see a training row, tokens, legal tokens and memory; --time: time, too"


def _describe_guide(recipe: Recipe) -> Iterator[str]:
    """By which run ``eval`` guides the language models, and with what weight."""
    guided = [run for run in experiment_of(recipe).runs if run.is_guided]
    if not guided:
        return
    weight = recipe.eval.decode.weight
    told = f"weight {weight}"
    if weight == "validation":
        tried = ", ".join(f"{one:g}" for one in sorted(set(recipe.eval.decode.weights)))
        told = f"weight of {tried} chosen on {recipe.train.validate_rows:,} validation rows at most"
    yield f"guide: {guided[0].guide}, {told}"


def _sources(recipe: Recipe) -> Iterator[str]:
    for table, data in _data_tables(recipe):
        missing = [path for path in data.files() if not list(_files(path, data))]
        if missing:
            raise DataError(f"{', '.join(missing)}: no such file (a source of [{table}])")
        _check_sources(data)
        for path in data.files():
            size = sum(file.stat().st_size for file in _files(path, data))
            yield f"source {path}: {size:,} bytes"


def _files(name: str, data: DataSection) -> Iterator[Path]:
    """The file of a source, or the files of its folder where its format takes one."""
    path = Path(name)
    folder = data.form.folders and path.is_dir()
    yield from (file for file in (path.rglob("*") if folder else [path]) if file.is_file())


def _check_sources(data: DataSection) -> None:
    """What `prepare` says of the first lines of the sources; a few MiB of each are read."""
    from llmrec_cli.data.catalog import require_names
    from llmrec_cli.data.formats import check_beginnings

    check_beginnings(data, Path)
    require_names(data)


def _describe_prepared(recipe: Recipe) -> Iterator[str]:
    """What the prepared folders' manifests say."""
    for folder in dict.fromkeys((recipe.prepared_folder, recipe.prepared_for_eval)):
        path = folder / MANIFEST_FILE
        if not path.is_file():
            yield f"{folder}: would be prepared"
            continue
        splits = read_json(path)["splits"]
        counts = ", ".join(f"{name} {facts['rows']:,}" for name, facts in splits.items())
        yield f"{folder}: prepared; rows: {counts}"
    if recipe.id_tokens is not None:
        yield f"{recipe.tokens_folder}: {_describe_tokens(recipe)}"


def _describe_tokens(recipe: Recipe) -> str:
    """The state of the semantic IDs.

    Raises:
        ArtefactError: those that are there are of another catalogue or other settings, or damaged.
    """
    from llmrec_cli.data.index import read_index, require_same_id_settings, require_same_items
    from llmrec_cli.data.prepared import read_manifest

    if not recipe.tokens_folder.is_dir():
        return "semantic IDs would be made"
    index = read_index(recipe.tokens_folder)
    require_same_id_settings(recipe, index.settings)
    require_same_items(index, read_manifest(recipe.prepared_folder))
    return f"semantic IDs of {len(index.tokens):,} items"


def _trial(recipe: Recipe, time: bool) -> Iterator[str]:
    """Rows and tokens through the real code, in a temporary folder."""
    from llmrec_cli.pipeline.prepare import prepare_data

    folders = {recipe.prepared_folder, recipe.prepared_for_eval}
    missing = sorted(f for f in folders if not (f / MANIFEST_FILE).is_file())
    if missing and _source_bytes(recipe) > WHOLE:
        yield f"{missing[0]}: nothing prepared yet; run llmrec prepare to check the rows too"
        return
    if recipe.id_tokens is not None and (missing or not recipe.tokens_folder.is_dir()):
        yield f"{recipe.tokens_folder}: no semantic IDs yet; run llmrec tokenize to check the rows"
        return
    with tempfile.TemporaryDirectory(prefix="llmrec-validate-") as name:
        trial = recipe.model_copy(update={"out": name})
        trial.folder.mkdir()
        for folder in folders.difference(missing):
            (trial.folder / folder.name).symlink_to(folder.resolve())
        if recipe.id_tokens is not None:
            trial.tokens_folder.symlink_to(recipe.tokens_folder.resolve())
        if missing:
            prepare_data(trial, Path)
        yield from _tokens(trial, time)


def _source_bytes(recipe: Recipe) -> int:
    tables = _data_tables(recipe)
    return sum(
        file.stat().st_size
        for _, data in tables
        for path in data.files()
        for file in _files(path, data)
    )


def _data_tables(recipe: Recipe) -> list[tuple[str, DataSection]]:
    other = recipe.eval.data
    return [("data", recipe.data), *([("eval.data", other)] if other is not None else [])]


def _tokens(recipe: Recipe, time: bool) -> Iterator[str]:
    """Catalogue, one training row, row counts, memory and time, through the real code."""
    from llmrec_cli.pipeline.advice import warn_of_emulation
    from llmrec_cli.pipeline.plan import check_plans
    from llmrec_cli.pipeline.setup import describe_token_start, list_prompt_notes, open_context

    context = open_context(recipe, Silent())
    check_plans(recipe, context, experiment_of(recipe).runs)
    yield _catalogue(context)
    yield from list_prompt_notes(context, evaluation=False)
    if line := describe_token_start(context, find_token_start(recipe, sft_run(recipe))):
        yield line
    for split in context.prepared.splits:
        yield f"{split}: {len(context.prepared.split(split)):,} rows"
        yield from _left_out(context, split)
    other = context
    if recipe.eval.data is not None:
        other = open_context(recipe, Silent(), evaluation=True)
        yield f"to evaluate on: {_catalogue(other)}"
        yield f"to evaluate on: test: {len(other.prepared.split('test')):,} rows"
        yield from _left_out(other, "test")
    yield from _agreement(context)
    rows: dict[Any, Any] = {}
    stages = [_open_stage(context, run, rows) for run in _language_models(recipe)]
    for number, stage in enumerate(stages):
        yield from _describe_stage(stage, example=number == 0)
    yield from warn_of_emulation(recipe.model, context.ranks.device)
    yield from _estimate_memory(context, stages)
    if time:
        yield from _estimate_time(context, other, stages)


@dataclass(frozen=True)
class _Stage:
    """A training stage as ``validate --rows`` looks at it."""

    run: Run
    stage: Any  # TrainingStage
    found: Any  # StageRows
    sizes: Any  # RowSizes


def _open_stage(context: Any, run: Run, made: dict[Any, Any]) -> _Stage:
    """A stage with its rows.

    Args:
        made: rows of other stages by what they depend on; each is made once.
    """
    from llmrec_cli.pipeline.memory import measure_rows
    from llmrec_cli.pipeline.plan import make_stage, plan_run
    from llmrec_cli.tasks.base import load_operations

    plan = plan_run(context.recipe, run)
    stage = make_stage(context, plan)
    aligns = run.kind is RunKind.ALIGN
    section, apart = plan.section, aligns and not context.recipe.task.ranks_catalogue
    rows = section.rows, section.batch, section.validate_rows
    key = *rows, stage.needs.negatives, stage.needs.rollouts, stage.item_tasks, apart
    if key not in made:
        made[key] = load_operations(context.recipe.task).make_rows(stage, aligns)
    found = made[key]
    return _Stage(run, stage, found, measure_rows(stage, found))


def _describe_stage(one: _Stage, *, example: bool) -> Iterator[str]:
    """Rows, updates and options of a stage, and what is amiss with them."""
    from llmrec_cli.pipeline.advice import warn_of_warmup
    from llmrec_cli.tasks.base import load_operations
    from llmrec_cli.training.trainer import count_updates

    run, context, section = one.run, one.stage.context, one.stage.section
    shown = load_operations(context.recipe.task).show_rows(one.stage, one.found)
    steps = count_updates(shown.count, section)
    updates = f"{steps:,} update" + ("" if steps == 1 else "s")
    yield f"{run}: {shown.count:,} {section.rows} rows, {updates}"
    yield from (f"{run}: {note}" for note in one.found.notes)
    yield from warn_of_warmup(section, shown.count, run)
    meaning = _meaning(context, run)
    if meaning is not None:
        yield f"{run}: {meaning}"
    if example:
        yield "one training row (token: loss and legal tokens where it is predicted):"
        yield from _indent("\n".join(shown.first))


def _left_out(context: Any, split: str) -> Iterator[str]:
    """What the prompts of a split have no room for, of ``COUNTED`` rows at most."""
    from llmrec_cli.pipeline.setup import choose_rows
    from llmrec_cli.tasks.base import load_operations

    frame = context.prepared.split(split)
    some = choose_rows(frame, COUNTED)
    if line := load_operations(context.recipe.task).describe_left_out(context, some):
        drawn = f" (of {COUNTED:,} rows that were looked at)" if len(some) < len(frame) else ""
        yield f"{split}: {line}{drawn}"


def _agreement(context: Any) -> Iterator[str]:
    """Whether the backbone's architecture computes here what it computes alone."""
    from llmrec_cli.pipeline.loading import probe_twin

    yield f"backbone: {probe_twin(context)}"


def _catalogue(context: Any) -> str:
    trie, items = context.trie, context.prepared.items
    branching = int((trie.fan_out(trie.parent_N[1:]) > 1).sum())
    return (
        f"catalogue: {len(items):,} items, {trie.n_leaves:,} distinct token sequences of at most "
        f"{trie.max_length} tokens; {trie.n_nodes:,} trie nodes, "
        f"{1 - branching / max(trie.n_nodes - 1, 1):.0%} of its steps forced"
    )


def _meaning(context: Any, run: Run) -> str | None:
    """What an alignment's options mean on this catalogue.

    Raises:
        RecipeError: they cannot work on it.
    """
    from llmrec_cli.methods import find_method

    if run.kind is not RunKind.ALIGN:
        return None
    stage = context.recipe.align[run.table]
    method = find_method(stage.method)
    method.init_state(stage.options, context.trie)
    return method.describe(stage.options, context.trie, context.codec.spell)


def _language_models(recipe: Recipe) -> list[Run]:
    """SFT, and the alignments as the recipe has them."""
    return [sft_run(recipe), *(align_run(recipe, table) for table in recipe.align)]


def _estimate_memory(context: Any, stages: Sequence[_Stage]) -> Iterator[str]:
    """What an update of each stage takes beside what this machine has."""
    from llmrec_cli.pipeline.memory import describe_estimate, expect_processes, fit_passes

    models: dict[bool, Any] = {}
    processes = expect_processes(context.recipe.launch)
    for one in stages:
        choice = fit_passes(one.stage, one.sizes, processes, models)
        yield from describe_estimate(one.stage, choice, one.run.name, one.run.heading)


def _estimate_time(context: Any, other: Any, stages: Sequence[_Stage]) -> Iterator[str]:
    """How long each stage and its evaluation will take, from the backbone's first passes."""
    from llmrec_cli.pipeline.setup import choose_rows
    from llmrec_cli.pipeline.timing import (
        count_evaluation_tokens,
        count_stage_tokens,
        measure_speed,
        show_seconds,
    )

    speed = measure_speed(stages[0].stage, stages[0].found)
    yield f"time: {speed}"
    for one in stages:
        tokens = count_stage_tokens(one.stage, one.found, one.sizes)
        yield f"{one.run}: time, estimated: {tokens.describe(speed)}"
    rows = other.prepared.split("test")
    rows = rows if other.recipe.eval.rows is None else choose_rows(rows, other.recipe.eval.rows)
    some = choose_rows(rows, COUNTED)
    prefill = count_evaluation_tokens(other, some) * len(rows) / max(len(some), 1) / speed.prefill
    yield (
        f"evaluation of a language model on {len(rows):,} test rows: time, estimated: "
        f"{show_seconds(prefill)} for the prompts, and the search behind them"
    )


def _indent(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]
