"""What the stages of a recipe share: its backbone, data, tokens, trie and processes.

prepared folder + backbone -> CatalogueContext -> rows, prompts, checks of their length
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
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

from llmrec_cli.config.data import DataSection, PromptSection
from llmrec_cli.config.model import FROM_TEXT, TokenStart
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.config.training import ItemTasks
from llmrec_cli.data.catalog import has_tokens
from llmrec_cli.data.histories import EXAMPLES
from llmrec_cli.data.index import hash_index, load_catalogue, require_index
from llmrec_cli.data.prepared import Prepared, load_prepared, require_same_data
from llmrec_cli.data.prompts import (
    Question,
    RankTemplate,
    Template,
    find_fields,
    load_rank_template,
    open_template,
    require_fields,
)
from llmrec_cli.data.schema import (
    DESCRIPTION,
    HISTORY_ITEMS,
    ITEM_ID,
    ITEMS_FILE,
    RATED_ITEMS,
    RATING,
    TITLE,
    TOKENS,
)
from llmrec_cli.errors import ArtefactError, DataError, MachineError, RecipeError
from llmrec_cli.models import loading
from llmrec_cli.models.chat import Chat, read_chat
from llmrec_cli.models.tokenizer import Codec, add_item_tokens, make_codec
from llmrec_cli.runs.record import ITEM_TASK_WORDS, WORDING
from llmrec_cli.runs.run import Run, Settings, list_runs
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
from llmrec_cli.utils.files import BASE_FOLDER, check_folder, read_json, write_folder, write_json
from llmrec_cli.utils.locks import lock_to_make
from llmrec_cli.utils.progress import Progress
from llmrec_cli.utils.variables import check_variables, hide_variables, is_cpu_wanted

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


def find_new_tokens(context: CatalogueContext) -> dict[str, int]:
    """The tokens of semantic IDs that the backbone was not trained with, and their ids.

    Those in its own tokenizer are old where it has rows for them: it is a model that learnt them.
    """
    recipe, vocabulary = context.recipe, context.codec.tokenizer.get_vocab()
    known = loading.read_tokenizer(base_source(recipe), recipe.model.revision).get_vocab()
    rows = base_config(recipe).get_text_config().vocab_size
    semantic = {token: vocabulary[token] for token in semantic_tokens(context.prepared.items)}
    return {token: n for token, n in semantic.items() if token not in known or n >= rows}


def list_titles_below(context: CatalogueContext) -> tuple[list[list[int]], list[list[int]]]:
    """Of each item with a title: the title's token ids, and the ids of its new tokens."""
    number_of = find_new_tokens(context)
    items = _select_titled(context)
    new = [
        [number_of[token] for token in dict.fromkeys(tokens) if token in number_of]
        for tokens in items[TOKENS]
    ]
    return context.codec.encode(items[TITLE].tolist()), new


def _select_titled(context: CatalogueContext) -> pd.DataFrame:
    return context.prepared.items[[TITLE, TOKENS]].dropna()


def describe_token_start(context: CatalogueContext, start: TokenStart | None) -> str | None:
    """What rows of new tokens start from, in a line; None: nothing is to be chosen.

    Args:
        start: of the run (``runs.record.find_token_start``).
    """
    if start is None or not (number_of := find_new_tokens(context)):
        return None
    if start != FROM_TEXT:
        return f"rows of {len(number_of):,} new tokens start near the mean of all rows"
    titled = {token for tokens in _select_titled(context)[TOKENS] for token in tokens}
    others = [token for token in number_of if token not in titled]
    titled_count = len(number_of) - len(others)
    line = f"rows of {titled_count:,} new tokens start from the titles of the items that have them"
    if not others:
        return line
    return (
        f"{line}; {len(others):,} more, such as {others[0]}, have no item with a title, and start "
        "near the mean of all rows"
    )


def base_source(recipe: Recipe) -> str:
    """Hub id or folder of the weights below everything that is trained."""
    own = recipe.model.backbone == "scratch"
    return str(recipe.folder / BASE_FOLDER) if own else recipe.model.backbone


def base_config(recipe: Recipe) -> Any:
    """The architecture of the weights below everything that is trained."""
    return loading.load_config(base_source(recipe), recipe.model.revision)


def history_fact(recipe: Recipe) -> dict[str, str]:
    """What a text prompt names items by, where they have semantic IDs.

    Older versions named them by titles, and by nothing where there were none.  Such a run must not
    be resumed or evaluated with other prompts.
    """
    by_ids = recipe.names_by_ids and recipe.prompt.template != SEQUENCE
    return {HISTORY_FACT: "semantic IDs"} if by_ids else {}


def wording_fact(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of the words of a recipe's prompts; nothing where they have none.

    A recipe knows its template by a name, behind which the words may change.  A run must not go on
    with others.  Comments, and words that play no part, may change.  Runs of earlier versions have
    no such fact.
    """
    return _hash_words(recipe, recipe.prompt)


def item_tasks_fact(recipe: Recipe, tasks: ItemTasks | None) -> dict[str, str]:
    """SHA-256 of the words of a stage's item tasks; nothing where it has none."""
    template = open_template(recipe.prompt.template) if tasks else None
    if tasks is None or template is None:
        return {}
    words = [
        template.item_tasks[task].turns if recipe.prompt.chat else template.item_tasks[task][:2]
        for task in tasks.shares
    ]
    return {ITEM_TASK_WORDS: _hash_values([*words, template.item_description_tokens])}


def describe_evaluation(recipe: Recipe, run: Run) -> Settings:
    """What the lists and figures of a run depend on besides its training."""
    words = _hash_words(recipe, recipe.prompt_for_eval) if run.is_language_model else {}
    return {**run.evaluation_settings(recipe), **words}


def _hash_words(recipe: Recipe, prompt: PromptSection) -> dict[str, str]:
    template: Template | RankTemplate | None = (
        load_rank_template(prompt.template, Path)
        if recipe.task.shows_candidates
        else open_template(prompt.template)
    )
    if template is None:
        return {}
    if prompt.chat:  # the turns as a chat template would frame them
        template = template.as_chat(lambda system, turn: [f"{system}\0{turn[0]}", *turn[1:]])
    words: list[Any] = [*template.list_words()]
    if isinstance(template, Template) and template.fields:
        words += [*template.fields, template.description_tokens]
    return {WORDING: _hash_values(words)}


def _hash_values(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def open_chat(recipe: Recipe, prompt: PromptSection, codec: Codec) -> Chat | None:
    """The chat template that prompts are written in; None: they are written in their layout.

    Raises:
        ArtefactError: the tokenizer has none, or one that cannot be rendered.
    """
    name = f"model.backbone = {recipe.model.backbone!r}"
    return read_chat(codec.tokenizer, name) if prompt.chat else None


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

    In a group, only the first process builds it; it waits for other commands that do.
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
    if (index := hash_index(prepared)) is not None:
        made_from["index"] = index
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
    template = open_template(recipe.prompt.template)
    semantic = semantic_tokens(prepared.items)
    texts = [] if semantic else [f'"{title}"' for title in prepared.items[TITLE].dropna()]
    if recipe.task.shows_candidates:
        rank = load_rank_template(recipe.prompt.template, Path)
        names = prepared.items[TITLE].dropna()
        texts = [rank.render(Question((name,), name, name)) for name in names]  # wording counts
    elif template is not None and semantic:  # only the words: IDs have tokens of their own
        texts = [template.head + template.separator + template.tail, template.no_history]
        texts += _render_fields(template, prepared.items)
    elif template is not None:
        texts += [template.render(texts[:1]), *_render_fields(template, prepared.items)]
    model, tokenizer = loading.build_scratch(recipe.model.scratch, texts, semantic, recipe.seed)

    def fill(temporary: Path) -> None:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_json(temporary / BASE_FILE, made_from)

    write_folder(folder, fill)


def _render_fields(template: Template, items: pd.DataFrame) -> list[str]:
    """The fields of every item in their wording, uncut, and of some interactions; nothing where the
    template shows none."""
    values = list[Mapping[str, str]](find_fields(template, items) if template.item_fields else [])
    values += [said.values() for said in EXAMPLES] if template.interaction_fields else []
    return list(map(template.render_fields, values))


def _check_base(folder: Path, made_from: dict[str, Any]) -> None:
    check_folder(folder)
    recorded = read_json(folder / BASE_FILE)
    for key, wanted in made_from.items():
        if recorded.get(key) != wanted:
            trained = [run.name for run in list_runs(folder.parent) if run.holds_weights]
            advice = "choose another recipe name (name=...)"
            advice += f": it is the base of {', '.join(trained)}" if trained else ", or delete it"
            raise ArtefactError(
                f"{folder}: built with {key} = {recorded.get(key)}, the recipe now has {wanted}; "
                f"{advice}"
            )


# Checks that tokenizer, catalogue and backbone fit together, before weights are read.
#
# Shape suffixes: I items.


@dataclass(frozen=True)
class ContextLimits:
    """How many tokens a prompt and its answers may have."""

    prompt: int  # longest prompt
    why: str  # what sets that, as a setting and its value
    context: int | None = None  # prompt and answers together; None: no limit
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
    """How long prompts may be, by the recipe or by the backbone's positions.

    An embedded backbone has rotary positions, which are trained here: they set no limit.

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
    """A note on distinct titles with equal tokens; None: there are none."""
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


# Accelerate's handle on devices and processes.


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Accelerate's handle on devices and processes, as the recipe wants them.

    Accelerate takes from the environment what it is not given: precision, accumulation (each
    backward pass would be divided by it), compilation, the device.  All of these are given here, or
    hidden from it.

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
    chat: Chat | None = None  # the tokenizer's chat template, where prompts are chats

    def open_rank_template(self, prompt: PromptSection) -> RankTemplate:
        """The rank-pair wording of the prompts, as a chat where they are one.

        Raises:
            RecipeError, ArtefactError: the template, or the tokenizer, has no such thing.
        """
        template = load_rank_template(prompt.template, Path)
        chat = open_chat(self.recipe, prompt, self.codec)
        return template if chat is None else template.as_chat(chat.frame)

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
    ranks, trained_on = _open_base(recipe, progress)
    bench = build_context(recipe, trained_on, ranks, evaluation=evaluation)
    if evaluation and recipe.eval.data is not None:
        require_same_data(bench.prepared.folder, bench.prepared.manifest, recipe.eval.data)
    shared = shared_entries(bench.prepared.items, bench.leaf_of_item)
    if shared is not None:
        progress.say(f"{bench.prepared.folder}: {shared}")
    for note in list_prompt_notes(bench, evaluation=evaluation):
        progress.say(note)
    return bench


def open_tokenizer(recipe: Recipe, progress: Progress) -> Any:
    """The backbone's tokenizer, as ``open_context`` has it, without laying out the catalogue.

    Raises:
        DataError, ArtefactError: as ``open_context``.
    """
    _, trained_on = _open_base(recipe, progress)
    return load_tokenizer(recipe, trained_on)


def _open_base(recipe: Recipe, progress: Progress) -> tuple[Ranks, Prepared]:
    """The processes and the catalogue with its IDs; the base is built where it is our own."""
    ranks = Ranks(make_accelerator(recipe))
    trained_on = load_catalogue(recipe.prepared_folder)
    require_same_data(trained_on.folder, trained_on.manifest, recipe.data)
    require_index(recipe, trained_on)
    if recipe.model.backbone == "scratch":
        # By the first process alone: transformers writes no weights in the others.
        ranks.first(partial(ensure_scratch, recipe, trained_on, progress))
    return ranks, trained_on


def list_prompt_notes(bench: CatalogueContext, *, evaluation: bool) -> Iterator[str]:
    """What a person has to know of the wording, this tokenizer and its chat template."""
    template: Template | RankTemplate | None = bench.encoder.template
    prompt = bench.recipe.prompt_for_eval if evaluation else bench.recipe.prompt
    name = Path(prompt.template).name
    yield from _list_field_notes(bench, name, evaluation=evaluation)
    if isinstance(template, Template) and has_tokens(bench.prepared.items):
        if template.render_item("") != '""':
            yield (
                f"{name}: its item = {template.render_item('{title}')!r} is the wording of a "
                "title; semantic IDs stand bare in histories, as in answers"
                + (", and fields behind them" if template.fields else "")
            )
    if bench.recipe.task.shows_candidates:
        template = bench.open_rank_template(prompt)
    elif isinstance(template, Template) and prompt.chat and template.own_layout:
        yield f"{name}: its layout plays no part, because prompt.chat = true"
    if template is None:
        return
    unknown = dict.fromkeys(
        found for words in template.list_words() for found in bench.codec.find_unknown(words)
    )
    if unknown:
        yield (
            f"{name}: its wording has {', '.join(unknown)}: no token of this tokenizer, so spelt "
            "out as letters"
        )
    if bench.chat is not None:
        yield from bench.chat.list_notes(has_system=bool(template.system))


def _list_field_notes(bench: CatalogueContext, name: str, *, evaluation: bool) -> Iterator[str]:
    """What prompts show of items besides their titles, and what of it they do not."""
    table, data = _find_data(bench.recipe, evaluation=evaluation)
    template = None if bench.recipe.task.shows_candidates else bench.encoder.template
    read = {*(template.fields if template else ()), *_list_fields_of_ids(bench.recipe)}
    if "description_to_id" in bench.recipe.item_tasks:
        read.add(DESCRIPTION)
    idle = [field for field in data.fields if field not in read]
    if idle:
        listed = " and ".join(f"{{{field}}}" for field in idle)
        yield f"{name}: its wording shows no {listed}, which {table}.fields keeps"
    if template is not None and bench.encoder.fields is not None:
        yield from bench.encoder.fields.list_lines(name, template.description_tokens)
        if line := _count_unrated(bench.prepared) if RATING in template.fields else None:
            yield f"{name}: {line}"


def _list_fields_of_ids(recipe: Recipe) -> tuple[str, ...]:
    """What semantic IDs are made from besides titles."""
    return () if recipe.id_tokens is None else recipe.id_tokens.fields


def _count_unrated(prepared: Prepared) -> str | None:
    """How many items of the histories lack a rating, by split; None: all have one."""
    counts = [
        f"{split} {lacking:,} of {found[HISTORY_ITEMS]:,}"
        for split, found in prepared.manifest["splits"].items()
        if (lacking := found[HISTORY_ITEMS] - found[RATED_ITEMS])
    ]
    if not counts:
        return None
    return f"history items without a rating, whose words are left out there: {', '.join(counts)}"


def _find_data(recipe: Recipe, *, evaluation: bool) -> tuple[str, DataSection]:
    """The table of the data that prompts are made of, and its name."""
    if evaluation and recipe.eval.data is not None:
        return "eval.data", recipe.eval.data
    return "data", recipe.data


def build_context(
    recipe: Recipe, trained_on: Prepared, ranks: Ranks, *, evaluation: bool
) -> CatalogueContext:
    """``open_context`` without its first steps: it writes nothing, and the base must exist.

    Args:
        trained_on: the recipe's prepared data.

    Raises:
        DataError, ArtefactError: as ``open_context``.
    """
    tokenizer = load_tokenizer(recipe, trained_on)
    codec = make_codec(tokenizer, semantic_tokens(trained_on.items))
    prepared, prompt = trained_on, recipe.prompt
    if evaluation:
        prompt = recipe.prompt_for_eval
        if recipe.prepared_for_eval != recipe.prepared_folder:
            prepared = load_prepared(recipe.prepared_for_eval)
        require_tokens(prepared, codec)
    chat = open_chat(recipe, prompt, codec)
    template, config = open_template(prompt.template), base_config(recipe)
    table, data = _find_data(recipe, evaluation=evaluation)
    if recipe.task.shows_candidates:
        template = template and template.without_fields()  # [rank] has a wording of its own
    require_fields(template, data.fields, table)
    if template is not None and chat is not None:
        template = template.as_chat(chat.frame)
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
        chat=chat,
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


def open_item_context(recipe: Recipe, progress: Progress) -> CatalogueContext:
    """A catalogue whose every item is an entry of its own, known by its number; no language model.

    Conventional models that make the items' vectors are trained on it, before there are IDs.

    Raises:
        DataError, ArtefactError: nothing prepared, or what lies there does not fit the recipe.
    """
    prepared = load_prepared(recipe.prepared_folder)
    require_same_data(prepared.folder, prepared.manifest, recipe.data)
    count, longest = len(prepared.items), recipe.data.history + 1
    sequences = [[item] for item in range(count)]
    codec, ranks = Codec(None, eos=-1, start=count), Ranks(make_accelerator(recipe))
    return CatalogueContext(
        recipe=recipe,
        prepared=prepared,
        codec=codec,
        catalogue=Ragged.of(sequences),
        trie=build_trie(sequences).to(ranks.device),
        encoder=PromptEncoder(None, codec, prepared.items, sequences, longest),
        room=ContextLimits(longest, "data.history"),
        ranks=ranks,
    )


@dataclass(frozen=True)
class _SharedEncoder:
    """An encoder whose prompts are computed once on every machine; all processes call it."""

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
        """Whether a pass has room; a prompt in words is taken to have the greatest length."""
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
