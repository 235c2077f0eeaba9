"""What every stage works with: prepared data, tokens and trie, and the processes at work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from llmrec_cli.data.leaves import has_tokens
from llmrec_cli.data.store import Prepared, load_prepared, require_same_data
from llmrec_cli.engine.ragged import Ragged
from llmrec_cli.engine.ranks import Ranks
from llmrec_cli.engine.rows import (
    PromptEncoder,
    Prompts,
    Row,
    encode_catalogue,
    require_histories,
    sequence_rows,
    user_rows,
    window_rows,
)
from llmrec_cli.errors import DataError
from llmrec_cli.models.tokenizer import Codec, make_codec
from llmrec_cli.progress import Progress
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.stage.accelerator import make_accelerator
from llmrec_cli.stage.base import (
    base_config,
    ensure_scratch,
    load_tokenizer,
    prompt_template,
    require_tokens,
    semantic_tokens,
)
from llmrec_cli.stage.fit import Room, check_vocabulary, room, shared_entries
from llmrec_cli.tensors.trie import Trie, build_trie


@dataclass(frozen=True)
class Workbench:
    """A recipe's data and catalogue, ready for training or decoding on one device."""

    recipe: Recipe
    prepared: Prepared
    codec: Codec
    catalogue: Ragged  # token sequence of every item, EOS included
    trie: Trie  # on the device of the ranks
    encoder: PromptEncoder
    room: Room
    ranks: Ranks

    @property
    def leaf_of_item(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Leaf index of every catalogue item."""
        leaves: np.ndarray[Any, np.dtype[np.int32]] = self.trie.leaf_of_item_I.cpu().numpy()
        return leaves


def open_workbench(recipe: Recipe, progress: Progress, *, evaluation: bool = False) -> Workbench:
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
    bench = lay_out(recipe, trained_on, ranks, evaluation=evaluation)
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


def lay_out(recipe: Recipe, trained_on: Prepared, ranks: Ranks, *, evaluation: bool) -> Workbench:
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
    space = room(recipe, config, catalogue, prepared.items, prompt.max_tokens)
    encoder = PromptEncoder(template, codec, prepared.items, catalogue, space.prompt, space.why)
    if not recipe.task.shows_candidates:
        require_histories(encoder, prepared.items)
    return Workbench(
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

    found = ranks.mapped(make)
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

        found = self.ranks.mapped(make)
        return Prompts(Ragged.from_arrays(found), found["left_out_N"])


def build_window_rows(bench: Workbench, frame: pd.DataFrame) -> list[Row]:
    """Rows of one target each, of any split; by all processes of a machine together."""
    return window_rows(frame, _SharedEncoder(bench.encoder, bench.ranks))


def build_training_rows(bench: Workbench, kind: str) -> list[Row]:
    """The training split as rows of one target, or of many (``engine.rows``).

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


def describe_passes(bench: Workbench) -> str:
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


def subset(frame: pd.DataFrame, rows: int | None) -> pd.DataFrame:
    """``rows`` rows drawn at random but always the same, in order; all where there are no more."""
    if rows is None or rows >= len(frame):
        return frame
    chosen = np.random.default_rng(0).choice(len(frame), rows, replace=False)
    return frame.iloc[np.sort(chosen)]
