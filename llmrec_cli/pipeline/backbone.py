"""The backbone of a recipe: find or build it, and check that rows fit its context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmrec_cli.config.data import PromptSection
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.catalog import has_tokens
from llmrec_cli.data.prepared import Prepared
from llmrec_cli.data.prompts import Question, Template, load_rank_template, load_template
from llmrec_cli.data.schema import ITEM_ID, ITEMS_FILE, TITLE, TOKENS
from llmrec_cli.errors import ArtefactError, DataError
from llmrec_cli.models import loading
from llmrec_cli.models.tokenizer import Codec, add_item_tokens
from llmrec_cli.training.rows import Ragged
from llmrec_cli.utils.files import BASE_FOLDER, check_folder, read_json, write_folder, write_json
from llmrec_cli.utils.locks import lock_to_make
from llmrec_cli.utils.progress import Progress

# The base of a recipe: weights and tokenizer before any training.
#
# They come from the hub or a folder, or are built once from the catalogue (``backbone =
# "scratch"``).


SEQUENCE = "sequence"
BASE_FILE = "base.json"
HISTORY_FACT = "history"  # in manifests: what text prompts name items by; absent: by titles


def semantic_tokens(items: pd.DataFrame) -> list[str]:
    """The distinct tokens of the catalogue's semantic IDs, sorted; none for titles."""
    return sorted({token for tokens in items[TOKENS].dropna() for token in tokens})


def load_tokenizer(recipe: Recipe, prepared: Prepared) -> Any:
    """The backbone's tokenizer, with the tokens of semantic IDs in it."""
    source = base_source(recipe)
    tokenizer = loading.read_tokenizer(source, recipe.model.revision)
    add_item_tokens(tokenizer, semantic_tokens(prepared.items))
    return tokenizer


def base_source(recipe: Recipe) -> str:
    """Hub id or folder of the weights below everything that is trained."""
    own = recipe.model.backbone == "scratch"
    return str(recipe.folder / BASE_FOLDER) if own else recipe.model.backbone


def base_config(recipe: Recipe) -> Any:
    """The architecture of the weights below everything that is trained."""
    return loading.load_config(base_source(recipe), recipe.model.revision)


def history_fact(recipe: Recipe) -> dict[str, str]:
    """What a text prompt names items by, where they have semantic IDs.

    Older versions named them by titles, and by nothing where there were none: what was trained so
    must not go on, or be ranked, with other prompts.
    """
    by_ids = recipe.data.form.items_are_tokens and recipe.prompt.template != SEQUENCE
    return {HISTORY_FACT: "semantic IDs"} if by_ids else {}


def prompt_template(name_or_path: str) -> Template | None:
    return None if name_or_path == SEQUENCE else load_template(name_or_path, Path)


def require_tokens(prepared: Prepared, codec: Codec) -> None:
    """Refuse semantic IDs that the trained model has no tokens for."""
    known = codec.tokenizer.get_vocab()
    unknown = [token for token in semantic_tokens(prepared.items) if token not in known]
    if unknown:
        raise DataError(
            f"{prepared.folder}: {len(unknown)} tokens of its semantic IDs, such as {unknown[0]}, "
            "are unknown to the trained model; evaluate on its own catalogue, or on titles"
        )


def ensure_scratch(recipe: Recipe, prepared: Prepared, progress: Progress) -> None:
    """Build ``base/`` once: a tokenizer of catalogue and wording, a Llama with random weights.

    Of a group, the first process comes here, and waits for other commands that build it.
    """
    folder = recipe.folder / BASE_FOLDER
    made_from = {
        "scratch": recipe.model.scratch.model_dump(mode="json"),
        "seed": recipe.seed,
        "template": recipe.prompt.template,
        "items": prepared.manifest["files"][ITEMS_FILE]["sha256"],
    }
    if recipe.prompt.task != PromptSection().task:  # a base of the default says nothing of it
        made_from["task"] = recipe.prompt.task
    made_from |= history_fact(recipe)
    if not folder.is_dir():
        with lock_to_make(folder, progress.say):
            if not folder.is_dir():  # nobody built it while this process waited
                progress.say(f"building the embedded backbone in {folder}")
                _build_scratch(recipe, prepared, folder, made_from)
                return
    _check_base(folder, made_from)


def _build_scratch(
    recipe: Recipe, prepared: Prepared, folder: Path, made_from: dict[str, Any]
) -> None:
    template = prompt_template(recipe.prompt.template)
    semantic = semantic_tokens(prepared.items)
    texts = [] if semantic else [f'"{title}"' for title in prepared.items[TITLE].dropna()]
    if recipe.task.shows_candidates:
        rank = load_rank_template(recipe.prompt.template, Path)
        names = prepared.items[TITLE].dropna()
        texts = [rank.render(Question((name,), name, name)) for name in names]  # wording counts
    elif template is not None and semantic:  # only the words: IDs have tokens of their own
        texts = [template.head + template.separator + template.tail, template.no_history]
    elif template is not None:
        texts += [template.render(texts[:1])]
    model, tokenizer = loading.build_scratch(recipe.model.scratch, texts, semantic, recipe.seed)

    def fill(temporary: Path) -> None:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_json(temporary / BASE_FILE, made_from)

    write_folder(folder, fill)


def _check_base(folder: Path, made_from: dict[str, Any]) -> None:
    check_folder(folder)
    recorded = read_json(folder / BASE_FILE)
    for key, wanted in made_from.items():
        if recorded.get(key) != wanted:
            raise ArtefactError(
                f"{folder}: built with {key} = {recorded.get(key)}, the recipe now has {wanted}; "
                "choose another recipe name, or delete the folder"
            )


# Checks that tokenizer, catalogue and backbone fit together, before weights are read.
#
# Shape suffixes: I items.


@dataclass(frozen=True)
class ContextLimits:
    """Places for tokens that a prompt and its answers may take."""

    prompt: int  # longest prompt
    why: str  # what sets that, as a setting and its value
    context: int | None = None  # prompt and answers together; None: no end
    longest: int = 0  # tokens of the longest item

    def holds(self, prompt: int, targets: Sequence[int]) -> bool:
        """Whether one causal pass fits, and the longest item in place of its last target.

        Args:
            prompt: tokens.
            targets: tokens of each target behind it.
        """
        return self.context is None or prompt + sum(targets[:-1]) + self.longest <= self.context


def check_vocabulary(recipe: Recipe, config: Any, tokenizer: Any, added: Sequence[str]) -> None:
    """Refuse a tokenizer that names tokens for which the backbone has no row.

    Args:
        config: of the backbone.
        added: tokens that llmrec added to the tokenizer; rows are made for them.

    Raises:
        ArtefactError: with both numbers.  (More rows than tokens are common, and are not refused.)
    """
    rows, ours = config.get_text_config().vocab_size, set(added)
    beyond = [t for t, number in tokenizer.get_vocab().items() if number >= rows and t not in ours]
    if beyond:
        size = len(tokenizer) - len(ours & set(tokenizer.get_added_vocab()))
        raise ArtefactError(
            f"model.backbone = {base_source(recipe)!r}: its tokenizer has {size:,} tokens (such as "
            f"{min(beyond)!r}), its embedding {rows:,} rows: expected the tokenizer that the model "
            "was trained with"
        )


def find_context_limits(
    recipe: Recipe, config: Any, catalogue: Ragged, items: pd.DataFrame, most: int
) -> ContextLimits:
    """How long prompts may be: what the recipe says, or what the backbone's positions leave.

    A backbone of our own has rotary positions, trained here: they have no end.

    Args:
        most: ``prompt.max_tokens``.

    Raises:
        DataError: an item alone takes all positions.
    """
    length_I = np.diff(catalogue.start_S1)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if recipe.model.backbone == "scratch" or not isinstance(context, int) or context < 1:
        return ContextLimits(most, f"prompt.max_tokens = {most}", None, int(length_I.max()))
    at, longest = int(length_I.argmax()), int(length_I.max())
    if longest >= context:
        title = items.iloc[at][TITLE]
        named = "" if title is None else f" ({_short(title)})"
        raise DataError(
            f"item {items.iloc[at][ITEM_ID]!r}{named} takes {longest:,} tokens in this tokenizer, "
            f"the backbone has {context:,} positions (max_position_embeddings): leave the item "
            "out, or choose a backbone with more"
        )
    if most <= context - longest:
        return ContextLimits(most, f"prompt.max_tokens = {most}", context, longest)
    why = (
        f"{context:,} positions of the backbone less {longest:,} for the longest item = "
        f"{context - longest:,}"
    )
    return ContextLimits(context - longest, why, context, longest)


def shared_entries(items: pd.DataFrame, leaf_of_item_I: np.ndarray[Any, Any]) -> str | None:
    """What to say of titles that differ, and that a tokenizer cannot tell apart; None: nothing."""
    if has_tokens(items):
        return None
    named = pd.DataFrame({"leaf": leaf_of_item_I, TITLE: items[TITLE].to_numpy()}).drop_duplicates()
    mixed = named[named["leaf"].duplicated(keep=False)]
    if mixed.empty:
        return None
    first = mixed.loc[mixed["leaf"] == mixed["leaf"].iloc[0], TITLE]
    entries = mixed["leaf"].nunique()
    example = " and ".join(_short(title) for title in first[:2])
    return (
        f"{len(mixed):,} titles have tokens that another title has too, such as "
        f"{example}: they share {entries:,} entries of the catalogue, and a hit on either counts"
    )


def _short(title: str) -> str:
    return repr(title if len(title) <= 60 else title[:57] + "...")
