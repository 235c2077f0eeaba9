"""The base of a recipe: the weights and the tokenizer below everything that is trained.

They come from the hub or a folder, or are built once from the catalogue (``backbone = "scratch"``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from llmrec_cli.claims import lock_to_make
from llmrec_cli.data.columns import ITEMS_FILE, TITLE, TOKENS
from llmrec_cli.data.prompts import Template, load_rank_template, load_template
from llmrec_cli.data.rank_wording import Question
from llmrec_cli.data.store import Prepared
from llmrec_cli.errors import ArtefactError, DataError
from llmrec_cli.files import BASE_FOLDER, check_folder, read_json, write_folder, write_json
from llmrec_cli.models import backbone
from llmrec_cli.models.tokenizer import Codec, add_item_tokens
from llmrec_cli.progress import Progress
from llmrec_cli.recipe.data import PromptSection
from llmrec_cli.recipe.recipe import Recipe

SEQUENCE = "sequence"
BASE_FILE = "base.json"
HISTORY_FACT = "history"  # in manifests: what text prompts name items by; absent: by titles


def semantic_tokens(items: pd.DataFrame) -> list[str]:
    """The distinct tokens of the catalogue's semantic IDs, sorted; none for titles."""
    return sorted({token for tokens in items[TOKENS].dropna() for token in tokens})


def load_tokenizer(recipe: Recipe, prepared: Prepared) -> Any:
    """The backbone's tokenizer, with the tokens of semantic IDs in it."""
    source = base_source(recipe)
    tokenizer = backbone.load_tokenizer(source, recipe.model.revision)
    add_item_tokens(tokenizer, semantic_tokens(prepared.items))
    return tokenizer


def base_source(recipe: Recipe) -> str:
    """Hub id or folder of the weights below everything that is trained."""
    own = recipe.model.backbone == "scratch"
    return str(recipe.folder / BASE_FOLDER) if own else recipe.model.backbone


def base_config(recipe: Recipe) -> Any:
    """The architecture of the weights below everything that is trained."""
    return backbone.load_config(base_source(recipe), recipe.model.revision)


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
    model, tokenizer = backbone.build_scratch(recipe.model.scratch, texts, semantic, recipe.seed)

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
