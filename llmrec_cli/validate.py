"""``llmrec validate``: check what can be checked without training, and show what would run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w

from llmrec_cli.engine.trackers import require
from llmrec_cli.errors import DataError
from llmrec_cli.files import read_json
from llmrec_cli.progress import Silent
from llmrec_cli.recipe.data import DataSection
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.recipe.train import TrainSection
from llmrec_cli.redaction import redacted_in
from llmrec_cli.run_folder import has_settings, is_done, require_same_settings

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
    require(recipe.track)
    sources = list(_sources(recipe))
    yield from ("resolved recipe:", *_indent(tomli_w.dumps(redacted_in(recipe.resolved()))))
    yield from sources
    if rows:
        yield from _trial(recipe)
    else:
        yield from _prepared(recipe)
    for run in recipe.runs():
        done = is_done(recipe.run_folder(run))
        if done and has_settings(recipe, run):
            require_same_settings(recipe, run)
        state = "finished" if done else "would run"
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
    folder = data.format == "interactions" and path.is_dir()
    yield from (file for file in (path.rglob("*") if folder else [path]) if file.is_file())


def _check_sources(data: DataSection) -> None:
    """What `prepare` says of the first lines of the sources; a few MiB of each are read."""
    from llmrec_cli.data.catalog import require_names
    from llmrec_cli.data.readers import check_beginnings

    check_beginnings(data, Path)
    require_names(data)


def _prepared(recipe: Recipe) -> Iterator[str]:
    """What the prepared folders' manifests say."""
    for folder in dict.fromkeys((recipe.prepared, recipe.prepared_for_eval)):
        path = folder / "manifest.json"
        if not path.is_file():
            yield f"{folder}: would be prepared"
            continue
        splits = read_json(path)["splits"]
        counts = ", ".join(f"{name} {facts['rows']:,}" for name, facts in splits.items())
        yield f"{folder}: prepared; rows: {counts}"


def _trial(recipe: Recipe) -> Iterator[str]:
    """Rows and tokens through the real code, in a temporary folder."""
    from llmrec_cli.prepare import prepare

    folders = {recipe.prepared, recipe.prepared_for_eval}
    missing = sorted(f for f in folders if not (f / "manifest.json").is_file())
    if missing and _source_bytes(recipe) > WHOLE:
        yield f"{missing[0]}: nothing prepared yet; run llmrec prepare to check the rows too"
        return
    with tempfile.TemporaryDirectory(prefix="llmrec-validate-") as name:
        trial = recipe.model_copy(update={"out": name})
        trial.folder.mkdir()
        for folder in folders.difference(missing):
            (trial.folder / folder.name).symlink_to(folder.resolve())
        if missing:
            prepare(trial, Path)
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
    from llmrec_cli.stage.check import check_plans
    from llmrec_cli.stage.workbench import open_workbench

    bench = open_workbench(recipe, Silent())
    check_plans(recipe, bench, recipe.runs())
    yield _catalogue(bench)
    for split in bench.prepared.splits:
        yield f"{split}: {len(bench.prepared.split(split)):,} rows"
        if recipe.prompt.task == "generate":
            yield from _left_out(bench, split)
    if recipe.eval.data is not None:
        other = open_workbench(recipe, Silent(), evaluation=True)
        yield f"to evaluate on: {_catalogue(other)}"
        yield f"to evaluate on: test: {len(other.prepared.split('test')):,} rows"
        if recipe.prompt.task == "generate":
            yield from _left_out(other, "test")
    longest = 0
    for number, (name, section) in enumerate(_stages(recipe)):
        meaning = _meaning(bench, name)
        rows, first, tokens = _rows(bench, name, section)
        longest = max(longest, tokens)
        steps = -(-rows // section.batch) * section.epochs
        steps = min(steps, section.max_steps or steps)
        yield f"{name}: {rows:,} {section.rows} rows, about {steps:,.0f} updates"
        if meaning is not None:
            yield f"{name}: {meaning}"
        if number == 0:
            yield "one training row (token: loss and legal tokens where it is predicted):"
            yield from _indent("\n".join(first))
    yield from _agreement(bench)
    yield from _memory(recipe, bench, longest)


def _left_out(bench: Any, split: str) -> Iterator[str]:
    """What the prompts of a split have no room for, of ``COUNTED`` rows at most."""
    from llmrec_cli.evaluation.ranking import measure_left_out
    from llmrec_cli.stage.workbench import subset

    frame = bench.prepared.split(split)
    some = subset(frame, COUNTED)
    if line := measure_left_out(bench.encoder, bench.ranks, some).line(bench.encoder.why):
        drawn = f" (of {COUNTED:,} rows that were looked at)" if len(some) < len(frame) else ""
        yield f"{split}: {line}{drawn}"


def _agreement(bench: Any) -> Iterator[str]:
    """Whether the backbone's architecture computes here what it computes alone."""
    from llmrec_cli.stage.trained import look_without_weights

    yield f"backbone: {look_without_weights(bench)}"


def _catalogue(bench: Any) -> str:
    trie, items = bench.trie, bench.prepared.items
    branching = int((trie.fan_out(trie.parent_N[1:]) > 1).sum())
    return (
        f"catalogue: {len(items):,} items, {trie.n_leaves:,} distinct token sequences of at most "
        f"{trie.max_length} tokens; {trie.n_nodes:,} trie nodes, "
        f"{1 - branching / max(trie.n_nodes - 1, 1):.0%} of its steps forced"
    )


def _rows(bench: Any, name: str, section: TrainSection) -> tuple[int, list[str], int]:
    """Number of a stage's training rows, the first one in words, and tokens of the longest."""

    if bench.recipe.prompt.task == "rank-pair":
        return _pair_rows(bench, name, section)
    from llmrec_cli.engine.answers import lengths

    rows = bench.training_rows(section.rows)
    longest = max(lengths(rows, bench.trie.to("cpu")))
    return len(rows), list(_show_row(bench, rows[0])), longest


def _pair_rows(bench: Any, name: str, section: TrainSection) -> tuple[int, list[str], int]:
    from llmrec_cli.methods import find
    from llmrec_cli.stage.pair_task import pair_stage

    stage = bench.recipe.stage(name)
    wanted = None
    if name != "sft":
        wanted = find(stage.method).needs(stage.options).negatives
    ground = pair_stage(bench, section, wanted, aligns=name != "sft")
    assert ground.pairs is not None  # nosec B101 # noqa: S101 - of this task there always are
    rows: Any = ground.pairs.train(ground.rows, 0)
    words = bench.codec.tokenizer.convert_ids_to_tokens
    chosen, rejected = rows[0].answers[0]
    shown = {"prompt": rows[0].prompts[0], "chosen": chosen, "rejected": rejected}
    longest = max(
        len(prompt) + max(map(len, answers))
        for row in rows
        for prompt, answers in zip(row.prompts, row.answers, strict=True)
    )
    return len(rows), [f"{k}: {' '.join(words(v.tolist()))}" for k, v in shown.items()], longest


def _meaning(bench: Any, name: str) -> str | None:
    """What an alignment's options mean on this catalogue.

    Raises:
        RecipeError: they cannot work on it.
    """
    from llmrec_cli.methods import find

    if name == "sft":
        return None
    stage = bench.recipe.stage(name)
    method = find(stage.method)
    method.init_state(stage.options, bench.trie)
    return method.describe(stage.options, bench.trie, bench.codec.spell)


def _stages(recipe: Recipe) -> list[tuple[str, TrainSection]]:
    aligns = [(f"align-{name}", section.train) for name, section in recipe.align.items()]
    return [("sft", recipe.sft.train), *aligns]


def _show_row(bench: Any, row: Any) -> Iterator[str]:
    import torch

    from llmrec_cli.tensors.trie import paths

    words = bench.codec.tokenizer.convert_ids_to_tokens
    yield "prompt: " + " ".join(words(row.prompt.tolist()))
    leaf_B = bench.trie.leaf_of_item_I[torch.tensor(row.targets[:3])]
    node_BT, token_BT, length_B = paths(bench.trie, leaf_B)
    for nodes, tokens, length in zip(node_BT, token_BT, length_B.tolist(), strict=True):
        legal = bench.trie.fan_out(nodes[:length]).tolist()
        shown = zip(words(tokens[:length].tolist()), legal, strict=True)
        yield "target: " + " ".join(f"{word}:{n}" for word, n in shown)
    if len(row.targets) > 3:
        yield f"... and {len(row.targets) - 3} more targets"


def _memory(recipe: Recipe, bench: Any, longest: int) -> Iterator[str]:
    """Weights, optimizer and activations, from the model's config alone."""
    import torch
    from transformers import AutoModelForCausalLM

    from llmrec_cli.models.guard import backbone, loading
    from llmrec_cli.stage.base import base_config, base_source

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
