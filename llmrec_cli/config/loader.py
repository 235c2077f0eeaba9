"""Recipe files: `extends`, overrides, all problems at once, one validation."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from llmrec_cli.config.data import DataSection, find_clock_problem
from llmrec_cli.config.formats import join_words
from llmrec_cli.config.model import TREE_ATTENTION
from llmrec_cli.config.names import list_run_names
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.config.tokens import BACKBONE, QUANTIZERS
from llmrec_cli.config.training import (
    ALIGNMENTS,
    CONVENTIONAL,
    OWN_TRAIN,
    SHARED_TRAIN,
    TRAIN_OF,
    UNTRAINED,
    AlignSection,
    BaselineSection,
    ItemTasks,
    NamedTables,
    StageSection,
    TrainSection,
)
from llmrec_cli.config.unused import Base, find_unused_notes, find_unused_problems
from llmrec_cli.errors import RecipeError
from llmrec_cli.methods import find_method
from llmrec_cli.methods.contract import Needs
from llmrec_cli.models.baselines import trained_names
from llmrec_cli.tasks import TASKS
from llmrec_cli.tasks.base import Task
from llmrec_cli.utils.text import redact
from llmrec_cli.utils.toml import format_value, parse, require_bounds

# Problems of a recipe, as lines ``[table] key = value: what was expected``. No torch.


Table: TypeAlias = dict[str, Any]
Problem: TypeAlias = Mapping[str, Any]  # one of ``ValidationError.errors()``

STAGE_TABLES = {tables.table: tables for tables in (ALIGNMENTS, CONVENTIONAL)}


def list_problems(error: ValidationError, table: Table) -> Iterator[str]:
    """What ``Recipe`` refused, a line for each key: stages' own tables after all others.

    Args:
        table: what was validated.
    """
    order = {name: number for number, name in enumerate(STAGE_TABLES, start=1)}
    problems = error.errors(include_url=False, include_context=False)
    by_place: dict[tuple[str, str], list[str]] = {}  # a union has one problem per branch: join
    hints: dict[tuple[str, str], str] = {}
    for problem in problems:
        if not problem["loc"]:  # pydantic does not say where a key stands that is no UTF-8
            yield f"{format_value(problem['input'])}: unknown key: expected UTF-8"
    problems = [problem for problem in problems if problem["loc"]]
    for problem in sorted(problems, key=lambda each: order.get(str(each["loc"][0]), 0)):
        place, expected, meaning = _locate(problem, table)
        by_place.setdefault((place, meaning), []).append(expected)
        hints[place, meaning] = hints.get((place, meaning), "") or _suggest_word(problem)
    for (place, meaning), expected_ones in by_place.items():
        first, *others = dict.fromkeys(expected_ones)
        either = [other.removeprefix("expected ") for other in others]
        yield place + " or ".join([first, *either]) + meaning + hints[place, meaning]


def _locate(problem: Problem, table: Table) -> tuple[str, str, str]:
    """Where a problem is (``[table] key = value: ``), what was expected, and what the key means."""
    kind, *rest = problem["loc"]
    tables = STAGE_TABLES.get(kind)
    if kind == "tokens" and rest and rest[0] in QUANTIZERS.kinds():
        model, loc = QUANTIZERS.kinds()[rest[0]], rest[1:]
        return _describe(model, (kind,), _drop_branches(table[kind], loc), problem)
    if kind == "tokens" and problem["type"] == "union_tag_invalid":
        known = list(QUANTIZERS.kinds())
        value = problem["input"][QUANTIZERS.key]
        expected = f"unknown quantizer, expected one of {', '.join(known)}."
        place = f"[{kind}] {QUANTIZERS.key} = {format_value(value)}: "
        return place, expected + did_you_mean(str(value), known), ""
    if tables is None:
        return _describe(Recipe, (), _drop_branches(table, problem["loc"]), problem)
    if len(rest) < 2:
        return _describe_table(tables, rest, problem)
    name, chosen, *loc = rest
    return _describe(
        tables.kinds()[chosen], (kind, name), _drop_branches(table[kind][name], loc), problem
    )


def _describe_table(tables: NamedTables, loc: list[str], problem: Problem) -> tuple[str, str, str]:
    """Of what is no table of a method or model at all."""
    value = problem["input"]
    if not loc:
        expected = f"expected tables such as [{tables.example}]"
        return f"{tables.table} = {format_value(value)}: ", expected, ""
    place = f"{tables.table}.{loc[0]}"
    if problem["type"] != "union_tag_invalid":
        return (
            f"[{tables.table}] {loc[0]} = {format_value(value)}: ",
            f"expected a table [{place}]",
            "",
        )
    chosen, known = value[tables.key], list(tables.registry())
    expected = f"unknown {tables.key}, expected one of {', '.join(known)}."
    hint = did_you_mean(str(chosen), known)
    return f"[{place}] {tables.key} = {format_value(chosen)}: ", expected + hint, ""


def _drop_branches(values: Any, loc: Iterable[int | str]) -> tuple[str, ...]:
    """``loc`` without the parts that name a branch of a union rather than a key."""
    keys: list[str] = []
    for part in loc:
        known = isinstance(values, dict) and part in values
        if known or ((not keys or isinstance(values, dict)) and isinstance(part, str)):
            keys.append(str(part))
            values = values.get(part) if isinstance(values, dict) else None
    return tuple(keys)


def _describe(
    model: type[BaseModel], prefix: tuple[str, ...], loc: tuple[str, ...], problem: Problem
) -> tuple[str, str, str]:
    """The three of ``_locate``, for a key or table inside of ``model``.

    Args:
        prefix: names of the tables around it.
    """
    table_itself = problem["type"] == "value_error" and _find_section(model, (*loc, "")) is not None
    if not loc or table_itself:  # a check over a whole table
        table = ".".join([*prefix, *loc])
        return f"[{table}] " if table else "", _explain(problem), ""
    section, key = _find_section(model, loc), loc[-1]
    table = ".".join([*prefix, *loc[:-1]])
    where = f"[{table}] " if table else ""
    if problem["type"] == "missing":
        return f"{where}{key}: ", "missing", ""
    shown = f"{where}{key} = {format_value(problem['input'])}: "
    if problem["type"] == "extra_forbidden":
        known = _list_keys(section) if section else []
        known = known if table else [*known, "extends"]
        return shown, f"unknown key.{did_you_mean(key, known)}", ""
    field = _list_keys(section).get(key) if section else None
    meaning = f" ({field.description})" if field and field.description else ""
    return shown, _explain(problem), meaning


def _list_keys(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Fields of a table under the keys of a recipe (``lambda`` is no name for Python)."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _find_section(model: type[BaseModel], loc: tuple[str, ...]) -> type[BaseModel] | None:
    """The model in which the last key of ``loc`` stands; None if that is not a table."""
    found: type[BaseModel] = model
    for key in loc[:-1]:
        field = found.model_fields.get(key)
        annotation = field.annotation if field else None
        models = [t for t in (annotation, *get_args(annotation)) if isinstance(t, type)]
        inner = next((t for t in models if issubclass(t, BaseModel)), None)
        if inner is None:
            return None
        found = inner
    return found


_EXPECTED = {  # where pydantic speaks of Python
    "tuple_type": "expected a list",
    "list_type": "expected a list",
    "dict_type": "expected a table",
    "model_type": "expected a table",
    "model_attributes_type": "expected a table",
    "too_short": "expected at least one entry",
    "string_too_short": "expected some text",
    "string_pattern_mismatch": "expected letters, digits, dots, hyphens and underscores, "
    "a letter or digit first",
}


def _explain(problem: Problem) -> str:
    message: str = problem["msg"]
    message = message.removeprefix("Value error, ").replace("Input should be", "expected")
    return _EXPECTED.get(problem["type"], message[0].lower() + message[1:])


def _suggest_word(problem: Problem) -> str:
    """The nearest of the words that a key knows, for a misspelt one."""
    if problem["type"] != "literal_error":
        return ""
    hint = did_you_mean(str(problem["input"]), re.findall(r"'([^']+)'", problem["msg"]))
    return f".{hint}" if hint else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names as a sentence to append; empty if none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""


# Problems across tables: names, parents, sources, the task, packed rows.


def name_problems(recipe: Recipe) -> Iterator[str]:
    """Tables that say the name of what is a table of its own."""
    for tables, found in ((ALIGNMENTS, recipe.align), (CONVENTIONAL, recipe.baseline)):
        for name, only in tables.find_misnamed(found).items():
            said = getattr(found[name], tables.key)
            yield (
                f"[{tables.table}.{name}] {tables.key} = {format_value(said)}: {only} is "
                f"[{tables.table}.{only}] alone"
            )


def link_problems(recipe: Recipe) -> Iterator[str]:
    """What a stage asks of another table that does not grant it: the first one alone."""
    stages: dict[str, StageSection | AlignSection] = {"sft": recipe.sft}
    stages |= {f"align.{name}": section for name, section in recipe.align.items()}
    template = recipe.prompt.template
    for name, stage in stages.items() if "sequence" in recipe.task.rows else ():
        if stage.train.rows == "sequence" and template != "sequence":
            yield (
                f'[{name}.train] rows = "sequence" needs prompt.template = "sequence", not '
                f'"{template}": a text prompt is not a prefix of the next one'
            )
            return
    try:
        recipe.in_order()
    except ValueError as error:
        yield str(error)


def guide_problems(recipe: Recipe) -> Iterator[str]:
    """A guide that is no run of the recipe, or that cannot know the rows."""
    name = recipe.eval.decode.guide
    if name is None or not recipe.task.ranks_catalogue:
        return
    known, asked = list_run_names(recipe), f'[eval.decode] guide = "{name}"'
    if name not in known:
        yield (
            f"{asked}: no run of the recipe, expected one of {', '.join(known)}."
            f"{did_you_mean(name, known)}"
        )
    elif recipe.eval.data is not None:
        yield (
            f"{asked}: lists of another domain ([eval.data]) have no guide; remove one of the two"
        )


def data_problems(recipe: Recipe) -> Iterator[str]:
    """What a ``[data]`` section asks of a source that cannot give it, one line per problem."""
    for table, data in _list_data_tables(recipe):
        if (problem := find_clock_problem(data)) is not None:
            yield f"[{table}] {problem}"
        if data.form.items_are_tokens and data.identity == "disambiguate":
            yield (
                f'[{table}] identity = "disambiguate": semantic IDs have no title to extend; '
                'use "merge"'
            )
        if data.form.names_columns and data.metadata and not data.columns.title:
            yield f"[{table}.columns] title is missing: which column of metadata has titles?"


def _list_data_tables(recipe: Recipe) -> Iterator[tuple[str, DataSection]]:
    yield "data", recipe.data
    if recipe.eval.data is not None:
        yield "eval.data", recipe.eval.data


def task_problems(recipe: Recipe) -> Iterator[str]:
    """One line per problem, as in ``load_recipe``."""
    task = recipe.task
    if recipe.prompt_for_eval.task != recipe.prompt.task:
        ours = recipe.prompt_for_eval.model_fields_set
        unsaid = "" if "task" in ours else "; a table of its own does not inherit it: set it there"
        yield (
            f'[eval.prompt] task = "{recipe.prompt_for_eval.task}": expected the task that is '
            f'trained, "{recipe.prompt.task}"{unsaid}'
        )
    yield from _check_formats(recipe)
    stages = dict(_list_trainings(recipe))
    for table, train in stages.items():
        yield from _check_training(table, train, task)
    yield from _check_losses(recipe)
    default = TrainSection.model_fields["select"].default
    unset = any("select" not in train.model_fields_set for train in stages.values())
    if default not in task.select and unset:
        yield (
            f'[train] select is not set, and its default "{default}" ranks the '
            f'catalogue: task "{task.name}" needs select = {join_words(task.select)}'
        )
    yield from _check_packing(recipe)
    if task.shows_candidates:
        yield from _check_templates(recipe)
    for name, baseline in recipe.baseline.items():
        if task.baselines and baseline.model not in task.baselines:
            known = ", ".join(task.baselines)
            yield f'[baseline.{name}]: ranks the catalogue; task "{task.name}" knows {known} only'
    for name, section in recipe.align.items():
        problems = task.check_method(section, recipe.data.format in task.own_formats)
        yield from (f"[align.{name}] {problem}" for problem in problems)


def _check_formats(recipe: Recipe) -> Iterator[str]:
    """Formats that belong to another task, or that the recipe's cannot read."""
    for table, data in _list_data_tables(recipe):
        named = f'[{table}] format = "{data.format}"'
        for task in TASKS.values():
            if task is not recipe.task and data.format in task.own_formats:
                hint = task.own_formats[data.format]
                yield f'{named}: needs [prompt] task = "{task.name}", {hint}'
        if data.format in recipe.task.unfit_formats:
            why = recipe.task.unfit_formats[data.format]
            yield f'{named}: task "{recipe.task.name}" {why}'


def _list_trainings(recipe: Recipe) -> Iterator[tuple[str, TrainSection]]:
    """The training settings of every stage, and their tables."""
    yield "sft.train", recipe.sft.train
    for name, section in recipe.align.items():
        yield f"align.{name}.train", section.train
    for name, baseline in recipe.baseline.items():
        if baseline.model not in UNTRAINED and recipe.task.ranks_catalogue:
            yield f"baseline.{name}.train", baseline.train


def _check_training(table: str, train: TrainSection, task: Task) -> Iterator[str]:
    needs = f'task "{task.name}" needs'
    if "select" in train.model_fields_set and train.select not in task.select:
        yield f'[{table}] select = "{train.select}": {needs} {join_words(task.select)}'
    if train.rows not in task.rows:
        yield f'[{table}] rows = "{train.rows}": {needs} {join_words(task.rows)}'


def _check_losses(recipe: Recipe) -> Iterator[str]:
    """Alignments whose checkpoint a loss is to choose that measures nothing."""
    for name, section in recipe.align.items():
        by_loss = section.train.selection.is_loss
        if by_loss and not find_method(section.method).measures(section.options):
            yield (
                f'[align.{name}.train] select = "loss": the loss of {section.method} is no lower '
                'where the model is better; expected select = "ndcg"'
            )


def _check_packing(recipe: Recipe) -> Iterator[str]:
    """Stages whose rows are packed, with attention that would ignore the mask."""
    if recipe.model.attention in TREE_ATTENTION:
        return
    packed = {"sft.train": recipe.sft.train.rows == "user"}
    for name, section in recipe.align.items():
        needs = find_method(section.method).needs(section.options)
        packed[f"align.{name}"] = section.train.rows == "user" or needs.packs
    for table in (table for table, packs in packed.items() if packs):
        yield (
            f"[{table}] packs several answers into a row: model.attention = "
            f'"{recipe.model.attention}" cannot mask them, expected {" or ".join(TREE_ATTENTION)}'
        )


def chat_problems(recipe: Recipe) -> Iterator[str]:
    """Chats with a backbone that has no chat template."""
    prompts = {"prompt": recipe.prompt, "eval.prompt": recipe.eval.prompt}
    for table, prompt in prompts.items():
        if prompt is not None and prompt.chat and recipe.model.backbone == "scratch":
            yield (
                f'[{table}] chat = true: backbone = "scratch" has no chat template; expected a '
                "pretrained model that was trained on chats"
            )


def token_problems(recipe: Recipe) -> Iterator[str]:
    """What ``[tokens]`` asks of other tables that do not grant it."""
    tokens = recipe.id_tokens
    if tokens is None:
        return
    made = f'[tokens] kind = "{tokens.kind}"'
    if recipe.data.form.items_are_tokens:
        yield f'{made}: format "{recipe.data.format}" brings IDs of its own; remove [tokens]'
    if not recipe.task.ranks_catalogue:
        yield f'{made}: task "{recipe.task.name}" names items by titles; use kind = "title"'
    if recipe.eval.data is not None:
        yield f"{made}: the items of [eval.data] have no such IDs; remove one of the two"
    if missing := [name for name in tokens.fields if name not in recipe.data.fields]:
        wanted = ", ".join(f'"{name}"' for name in (*recipe.data.fields, *missing))
        yield (
            f"[tokens] text shows {{{missing[0]}}}, which data.fields does not name: expected "
            f"data.fields = [{wanted}]"
        )
    if tokens.source.texts and tokens.encoder == BACKBONE and not recipe.model.is_pretrained:
        yield (
            f'[tokens] encoder = "{BACKBONE}": the backbone has random weights; expected a hub id '
            "or folder of a sentence encoder, or a pretrained backbone"
        )
    if tokens.source.baseline:
        yield from _check_vector_baseline(recipe)


def item_task_problems(recipe: Recipe) -> Iterator[str]:
    """What the tables ``item_tasks`` ask of other tables that do not grant it."""
    if recipe.sft.item_tasks is not None:
        yield from _check_item_tasks(recipe, "sft", recipe.sft.item_tasks)
    for name, stage in recipe.align.items():
        if stage.item_tasks is None:
            continue
        yield from _check_item_tasks(recipe, f"align.{name}", stage.item_tasks)
        method, table = find_method(stage.method), f"[align.{name}.item_tasks]"
        if method.needs(stage.options) != Needs():
            yield (
                f"{table}: {stage.method} needs more of a row than its answer, and rows of items "
                "have no more; remove the table"
            )
        elif method.legal_only(stage.options) and "id_to_title" in stage.item_tasks.shares:
            yield (
                f"{table} id_to_title: {stage.method} looks at tokens that continue an ID, and a "
                "title has none; remove the key, or teach titles in [sft.item_tasks]"
            )


def _check_item_tasks(recipe: Recipe, table: str, tasks: ItemTasks) -> Iterator[str]:
    named = f"[{table}.item_tasks]"
    if not recipe.task.ranks_catalogue:
        yield f'{named}: task "{recipe.task.name}" has no IDs to teach; remove the table'
    elif not recipe.has_titled_ids:
        yield (
            f"{named}: teaches what semantic IDs mean, and items have none, or no titles: "
            'expected [tokens] kind = "semantic-id", or a format of IDs with data.metadata'
        )
    elif recipe.prompt.template == "sequence":
        yield (
            f'{named}: prompt.template = "sequence" has no words: expected a wording, such as '
            '"items"'
        )
    if "description" not in recipe.data.fields and "description_to_id" in tasks.shares:
        wanted = ", ".join(f'"{name}"' for name in (*recipe.data.fields, "description"))
        yield (
            f"{named} description_to_id: data.fields does not name descriptions: expected "
            f"data.fields = [{wanted}]"
        )


def _check_vector_baseline(recipe: Recipe) -> Iterator[str]:
    tokens = recipe.id_tokens
    if tokens is None:
        return
    known, name = trained_names(), tokens.baseline
    asked = f'[tokens] vectors = "{tokens.vectors}"'
    if name not in recipe.baseline:
        yield f"{asked}: baseline = {format_value(name)} needs a table [baseline.{name}]"
    elif recipe.baseline[name].model not in known:
        yield (
            f"{asked}: [baseline.{name}] has no item embeddings; expected model = "
            f"{join_words(known)}"
        )
    if tokens.collisions == "shared":
        yield (
            f'{asked}, collisions = "shared": the baseline is trained before the IDs are made, '
            'and knows every item by itself; expected "counter" or "nearest"'
        )


def _check_templates(recipe: Recipe) -> Iterator[str]:
    for table, prompt in (("prompt", recipe.prompt), ("eval.prompt", recipe.eval.prompt)):
        if prompt is not None and prompt.template == "sequence":
            yield (
                f'[{table}] template = "sequence": task "{recipe.task.name}" needs a wording, '
                'such as "games", "movies" or "items"'
            )


# Reading recipe files: one strict TOML loader, ``extends`` and overrides.


SHIPPED = Path(__file__).parents[1] / "shipped" / "recipes"
CHECKOUT = Path(__file__).parents[2] / "recipes"
MAX_BYTES = 1 << 20
Stage = TypeVar("Stage", StageSection, AlignSection, BaselineSection)


def read_recipe(
    name_or_path: str,
    overrides: Iterable[str] = (),
    aligns: Iterable[str] = (),
    baselines: Iterable[str] = (),
    *,
    say: Callable[[str], None] = lambda _: None,
    whole: bool = False,
) -> Recipe:
    """Load, merge and check a recipe.

    Args:
        name_or_path: path of a TOML file, or the name of a shipped recipe without ``.toml``
            (``quickstart``, ``amazon2018/gift-cards``).
        overrides: ``key=value`` with a dotted key; the value is TOML, else a plain string.
        aligns, baselines: alignments and conventional models that are wanted; default options
            where the recipe is silent.
        say: receives a line for each set of keys that play no part and are no mistake.
        whole: the file is a run's own record, which may state every key there is.

    Raises:
        RecipeError: every problem at once, one line each.
    """
    path, overrides = find_recipe(name_or_path), tuple(overrides)
    table = merge_tables(path, overrides)
    for kind, names in (("align", aligns), ("baseline", ["pop", *baselines])):
        for name in names:
            if isinstance(table.setdefault(kind, {}), dict):
                table[kind].setdefault(name, {})
    try:
        recipe = inherit_training(Recipe.model_validate(table))
    except ValidationError as error:
        problems = list(list_problems(error, table))
    else:  # what follows from a problem is not asked
        problems = [*name_problems(recipe)] or [*link_problems(recipe)]
        if not problems:
            base = None if whole else _find_base(path, overrides)
            unused = [] if whole else find_unused_problems(table, recipe, base)
            problems = [*data_problems(recipe), *task_problems(recipe)]
            problems += [*chat_problems(recipe), *token_problems(recipe)]
            problems += [*guide_problems(recipe)]
            problems += [*item_task_problems(recipe), *unused]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RecipeError("\n  ".join([f"{path}: {count}", *problems]))
    for note in () if whole else find_unused_notes(table, recipe, base):
        say(redact(f"note: {note}"))
    return recipe


def merge_tables(path: Path, overrides: Iterable[str] = ()) -> Table:
    """A recipe file over the one that it extends, and overrides over both; nothing is checked.

    Paths are relative to the working folder.

    Raises:
        RecipeError: a file that is not TOML, or a word that is no override.
    """
    table = _read_table(path)
    base = table.pop("extends", None)
    if base is not None:
        table = _merge_tables(_read_base(path, base), table)
    table.setdefault("name", path.stem)
    for override in overrides:
        _apply_override(table, override)
    try:
        require_bounds(table)
    except ValueError as error:
        raise RecipeError(f"{path}: {error}, by an override; expected a recipe") from None
    return table


def find_shipped_folder() -> Path:
    """Folder of the recipes that travel with the package."""
    return SHIPPED if SHIPPED.is_dir() else CHECKOUT


def list_shipped_names() -> list[str]:
    """Names of the shipped recipes, sorted; base files (``base-*.toml``) are left out."""
    folder = find_shipped_folder()
    paths = (p.relative_to(folder).with_suffix("") for p in folder.rglob("*.toml"))
    return sorted(p.as_posix() for p in paths if not p.name.startswith("base"))


def find_recipe(name_or_path: str) -> Path:
    """The file behind a recipe's path or shipped name.

    Raises:
        RecipeError: neither exists; the message names the nearest shipped recipe.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        raise RecipeError(f"{path}: is a folder, expected a TOML file or a shipped recipe's name")
    if name_or_path in list_shipped_names():
        return find_shipped_folder() / f"{name_or_path}.toml"
    hint = did_you_mean(name_or_path, list_shipped_names())
    raise RecipeError(f"{name_or_path}: no such recipe file or shipped recipe.{hint}")


def _read_table(path: Path) -> Table:
    """One TOML file, with its ``./`` paths made relative to the working folder."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path}: larger than {MAX_BYTES} bytes, expected a recipe")
        table = parse(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: byte {error.start} is not UTF-8, expected TOML text") from None
    except ValueError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    _anchor_paths(table, path.parent)
    return table


def _read_base(path: Path, base: object) -> Table:
    if not isinstance(base, str):
        raise RecipeError(f"{path}: extends = {base!r}: expected the path of a TOML file")
    base_path = path.parent / base
    if not base_path.is_file():
        raise RecipeError(f"{path}: extends = {base!r}: no such file {base_path}")
    table = _read_table(base_path)
    if "extends" in table:
        raise RecipeError(f"{base_path}: extends again; one level of sharing is the limit")
    return table


_DATA_KEYS = (
    ("data", "reviews"),
    ("data", "metadata"),
    ("data", "index"),
    *(("data", "splits", split) for split in ("train", "preference", "valid", "test")),
    ("prompt", "template"),
)
_MODEL_KEYS = (("model", "backbone"), ("tokens", "encoder"))
PATH_KEYS = (*_DATA_KEYS, *(("eval", *keys) for keys in _DATA_KEYS), *_MODEL_KEYS)


def _anchor_paths(table: Table, folder: Path) -> None:
    def anchor(path: str) -> str:
        return os.path.normpath(folder / path) if path.startswith(("./", "../")) else path

    change_paths(table, anchor)
    for name, key in _MODEL_KEYS:
        model = table.get(name)
        if isinstance(model, dict) and os.path.isdir(str(model.get(key, ""))):
            model[key] = os.path.abspath(model[key])  # cannot be taken for a hub id


def change_paths(table: Table, change: Callable[[str], str]) -> None:
    """Change, in place, every value of a recipe's table that may be a path."""

    def change_each(value: Any) -> Any:
        if isinstance(value, list):
            return [change_each(entry) for entry in value]
        return change(value) if isinstance(value, str) else value

    for *parents, key in PATH_KEYS:
        inner: Any = table
        for parent in parents:
            inner = inner.get(parent) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and key in inner:
            inner[key] = change_each(inner[key])


def _find_base(path: Path, overrides: Iterable[str]) -> Base | None:
    """The file that a recipe extends, with what the recipe and overrides set over it."""
    own = _read_table(path)
    base = own.pop("extends", None)
    if base is None:
        return None
    for override in overrides:
        _apply_override(own, override)
    return Base(os.path.normpath(path.parent / base), own)


def _merge_tables(base: Mapping[str, Any], over: Mapping[str, Any]) -> Table:
    """``over`` wins; tables are merged, everything else (lists too) is replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _merge_tables(below, value)
        merged[key] = value
    return merged


def _apply_override(table: Table, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise RecipeError(f"{override}: expected key=value, e.g. train.learning_rate=1e-4")
    *parents, last = key.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise RecipeError(f"{override}: {parent} is a value, not a table")
    table[last] = parse_value(text.strip())


def parse_value(text: str) -> Any:
    """The value that an override's text means: TOML, else the text itself."""
    try:
        parsed = parse(f"value = {text}")
    except ValueError:
        return text
    return parsed["value"] if set(parsed) == {"value"} else text


def inherit_training(recipe: Recipe) -> Recipe:
    """A stage's ``train`` table lies over the shared ``[train]``; values are checked already."""

    def inherit(stage: Stage, shared: TrainSection) -> Stage:
        own = {key: getattr(stage.train, key) for key in stage.train.model_fields_set}
        return stage.model_copy(update={"train": shared.model_copy(update=own)})

    shared = recipe.train
    common = {k: getattr(shared, k) for k in SHARED_TRAIN if k in shared.model_fields_set}

    def conventional(model: str) -> TrainSection:
        own = OWN_TRAIN | TRAIN_OF.get(model, {}) | common
        return TrainSection.model_construct().model_copy(update=own)

    return recipe.model_copy(
        update={
            "sft": inherit(recipe.sft, shared),
            "align": {name: inherit(stage, shared) for name, stage in recipe.align.items()},
            "baseline": {
                name: inherit(stage, conventional(stage.model))
                for name, stage in recipe.baseline.items()
            },
        }
    )
