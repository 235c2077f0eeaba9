"""Keys of a recipe that have no effect, given the other keys: refused, or noted.

A key of ``[data]`` that the format or the split does not use is refused: whoever set it expects
other rows.  So is training of what is only counted.  Everything else that plays no part is a note:
a base file or a command line may well share or switch settings (``model.tuning=full`` over a base
with ``lora``).  A value that is true anyway (``k_core = 0`` where nothing is cleaned, an empty
list, in a note's case the default) is neither.  No torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, get_args

from pydantic import BaseModel

from llmrec_cli import methods
from llmrec_cli.config.data import Columns, DataSection, ItemField, Splits
from llmrec_cli.config.formats import join_words, list_users
from llmrec_cli.config.model import NEW_TOKENS
from llmrec_cli.config.tokens import BACKBONE
from llmrec_cli.config.training import UNTRAINED, SweepSection, TrainSection
from llmrec_cli.utils.toml import format_value

if TYPE_CHECKING:
    from llmrec_cli.config.recipe import Recipe

Path: TypeAlias = tuple[str, ...]
Table: TypeAlias = dict[str, Any]

_TABLES: Final[Mapping[str, type[BaseModel]]] = {"splits": Splits, "columns": Columns}
_TRUE_ANYWAY: Final[Mapping[str, tuple[object, ...]]] = {
    "k_core": (0, 1),
    "duplicates": ("keep",),
    "on_bad_line": ("stop",),
    "untitled": ("drop",),
    "identity": ("merge",),
}
_FIELDS: Final = get_args(ItemField)
_CLEANING: Final = ("on_bad_line", "duplicates", "min_rating", "k_core", "start", "end")


@dataclass(frozen=True, slots=True)
class Unused:
    """A key that plays no part.

    Attributes:
        path: names of its tables, then of the key; a table stands for all of its keys.
        why: what follows ``key = value:``.
        refused: whether a recipe must not set it; else a note says so.
        default: what it is where nothing sets it.
    """

    path: Path
    why: str
    refused: bool = False
    default: Any = None


@dataclass(frozen=True, slots=True)
class Base:
    """The file that a recipe extends, and what lies over it.

    Attributes:
        name: its path, for messages.
        own: what the recipe itself and overrides set, merged.
    """

    name: str
    own: Table

    def holds(self, path: Path) -> bool:
        """Whether a key that is set is set in this file alone."""
        value: Any = self.own
        for key in path:
            if not isinstance(value, dict) or key not in value:
                return True
            value = value[key]
        return False


def find_unused_problems(table: Table, recipe: Recipe, base: Base | None) -> Iterator[str]:
    """One line for each key that a recipe must not set, given the others.

    Args:
        table: the merged recipe, as it was written.
        recipe: the same, checked and resolved.
        base: the file that it extends; a key that only this one sets is shown with its name.
    """
    for found in unused_keys(recipe):
        if found.refused:
            for path, value in _find_written(table, found.path):
                in_base = base is not None and base.holds(path)
                over = _advise_override(path) if in_base else ""
                yield f"{_show_place(path, value, base)}: {found.why}{over}"


def _advise_override(path: Path) -> str:
    """How a recipe says over its base that nothing is done; empty where no value says so."""
    neutral = _TRUE_ANYWAY.get(path[-1])
    return f", or set {path[-1]} = {format_value(neutral[0])} over it" if neutral else ""


def find_unused_notes(table: Table, recipe: Recipe, base: Base | None) -> Iterator[str]:
    """One line for each further key that a recipe sets and that plays no part; args as above."""
    for found in unused_keys(recipe):
        depth = len(found.path)
        written = [] if found.refused else list(_find_written(table, found.path))
        changed = [(p, v) for p, v in written if v != _get_inside(found.default, p[depth:])]
        if changed:
            first, *others = changed
            more = "".join(f", {_show_value(*other, base)}" for other in others)
            play = "play" if others else "plays"
            yield f"{_show_place(*first, base)}{more} {play} no part: {found.why}"


def drop_refused(plain: Table, recipe: Recipe) -> Table:
    """A resolved recipe's values without those that no recipe may set; ``plain`` is changed."""
    for found in unused_keys(recipe):
        inner: Any = plain
        for key in found.path[:-1]:
            inner = inner.get(key, {})
        last = found.path[-1]
        if found.refused and last in inner and not _is_harmless(last, inner[last]):
            del inner[last]
    return plain


def unused_keys(recipe: Recipe) -> Iterator[Unused]:
    """Every key that plays no part in a recipe, whether it is set or not."""
    yield from _find_in_data(("data",), recipe.data)
    if recipe.eval.data is not None:
        yield from _find_in_data(("eval", "data"), recipe.eval.data)
    yield from _find_in_tokens(recipe)
    yield from _find_in_model(recipe)
    yield from _find_in_training(recipe)
    yield from _find_in_baselines(recipe)
    yield from _find_in_alignments(recipe)
    yield from _find_in_eval(recipe)
    if not set(recipe.track.trackers) - {"tensorboard"}:
        yield Unused(("track", "online"), "no tracker of [track] sends to a server", default=False)
    if recipe.sweep is not None and recipe.sweep.sampler == "grid":
        why = 'sampler = "grid" tries all of its points'
        yield Unused(("sweep", "trials"), why, default=_get_default(SweepSection, "trials"))


def _find_in_data(table: Path, data: DataSection) -> Iterator[Unused]:
    for key in _list_data_keys():
        if why := _explain_refusal(data, key):
            yield Unused((*table, *key.split(".")), why, refused=True)
    for key, why in _find_switched_off(data):
        yield Unused((*table, key), why, default=_get_default(DataSection, key))


def _list_data_keys() -> Iterator[str]:
    for name in DataSection.model_fields:
        inner = _TABLES.get(name)
        yield from [f"{name}.{key}" for key in inner.model_fields] if inner else [name]


def _explain_refusal(data: DataSection, key: str) -> str | None:
    """Why a key of ``[data]`` changes nothing in this format; None: it does."""
    form = data.form
    if not form.uses_key(key):
        if form.pre_split and key in _CLEANING:
            return f'format "{form.name}" comes split and is not cleaned; remove it'
        who = join_words(list_users(key))
        return f'format "{form.name}" does not use it, only {who}; remove it'
    if key == "min_rating" and form.names_columns and not data.columns.rating:
        return "no rating is read; name the rating column in columns.rating, or remove it"
    table, _, column = key.rpartition(".")
    if table == "columns" and column in ("title", "brand") and not data.metadata:
        return "titles and brands are read from data.metadata, which names no file"
    if table == "columns" and column in set(_FIELDS) - {*data.fields, "brand"}:
        return f'nothing reads it; add "{column}" to fields, or remove it'
    if key == "fields" and data.item_fields and not data.metadata:
        return "fields of items are read from data.metadata, which names no file"
    if key == "untitled" and data.untitled == "brand":
        return _explain_no_brands(data)
    return None


def _explain_no_brands(data: DataSection) -> str | None:
    if data.form.titles_alone:
        return f'format "{data.form.name}" has titles and no brands; expected "drop" or "id"'
    if data.form.names_columns and data.metadata and not data.columns.brand:
        return "no brand is read; name the brand column in columns.brand"
    return None


def _find_switched_off(data: DataSection) -> Iterator[tuple[str, str]]:
    """Keys of ``[data]`` that another key of it switches off."""
    form = data.form
    if data.split != "few-shot":
        yield "few_shot_users", f'split = "{data.split}" draws no training users'
    if data.on_bad_line != "skip" and form.uses_key("bad_line_limit"):
        yield "bad_line_limit", 'on_bad_line = "stop" leaves no line out'
    if form.pre_split:
        why = f'format "{form.name}" comes split, and is read in this process'
        yield from ((key, why) for key in ("engine", "memory", "spark"))
    elif data.engine == "spark":
        yield "memory", 'engine = "spark" has its own (spark.driver.memory in spark.options)'


def _find_in_tokens(recipe: Recipe) -> Iterator[Unused]:
    tokens = recipe.tokens
    if tokens is None:
        return
    idle = dict[str, str]()
    if not tokens.source.texts:
        why = f'vectors = "{tokens.vectors}" reads no texts'
        idle |= dict.fromkeys(("encoder", "revision", "text", "max_tokens", "batch"), why)
    if not tokens.source.baseline:
        idle["baseline"] = f'vectors = "{tokens.vectors}" reads no baseline'
    if tokens.encoder == BACKBONE or os.path.isdir(tokens.encoder):
        idle.setdefault("revision", f'encoder = "{tokens.encoder}" has none of its own')
    if recipe.id_tokens is None:
        why = f'kind = "{tokens.kind}" makes no IDs'
        idle = dict.fromkeys((name for name in type(tokens).model_fields if name != "kind"), why)
    for key, why in idle.items():
        yield Unused(("tokens", key), why, default=_get_default(type(tokens), key))


def _find_in_model(recipe: Recipe) -> Iterator[Unused]:
    model = recipe.model
    kind = type(model)
    if model.tuning != "lora":
        why = f'tuning = "{model.tuning}" trains all weights'
        yield Unused(("model", "lora"), why, default=_get_default(kind, "lora").model_dump())
    if model.backbone != "scratch":
        why = f'backbone = "{model.backbone}" comes trained'
        yield Unused(("model", "scratch"), why, default=_get_default(kind, "scratch").model_dump())
    if model.backbone == "scratch" or os.path.isdir(model.backbone):
        why = f'backbone = "{model.backbone}" is not fetched from the hub'
        yield Unused(("model", "revision"), why)
    if model.backbone == "scratch":
        why = 'backbone = "scratch" always has random weights'
        yield Unused(("model", "weights"), why, default=_get_default(kind, "weights"))
    if recipe.token_start is None:
        yield Unused(("model", NEW_TOKENS), _explain_no_start(recipe))


def _explain_no_start(recipe: Recipe) -> str:
    """Why rows of new tokens have no choice of a start."""
    if not recipe.names_by_ids:
        return "items are known by their titles, which need no new tokens"
    if recipe.model.backbone == "scratch":
        return 'backbone = "scratch" has random rows for all tokens'
    if not recipe.model.is_pretrained:
        return f'weights = "{recipe.model.weights}" draws the rows of all tokens'
    return "items have no titles: data.metadata names no file"


def _find_in_training(recipe: Recipe) -> Iterator[Unused]:
    stages: dict[Path, TrainSection] = {("sft", "train"): recipe.sft.train}
    stages |= {("align", name, "train"): stage.train for name, stage in recipe.align.items()}
    for name, stage in recipe.baseline.items():
        if stage.model not in UNTRAINED:
            stages[("baseline", name, "train")] = stage.train
    idle = [path for path, train in stages.items() if train.on_nonfinite != "skip"]
    why = 'on_nonfinite = "stop" leaves no update out'
    limit = _get_default(TrainSection, "skip_limit")
    yield from (Unused((*path, "skip_limit"), why, default=limit) for path in idle)
    if not any(path[0] != "baseline" for path in stages.keys() - idle):
        yield Unused(("train", "skip_limit"), why, default=limit)


def _find_in_baselines(recipe: Recipe) -> Iterator[Unused]:
    for name, stage in recipe.baseline.items():
        if stage.model in UNTRAINED:
            why = f"{stage.model} is counted, not trained; remove it"
            yield Unused(("baseline", name, "train"), why, refused=True)


def _find_in_alignments(recipe: Recipe) -> Iterator[Unused]:
    for name, stage in recipe.align.items():
        options = stage.options
        idle = dict(methods.find_method(stage.method).idle(options))
        if recipe.data.format in recipe.task.own_formats:
            why = f'format "{recipe.data.format}" has its rejected answers in the files'
            draws = ("negatives", "pool", "refresh", "below")
            idle |= {key: why for key in draws if key in type(options).model_fields}
        for field, why in idle.items():
            found = type(options).model_fields[field]
            key = found.alias or field
            yield Unused(("align", name, key), why, default=found.default)


def _find_in_eval(recipe: Recipe) -> Iterator[Unused]:
    decode = recipe.eval.decode
    for path, why in recipe.task.unused.items():
        yield Unused(path, why, default=_get_default_at(type(recipe), path))
    searches = ("eval", "decode") not in recipe.task.unused
    if searches and decode.search != "beam" and not decode.beam_error:
        why = f'search = "{decode.search}" has no beam'
        yield Unused(("eval", "decode", "beams"), why, default=_get_default(type(decode), "beams"))
    if not searches:
        return
    idle = {}
    if decode.guide is None:
        idle = dict.fromkeys(("weight", "weights"), "no guide is named (eval.decode.guide)")
    elif decode.weight != "validation":
        idle = {"weights": f"weight = {decode.weight:g} is given, and none is chosen"}
    for key, why in idle.items():
        default = _get_default(type(decode), key)
        default = list(default) if isinstance(default, tuple) else default
        yield Unused(("eval", "decode", key), why, default=default)


def _find_written(table: Table, path: Path) -> Iterator[tuple[Path, Any]]:
    """The keys that a recipe sets at ``path`` or below it, with values that may mean something."""
    value: Any = table
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return
        value = value[key]
    if isinstance(value, dict) and path[-1] != "options":
        for key in value:
            yield from _find_written(table, (*path, key))
    elif not _is_harmless(path[-1], value):
        yield path, value


def _is_harmless(key: str, value: object) -> bool:
    """Whether a value is true of what does not use it: nothing, or nothing done."""
    return value in ("", [], (), {}) or value in _TRUE_ANYWAY.get(key, ())


def _get_default(model: type[BaseModel], key: str) -> Any:
    return model.model_fields[key].default


def _get_default_at(model: type[BaseModel], path: Path) -> Any:
    """The default behind a path; of a table, as plain values."""
    found: Any = _get_default(model, path[0])
    for key in path[1:]:
        found = getattr(found, key)
    return found.model_dump() if isinstance(found, BaseModel) else found


def _get_inside(value: Any, path: Path) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return list(value) if isinstance(value, tuple) else value


def _show_place(path: Path, value: object, base: Base | None) -> str:
    table = f"[{'.'.join(path[:-1])}] " if path[:-1] else ""
    return table + _show_value(path, value, base)


def _show_value(path: Path, value: object, base: Base | None) -> str:
    """A key with its value, and the file where that is not the recipe's own."""
    file = f" (in {base.name})" if base is not None and base.holds(path) else ""
    return f"{path[-1]} = {format_value(value)}{file}"
