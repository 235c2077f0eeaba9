"""The context of a stage: prepared data, tokens, trie and processes of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)

from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.catalog import has_tokens
from llmrec_cli.data.prepared import Prepared, load_prepared, require_same_data
from llmrec_cli.errors import DataError, MachineError, RecipeError
from llmrec_cli.models.tokenizer import Codec, make_codec
from llmrec_cli.pipeline.backbone import (
    ContextLimits,
    base_config,
    check_vocabulary,
    ensure_scratch,
    find_context_limits,
    load_tokenizer,
    prompt_template,
    require_tokens,
    semantic_tokens,
    shared_entries,
)
from llmrec_cli.tensors.trie import Trie, build_trie
from llmrec_cli.training.distributed import Ranks
from llmrec_cli.training.rows import (
    PromptEncoder,
    Prompts,
    Ragged,
    Row,
    encode_catalogue,
    require_histories,
    sequence_rows,
    user_rows,
    window_rows,
)
from llmrec_cli.utils.progress import Progress
from llmrec_cli.utils.variables import check_variables, hide_variables, is_cpu_wanted

# Accelerate's handle on devices and processes.


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Accelerate's handle on devices and processes, as the recipe wants them.

    What Accelerate takes from the environment where it is not told is told here, or hidden from it:
    precision, accumulation (each backward pass would be divided by it), compilation, the device.

    Raises:
        MachineError: a GPU was asked for and there is none.
        UserError: variables of a launcher that fit no group, or that llmrec cannot work under.
    """
    group = check_variables()
    if recipe.launch.device == "cuda" and is_cpu_wanted():
        raise RecipeError(
            'launch.device = "cuda", but ACCELERATE_USE_CPU (accelerate launch --cpu) wants the '
            'CPU; unset it, or set launch.device = "cpu"'
        )
    if recipe.launch.device == "cuda" and not torch.cuda.is_available():
        raise MachineError('launch.device = "cuda": no CUDA device is visible; use "auto" or "cpu"')
    if recipe.launch.threads:
        torch.set_num_threads(recipe.launch.threads)
    mixed = recipe.model.dtype if recipe.model.tuning == "full" else "float32"
    names = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
    hide_variables(group)
    return Accelerator(
        cpu=recipe.launch.device == "cpu" or not torch.cuda.is_available(),
        mixed_precision=names[mixed],
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(seconds=recipe.launch.timeout)),
            DistributedDataParallelKwargs(broadcast_buffers=False),  # constants, alike everywhere
        ],
    )


@dataclass(frozen=True)
class CatalogueContext:
    """A recipe's data and catalogue, ready for training or decoding on one device."""

    recipe: Recipe
    prepared: Prepared
    codec: Codec
    catalogue: Ragged  # token sequence of every item, EOS included
    trie: Trie  # on the device of the ranks
    encoder: PromptEncoder
    room: ContextLimits
    ranks: Ranks

    @property
    def leaf_of_item(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Leaf index of every catalogue item."""
        leaves: np.ndarray[Any, np.dtype[np.int32]] = self.trie.leaf_of_item_I.cpu().numpy()
        return leaves


def open_context(
    recipe: Recipe, progress: Progress, *, evaluation: bool = False
) -> CatalogueContext:
    """Load the prepared folder, build the base where it is our own, and lay out the catalogue.

    Args:
        evaluation: for ``[eval.data]`` and ``[eval.prompt]``: tokenizer, base and models are those
            that were trained, data and catalogue the ones to evaluate on.

    Raises:
        DataError, ArtefactError: nothing prepared, or what lies there does not fit the recipe.
    """
    ranks = Ranks(make_accelerator(recipe))
    trained_on = load_prepared(recipe.prepared)
    require_same_data(trained_on.folder, trained_on.manifest, recipe.data)
    if recipe.model.backbone == "scratch":
        # By the first process alone: transformers writes no weights in the others.
        ranks.first(partial(ensure_scratch, recipe, trained_on, progress))
    bench = build_context(recipe, trained_on, ranks, evaluation=evaluation)
    if evaluation and recipe.eval.data is not None:
        require_same_data(bench.prepared.folder, bench.prepared.manifest, recipe.eval.data)
    shared = shared_entries(bench.prepared.items, bench.leaf_of_item)
    if shared is not None:
        progress.say(f"{bench.prepared.folder}: {shared}")
    template = bench.encoder.template
    if template and has_tokens(bench.prepared.items) and template.render_item("") != '""':
        progress.say(
            f"{template.name}: its item = {template.render_item('{title}')!r} is the wording of a "
            "title; semantic IDs stand bare in histories, as in answers"
        )
    return bench


def build_context(
    recipe: Recipe, trained_on: Prepared, ranks: Ranks, *, evaluation: bool
) -> CatalogueContext:
    """``open_workbench`` behind its first steps: writes nothing, and needs the base to be there.

    Args:
        trained_on: the recipe's prepared data.

    Raises:
        DataError, ArtefactError: as ``open_workbench``.
    """
    codec = make_codec(load_tokenizer(recipe, trained_on))
    prepared, prompt = trained_on, recipe.prompt
    if evaluation:
        prepared, prompt = load_prepared(recipe.prepared_for_eval), recipe.prompt_for_eval
        require_tokens(prepared, codec)
    template, config = prompt_template(prompt.template), base_config(recipe)
    check_vocabulary(recipe, config, codec.tokenizer, semantic_tokens(trained_on.items))
    catalogue, trie = _build_catalogue(prepared, codec, ranks)
    space = find_context_limits(recipe, config, catalogue, prepared.items, prompt.max_tokens)
    encoder = PromptEncoder(template, codec, prepared.items, catalogue, space.prompt, space.why)
    if not recipe.task.shows_candidates:
        require_histories(encoder, prepared.items)
    return CatalogueContext(
        recipe=recipe,
        prepared=prepared,
        codec=codec,
        catalogue=catalogue,
        trie=trie.to(ranks.device),
        encoder=encoder,
        room=space,
        ranks=ranks,
    )


def _build_catalogue(prepared: Prepared, codec: Codec, ranks: Ranks) -> tuple[Ragged, Trie]:
    """Catalogue and trie, made once on every machine."""

    def make() -> dict[str, np.ndarray[Any, Any]]:
        sequences = encode_catalogue(prepared.items, codec)
        arrays = {name: found.numpy() for name, found in build_trie(sequences).tensors().items()}
        return arrays | Ragged.of(sequences).arrays()

    found = ranks.map_arrays(make)
    tensors = {name: torch.from_numpy(array) for name, array in found.items()}
    return Ragged.from_arrays(found), Trie.from_tensors(tensors)


@dataclass(frozen=True)
class _SharedEncoder:
    """An encoder whose prompts are computed once on every machine; all processes ask together."""

    encoder: PromptEncoder
    ranks: Ranks

    def encode_counted(self, histories: Sequence[Sequence[int]]) -> Prompts:
        def make() -> dict[str, np.ndarray[Any, Any]]:
            prompts = self.encoder.encode_counted(histories)
            return Ragged.of(prompts.ids).arrays() | {"left_out_N": prompts.left_out_N}

        found = self.ranks.map_arrays(make)
        return Prompts(Ragged.from_arrays(found), found["left_out_N"])


def build_window_rows(bench: CatalogueContext, frame: pd.DataFrame) -> list[Row]:
    """Rows of one target each, of any split; by all processes of a machine together."""
    return window_rows(frame, _SharedEncoder(bench.encoder, bench.ranks))


def build_training_rows(bench: CatalogueContext, kind: str) -> list[Row]:
    """The training split as rows of one target, or of many (``training.rows``).

    All processes of a machine together: prompts are tokenized once and shared.
    """
    frame = bench.prepared.split("train")
    if kind == "window":
        return build_window_rows(bench, frame)
    if kind == "user":
        return user_rows(frame, _SharedEncoder(bench.encoder, bench.ranks))

    def fits(history: Sequence[int], targets: Sequence[int]) -> bool:
        """Whether a pass has room; of a prompt in words, the longest one is taken for it."""
        prompt, catalogue = bench.room.prompt, bench.catalogue
        if bench.encoder.template is None:
            prompt = min(prompt, 1 + sum(len(catalogue[item]) for item in history))
        return bench.room.holds(prompt, [len(catalogue[item]) for item in targets])

    return sequence_rows(frame, bench.encoder, bench.recipe.data.history, fits)


def describe_passes(bench: CatalogueContext) -> str:
    """Why a target of a sequence may not see its whole history, as a setting and its value."""
    return f'rows = "sequence": passes of at most {bench.recipe.data.history + 1} items'


def require_rows(prepared: Prepared) -> None:
    """Refuse prepared data without rows to train on, or to choose a checkpoint by.

    Raises:
        DataError: which rows are missing.
    """
    for split, rows in (("train", "training"), ("valid", "validation")):
        if len(prepared.split(split)) == 0:
            raise DataError(f"{prepared.folder}: no {rows} rows; loosen data.k_core or the split")


def choose_rows(frame: pd.DataFrame, rows: int | None) -> pd.DataFrame:
    """``rows`` rows drawn at random but always the same, in order; all where there are no more."""
    if rows is None or rows >= len(frame):
        return frame
    chosen = np.random.default_rng(0).choice(len(frame), rows, replace=False)
    return frame.iloc[np.sort(chosen)]
