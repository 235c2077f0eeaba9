"""The tables that train: [train], [sft], [align.NAME], [baseline.NAME]; and [sweep], [track]."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from typing import Annotated, Any, Final, Literal, cast

from pydantic import (
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    create_model,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from llmrec_cli import methods
from llmrec_cli.config.data import ITEM_TASKS, ItemTask, Section, one_or_many
from llmrec_cli.config.formats import join_words
from llmrec_cli.methods.contract import Options
from llmrec_cli.models.baselines import baseline_names, find_baseline

# `[train]` of a recipe: settings of the training loop.  No torch.


Beta = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Selection:
    """What chooses a run's checkpoint: the loss of its validations, or a figure of them.

    Attributes:
        name: ``train.select``.
    """

    name: str

    @property
    def is_loss(self) -> bool:
        """Whether validation computes the loss alone; a lower one is better."""
        return self.name == "loss"

    def find_value(self, row: Mapping[str, Any]) -> float | None:
        """The quantity in a row of ``metrics.jsonl``; None: it has none."""
        found = (value for key, value in row.items() if key.startswith(f"valid_{self.name}"))
        return next(found, None)

    def turn(self, value: float) -> float:
        """A quantity as a score, where higher is better, and a score as the quantity."""
        return -value if self.is_loss else value

    def describe(self, cutoffs: Sequence[int]) -> str:
        """The quantity's name: ``loss``, ``ndcg@10``, ``auc``."""
        return f"{self.name}@{max(cutoffs)}" if self.name == "ndcg" and cutoffs else self.name


class TrainSection(Section):
    """`[train]`: the training loop of every stage; `[sft.train]` and the like override it."""

    rows: Literal["window", "sequence", "user"] = Field(
        default="window",
        description='what one row is. "window": one history with its target. "sequence": all '
        'targets of a user in one causal pass (needs prompt.template = "sequence"). '
        '"user": all windows of a user in one packed row, where common beginnings are '
        "computed once (any template; sdpa or eager attention)",
    )
    epochs: float = Field(
        default=3,
        gt=0,
        description="passes over the training rows; max_steps may end training earlier",
    )
    max_steps: int | None = Field(default=None, ge=1, description="stop after this many updates")
    batch: int = Field(default=128, ge=1, description="global batch, rows per update")
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="most rows of a forward pass on a device; absent: the device's share of the "
        "batch, or as many rows as fit in memory by an estimate, where that share does not",
    )
    micro_tokens: int | None = Field(
        default=None,
        ge=1,
        description="most tokens of a forward pass on a device, padding included; a longer row "
        "gets its own pass; absent: no limit",
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="highest learning rate of AdamW")
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = Field(
        default=(0.9, 0.999), description="AdamW's betas, in [0, 1)"
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="AdamW's weight decay; norms and biases have none"
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="learning rate after warm-up: falls to 0, or stays constant"
    )
    warmup: float = Field(
        default=20, ge=0, description="updates of linear warm-up; below 1: the share of all updates"
    )
    clip: float = Field(default=1.0, ge=0, description="largest gradient norm; 0: no clipping")
    validate_every: float = Field(default=1.0, gt=0, description="epochs between validations")
    validate_rows: int = Field(
        default=1000, ge=1, description="rows of a validation, always the same ones"
    )
    select: Literal["loss", "ndcg", "auc"] = Field(
        default="ndcg",
        description='validation figure that chooses the best checkpoint. "loss": the lowest loss; '
        "nothing is ranked. "
        '"ndcg": the highest NDCG at the largest of eval.cutoffs, with eval.decode, '
        'history kept. "auc": the highest paired AUC, for task "rank-pair"',
    )
    patience: int | None = Field(
        default=None, ge=1, description="stop after this many validations without improvement"
    )
    save_every: int | None = Field(
        default=None,
        ge=1,
        description="updates between checkpoints, beside those at each validation; absent: one "
        "after ten minutes without one (later where writing one takes over a minute)",
    )
    keep: int = Field(
        default=2,
        ge=1,
        description="number of newest checkpoints to keep; the best one is always kept",
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        default="stop",
        description="what a NaN or infinity in loss or gradient does: training stops before the "
        "update (exit code 4), or skips the update",
    )
    skip_limit: int = Field(
        default=10,
        ge=1,
        description='with on_nonfinite = "skip": most updates to skip before training stops',
    )

    @property
    def selection(self) -> Selection:
        """What chooses the checkpoint."""
        return Selection(self.select)


# `[sft]`, `[align.NAME]` and `[launch]` of a recipe.

_ITEM_TASKS: Final = "a table: further rows, which teach what semantic IDs mean; absent: none"


class ItemTasks(Section):
    """`[sft.item_tasks]`, `[align.NAME.item_tasks]`: rows that teach what semantic IDs mean.

    Each value is the task's share of the answers of an epoch, in [0, 1); the rest are the next
    items of histories (the mutual prediction of LC-Rec, arXiv:2311.09049, section III-C).
    """

    title_to_id: float = Field(
        default=0.0, ge=0, lt=1, description="share of the answers that are the ID of a title"
    )
    id_to_title: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the answers that are the title of an ID; with method lml alone, "
        "because a title is no legal answer of a method that looks at the tokens of IDs",
    )
    description_to_id: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description='share of the answers that are the ID of a description; needs "description" in '
        "data.fields",
    )

    @property
    def shares(self) -> dict[ItemTask, float]:
        """The tasks that have a share, and it."""
        return {task: share for task in ITEM_TASKS if (share := getattr(self, task)) > 0}

    @model_validator(mode="after")
    def _leave_room(self) -> ItemTasks:
        total = sum(self.shares.values())
        if not 0 < total <= 0.99:
            raise ValueError(
                f"the shares sum to {total:g}, expected a sum above 0 and at most 0.99: the rest "
                "is that of recommendation rows"
            )
        return self


class StageSection(Section):
    """`[sft]`: supervised fine-tuning."""

    item_tasks: ItemTasks | None = Field(default=None, description=_ITEM_TASKS)
    train: TrainSection = Field(default=TrainSection(), description="keys of `[train]` to override")


class AlignSection(Section):
    """`[align.NAME]`: one alignment; the same table holds the method's options."""

    parent: str = Field(
        default="sft",
        description='where training starts: from the result of SFT ("sft"), the backbone '
        '("base"), or another `[align.NAME]`',
    )
    method: str = Field(
        description="name of the method, a file of llmrec_cli/methods; default NAME"
    )
    item_tasks: ItemTasks | None = Field(default=None, description=_ITEM_TASKS)
    train: TrainSection = Field(default=TrainSection(), description="keys of `[train]` to override")

    @property
    def options(self) -> Options:
        """The method's options, without the stage's keys."""
        return take_options(methods.find_method(self.method).options, self)


@dataclass(frozen=True)
class NamedTables:
    """Tables such as ``[align.NAME]``: a discriminated union; NAME is the discriminator's default.

    Each member is the stage's section plus the options of one method or model.  The union holds
    the methods that the registry knows when the surrounding model is built.

    Attributes:
        table: the tables' common name.
        key: the key that names the method or model.
        section: the stage's own keys.
        registry: options by the name of the method or model.
        example: a table, for an error that wants one.
        alone: methods or models that only the table of the same name may use.
    """

    table: str
    key: str
    section: type[Section]
    registry: Callable[[], Mapping[str, type[Options]]]
    example: str
    alone: tuple[str, ...] = ()

    def kinds(self) -> dict[str, type[Section]]:
        """One pydantic model per method or model."""
        options = self.registry()
        return {name: _join_options(self, name, options[name]) for name in options}

    def find_misnamed(self, tables: Mapping[str, Any]) -> dict[str, str]:
        """Tables that use a name of ``alone`` under another name: table's name -> name."""
        return {
            name: only
            for name, section in tables.items()
            for only in self.alone
            if getattr(section, self.key) != name and only in (getattr(section, self.key), name)
        }

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        union = reduce(operator.or_, self.kinds().values())
        tables = dict[str, Annotated[union, Field(discriminator=self.key)]]  # type: ignore[valid-type]  # made at run time
        return core_schema.no_info_before_validator_function(
            self._add_names, handler.generate_schema(tables)
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """A table whose NAME is no method or model must have the key."""
        found = handler(schema)
        by_name = found["additionalProperties"]["discriminator"]["mapping"]
        refs = {name: {"$ref": ref} for name, ref in by_name.items()}
        free = [ref for name, ref in refs.items() if name not in self.alone]
        any_name = {"required": [self.key], "oneOf": free}
        known = {
            name: ref if name in self.alone else {"anyOf": [ref, any_name]}
            for name, ref in refs.items()
        }
        return copy.deepcopy({**found, "properties": known, "additionalProperties": any_name})

    def _add_names(self, tables: Any) -> Any:
        if not isinstance(tables, Mapping):
            return tables
        return {
            name: {self.key: name, **section} if isinstance(section, Mapping) else section
            for name, section in tables.items()
        }


@cache
def _join_options(tables: NamedTables, name: str, options: type[Options]) -> type[Section]:
    """A table's model: the stage's keys, then the options of the method or model ``name``.

    Raises:
        TypeError: an option has the name of a key of the stage.
    """
    own = tables.section.model_fields
    if doubled := sorted({*own, "options"} & options.model_fields.keys()):
        raise TypeError(f"{options.__name__}: {', '.join(doubled)}: a key of every {tables.table}")
    bases: tuple[type[Any], ...] = (options, tables.section)  # pydantic: the last one's keys first
    key: Any = (Literal[name], Field(description=own[tables.key].description))
    name = f"{tables.table}_{name}"
    return cast(
        type[Section],
        create_model(name, __base__=bases, __doc__=options.__doc__, **{tables.key: key}),
    )


def take_options(options: type[Options], section: Section) -> Options:
    """The fields of ``options`` out of a validated table."""
    fields = options.model_fields
    values = {field.alias or name: getattr(section, name) for name, field in fields.items()}
    return options.model_construct(section.model_fields_set & fields.keys(), **values)


def list_method_options() -> dict[str, type[Options]]:
    """Options of every method, by its name."""
    return {name: methods.find_method(name).options for name in methods.list_methods()}


ALIGNMENTS = NamedTables("align", "method", AlignSection, list_method_options, "align.msl")


class LaunchSection(Section):
    """`[launch]`: processes and devices."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="device of training and evaluation"
    )
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description='number of processes on this machine; "auto": one per visible GPU, or one on '
        "the CPU",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads of a process; absent: the process's share of the cores",
    )
    timeout: int = Field(
        default=1800,
        ge=10,
        description="seconds that a process waits for another one before the run ends. After a "
        "signal, the time to write a checkpoint",
    )


# `[baseline.NAME]`: conventional models and their training.  No torch.
#
# The defaults were chosen on validation (benchmarks/results/*-baseline-search.md).


BASELINES: dict[str, type[Options]] = {
    name: find_baseline(name).options for name in baseline_names()
}

UNTRAINED = tuple(name for name in BASELINES if not find_baseline(name).is_trained)

OWN_TRAIN: dict[str, Any] = {
    "rows": "sequence",
    "epochs": 14,
    "batch": 128,
    "micro_batch": 32,
    "micro_tokens": None,
    "learning_rate": 1e-3,
    "betas": (0.9, 0.999),
    "weight_decay": 0.0,
    "schedule": "linear",
    "warmup": 100,
    "clip": 5.0,
    "validate_every": 2,
    "patience": 5,
}
"""Defaults of a conventional model's training.  They do not come from `[train]`: a language
model's learning rate or ``max_steps`` would train it badly."""

TRAIN_OF: dict[str, dict[str, Any]] = {
    name: dict(own) for name in BASELINES if (own := find_baseline(name).train)
}
"""Per model: the defaults that differ from ``OWN_TRAIN``."""

SHARED_TRAIN = ("validate_rows", "select", "keep")
"""Keys of `[train]` that hold for all models: checkpoints are chosen on the same validation rows by
the same figure.  ``patience`` is not among them: it counts validations, whose spacing differs."""


_KNOWN = join_words(list(BASELINES)).replace('"', "")


class BaselineSection(Section):
    """`[baseline.NAME]`: one conventional model; the same table holds its hyper-parameters."""

    model: str = Field(description=f"{_KNOWN}; default NAME")
    train: TrainSection = Field(
        default=TrainSection(), description="keys of its training to override"
    )

    @property
    def options(self) -> Options:
        """The model's hyper-parameters, without the stage's keys."""
        return take_options(list_baseline_options()[self.model], self)


def list_baseline_options() -> dict[str, type[Options]]:
    """Options of every conventional model, by its name."""
    return dict(BASELINES)


CONVENTIONAL = NamedTables(
    "baseline", "model", BaselineSection, list_baseline_options, "baseline.sasrec", alone=("pop",)
)


# `[sweep]` of a recipe: the keys that a search varies.  No torch.


Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Range(Section):
    """Numbers from `low` to `high`; whole numbers if both are whole."""

    low: int | float = Field(description="the lowest value, included")
    high: int | float = Field(description="the highest value, included")
    log: bool = Field(default=False, description="search on a logarithmic scale")

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low}, high = {self.high}: expected low < high")
        if self.log and self.low <= 0:
            raise ValueError(f"log = true, low = {self.low}: expected low > 0")
        return self


class SweepSection(Section):
    """`[sweep]`: a search for settings on validation (`llmrec sweep`)."""

    space: dict[str, list[Any] | Range] = Field(
        default_factory=dict,
        description="keys in quotes, each with a list of values or a range `{ low, high, log }`: "
        '`"align.dmpo.beta" = [0.1, 0.5]`',
    )
    sampler: Literal["tpe", "random", "grid"] = Field(
        default="tpe",
        description="how points are chosen: from earlier results (optuna's TPE), at random, or "
        "all combinations",
    )
    trials: int = Field(
        default=20, ge=1, description="number of points to try; a grid tries all of its points"
    )
    seeds: list[Seed] = Field(
        default_factory=list,
        description="seeds of each point; a point is judged by the mean over them; absent: the "
        "recipe's seed",
    )
    stage: str | None = Field(
        default=None,
        description="the run to judge: sft, align-NAME or baseline-NAME; absent: the run that the "
        "keys belong to",
    )
    prune: bool = Field(
        default=False,
        description="stop a point whose validation is worse than the median of the other points "
        "(first seed only)",
    )


# `[track]` of a recipe: trackers of a training run.  No torch.


TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Names = Annotated[
    tuple[TrackerName, ...],
    BeforeValidator(one_or_many, json_schema_input_type=TrackerName | tuple[TrackerName, ...]),
    Field(strict=False),
]


class TrackSection(Section):
    """`[track]`: trackers that also get the rows of `metrics.jsonl`; they do not change a run."""

    trackers: Names = Field(
        default=(),
        description="names of trackers; each needs its package: pip install 'llmrec[NAME]'",
    )
    online: bool = Field(
        default=False,
        description="whether wandb, mlflow and trackio send to a server; their own variables and "
        "logins choose server and account",
    )
