"""``llmrec validate``: all checks without training, and a list of what would run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w

from llmrec_cli.config.data import DataSection
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.errors import DataError
from llmrec_cli.runs.record import check_finished
from llmrec_cli.runs.run import Run, RunKind, align_run, experiment_of, sft_run
from llmrec_cli.runs.tracking import require_trackers
from llmrec_cli.utils.files import MANIFEST_FILE, read_json
from llmrec_cli.utils.progress import Silent
from llmrec_cli.utils.text import redact_values

WHOLE = 64 << 20  # bytes of sources up to which they are prepared for real, in a temporary folder

COUNTED = 10_000  # rows of a split whose prompts are made to see what has no room in them


def validate(recipe: Recipe, *, rows: bool) -> Iterator[str]:
    """Lines for the terminal; nothing is left behind.

    Args:
        rows: also look at the rows as a model would see them, from what is prepared, or from small
            sources prepared in a temporary folder.  Without it only the first lines of each source
            are read, and no model is imported.

    Raises:
        LlmrecError: the first thing that would stop a run.
    """
    require_trackers(recipe.track)
    sources = list(_sources(recipe))
    yield from ("resolved recipe:", *_indent(tomli_w.dumps(redact_values(recipe.to_table()))))
    yield from sources
    if rows:
        yield from _trial(recipe)
    else:
        yield from _describe_prepared(recipe)
    for run in experiment_of(recipe).runs:
        state = "finished" if check_finished(recipe, run) else "would run"
        yield f"{run}: {state}"
    if not rows:
        yield "add --rows to see a training row, tokens, legal tokens and memory"


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
    for folder in dict.fromkeys((recipe.prepared, recipe.prepared_for_eval)):
        path = folder / MANIFEST_FILE
        if not path.is_file():
            yield f"{folder}: would be prepared"
            continue
        splits = read_json(path)["splits"]
        counts = ", ".join(f"{name} {facts['rows']:,}" for name, facts in splits.items())
        yield f"{folder}: prepared; rows: {counts}"


def _trial(recipe: Recipe) -> Iterator[str]:
    """Rows and tokens through the real code, in a temporary folder."""
    from llmrec_cli.pipeline.prepare import prepare_data

    folders = {recipe.prepared, recipe.prepared_for_eval}
    missing = sorted(f for f in folders if not (f / MANIFEST_FILE).is_file())
    if missing and _source_bytes(recipe) > WHOLE:
        yield f"{missing[0]}: nothing prepared yet; run llmrec prepare to check the rows too"
        return
    with tempfile.TemporaryDirectory(prefix="llmrec-validate-") as name:
        trial = recipe.model_copy(update={"out": name})
        trial.folder.mkdir()
        for folder in folders.difference(missing):
            (trial.folder / folder.name).symlink_to(folder.resolve())
        if missing:
            prepare_data(trial, Path)
        yield from _tokens(trial)


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


def _tokens(recipe: Recipe) -> Iterator[str]:
    """Catalogue, one training row, row counts and memory, through the real code."""
    from llmrec_cli.pipeline.plan import check_plans
    from llmrec_cli.pipeline.setup import list_prompt_notes, open_context

    context = open_context(recipe, Silent())
    check_plans(recipe, context, experiment_of(recipe).runs)
    yield _catalogue(context)
    yield from list_prompt_notes(context, evaluation=False)
    for split in context.prepared.splits:
        yield f"{split}: {len(context.prepared.split(split)):,} rows"
        yield from _left_out(context, split)
    if recipe.eval.data is not None:
        other = open_context(recipe, Silent(), evaluation=True)
        yield f"to evaluate on: {_catalogue(other)}"
        yield f"to evaluate on: test: {len(other.prepared.split('test')):,} rows"
        yield from _left_out(other, "test")
    longest = 0
    for number, run in enumerate(_language_models(recipe)):
        section = run.section(recipe).train
        meaning = _meaning(context, run)
        shown = _show_stage(context, run)
        longest = max(longest, shown.longest)
        steps = -(-shown.count // section.batch) * section.epochs
        steps = min(steps, section.max_steps or steps)
        yield f"{run}: {shown.count:,} {section.rows} rows, about {steps:,.0f} updates"
        if meaning is not None:
            yield f"{run}: {meaning}"
        if number == 0:
            yield "one training row (token: loss and legal tokens where it is predicted):"
            yield from _indent("\n".join(shown.first))
    yield from _agreement(context)
    yield from _memory(recipe, context, longest)


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


def _show_stage(context: Any, run: Run) -> Any:
    """A stage's training rows, as its task shows them."""
    from llmrec_cli.pipeline.plan import plan_run
    from llmrec_cli.pipeline.requirements import TrainingStage
    from llmrec_cli.tasks.base import load_operations

    plan = plan_run(context.recipe, run)
    stage = TrainingStage(context, plan.method, plan.options, plan.section)
    return load_operations(context.recipe.task).show_rows(stage, run.kind is RunKind.ALIGN)


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


def _memory(recipe: Recipe, context: Any, longest: int) -> Iterator[str]:
    """Weights, optimizer and activations, from the model's config alone."""
    import torch
    from transformers import AutoModelForCausalLM

    from llmrec_cli.models.loading import backbone, loading
    from llmrec_cli.pipeline.setup import base_config, base_source

    config = base_config(recipe)
    with loading(backbone(base_source(recipe))), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    parameters = sum(p.numel() for p in model.parameters())
    text = config.get_text_config()
    width, layers = (getattr(text, name, None) for name in ("hidden_size", "num_hidden_layers"))
    if width is None or layers is None:
        yield f"memory: not estimated: model type {config.model_type!r} names no width and depth"
        return
    wide = getattr(text, "intermediate_size", None) or 4 * width
    section, train = recipe.model, recipe.sft.train
    trained = parameters if section.tuning == "full" else layers * 4 * section.lora.r * width * 2
    size = {"none": 4 if section.tuning == "full" or section.dtype == "float32" else 2}.get(
        section.quantize, 1 if section.quantize == "8bit" else 0.5
    )
    rows = min(train.micro_batch or train.batch, train.batch)
    kept = 1 if section.gradient_checkpointing else layers
    activations = rows * longest * kept * (8 * width + 3 * wide) * (4 if size == 4 else 2)
    parts = {
        "weights": parameters * size,
        "gradients and AdamW": trained * 12,
        "activations": activations,
    }
    text = ", ".join(f"{name} {amount / 1e9:.2f}" for name, amount in parts.items())
    yield (
        f"memory, estimated: {sum(parts.values()) / 1e9:.2f} GB ({text}) at {rows} rows of "
        f"{longest} tokens; {parameters:,} parameters"
    )


def _indent(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]
