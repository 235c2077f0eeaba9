"""The interface of a task: its name, and the rules of a recipe that follow from it.

    recipe's prompt.task -> TASKS -> Task (declared needs; no torch)
                                     -> load_operations -> Operations (rows, evaluation, display)

``tasks/NAME.py`` declares a task; ``tasks/NAME_operations.py`` holds what needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from llmrec_cli.config.training import AlignSection

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
