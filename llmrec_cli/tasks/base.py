"""The interface of a task: its name, and the rules of a recipe that follow from it.

    recipe's prompt.task -> TASKS -> Task (declared needs; no torch)
                                     -> load_operations -> Operations (rows, evaluation, display)

``tasks/NAME.py`` declares a task; ``tasks/NAME_operations.py`` holds what needs torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

    from llmrec_cli.config.recipe import Recipe
    from llmrec_cli.config.training import AlignSection
    from llmrec_cli.pipeline.compare import Compared
    from llmrec_cli.pipeline.requirements import TrainingStage
    from llmrec_cli.pipeline.setup import CatalogueContext
    from llmrec_cli.runs.record import Existing
    from llmrec_cli.runs.run import Run
    from llmrec_cli.training.dataset import RowTransform
    from llmrec_cli.training.rows import AnyRow, IntArray, LeftOut
    from llmrec_cli.utils.progress import Progress

SeenPolicy = Literal["keep", "remove", "pairs"]
"""The history among the candidates, or not; ``pairs``: the rank-pair task, which knows neither."""

CheckMethod = Callable[["AlignSection", bool], Iterator[str]]
"""(an alignment, whether the source brings rejected answers) -> problems, without their table."""


def accept_method(section: AlignSection, has_rejected: bool) -> Iterator[str]:
    """Every method suits the task."""
    yield from ()


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: ``prompt.task``.
        summary: what a model of the task does, as its card says after the model's name.
        ranks_catalogue: it ranks all items, so conventional models, ``recommend`` and an export's
            ``rank.py`` serve it.
        shows_candidates: prompts show two candidates, in the ``[rank]`` wording of a template.
        select: values of ``train.select``; the first is a figure, the others are losses.
        rows: values of ``train.rows``.
        packs: every row has several answers behind one prompt.
        answer_items: an answer takes as many tokens as this many items, at most.
        policies: what a comparison's tables are of: candidates with or without seen items, or
            pairs, which know neither.
        candidates: how a comparison names the candidates, with one ``{}``.
        baselines: models of ``[baseline.NAME]`` that serve it; empty: all.
        own_formats: formats of the sources that no other task reads, with what to set for them.
        unfit_formats: formats that it cannot read, with the reason.
        unused: keys of a recipe that play no part, with the reason.
        check_method: problems of an alignment.
    """

    name: str
    summary: str
    ranks_catalogue: bool
    shows_candidates: bool
    select: tuple[str, ...]
    rows: tuple[str, ...]
    packs: bool
    answer_items: int
    policies: tuple[SeenPolicy, ...]
    candidates: str = "{}"
    baselines: tuple[str, ...] = ()
    own_formats: Mapping[str, str] = field(default_factory=dict)
    unfit_formats: Mapping[str, str] = field(default_factory=dict)
    unused: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    check_method: CheckMethod = accept_method

    @property
    def figure(self) -> str:
        """The value of ``train.select`` that is a figure rather than a loss."""
        return self.select[0]


@dataclass(frozen=True)
class StageRows:
    """What a training stage works on, whatever its task."""

    rows: Sequence[AnyRow]  # of the rank-pair task: pair rows, or rows to draw pairs for
    valid_rows: Sequence[AnyRow]
    rank_valid: Callable[[Any, Progress], Mapping[str, float]]  # of a policy in evaluation mode
    transforms: Sequence[RowTransform] | None = None  # complete the rows; None: negatives do
    left_out: Mapping[str, LeftOut] = field(default_factory=dict)  # of histories, by split
    notes: tuple[str, ...] = ()  # what else a person has to know of these rows


@dataclass(frozen=True)
class ShownRows:
    """A stage's training rows as ``validate --rows`` shows them."""

    count: int
    first: tuple[str, ...]  # lines


@dataclass(frozen=True)
class Operations:
    """The operations of a task.  All raise UserError where data or recipe do not serve.

    Attributes:
        make_rows: (stage, whether it aligns): its training and validation rows.
        check_rows: what stops training when it makes its rows, found without a model.
        show_rows: (stage, what make_rows gave): the training rows, for ``validate``.
        describe_left_out: how much of the histories of some rows has no room in their prompts, in
            words; None: all fits, or it is told elsewhere.
        check_evaluation: whether the prompts of the test split can be made.
        evaluate: (recipe, runs, split, what to do with reports that exist, progress): score the
            split with every run, write reports, compare all evaluated runs.
        encode_answers: (context, rows, split): a prompt and an answer as token ids, per row.
        make_example: a prompt and its answers for a model card; None: nothing to show.
    """

    make_rows: Callable[[TrainingStage, bool], StageRows]
    check_rows: Callable[[TrainingStage, bool], object]
    show_rows: Callable[[TrainingStage, StageRows], ShownRows]
    describe_left_out: Callable[[CatalogueContext, pd.DataFrame], str | None]
    check_evaluation: Callable[[CatalogueContext], object]
    evaluate: Callable[[Recipe, Sequence[Run], str, Existing, Progress], Compared]
    encode_answers: Callable[[CatalogueContext, pd.DataFrame, str], list[tuple[IntArray, IntArray]]]
    make_example: Callable[[CatalogueContext], str | None]


def load_operations(task: Task) -> Operations:
    """The operations of a task, from ``tasks/NAME_operations.py``; imports torch."""
    file = f"{task.name.replace('-', '_')}_operations"
    found = importlib.import_module(f"llmrec_cli.tasks.{file}").OPERATIONS
    if not isinstance(found, Operations):
        raise TypeError(f"tasks/{file}.py: OPERATIONS is {type(found).__name__}, not Operations")
    return found
