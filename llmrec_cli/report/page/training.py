"""Training curves: an entry's losses, and the validation metric that chose its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from llmrec_cli.report.figures.curves import (
    LOSS,
    SCORE,
    VALID_LOSS,
    Line,
    Training,
    swatch,
    training,
)
from llmrec_cli.report.figures.svg import Words
from llmrec_cli.report.page.document import Figure, Key, Section, Table, plain_table
from llmrec_cli.report.page.material import Curve, Page, RunLog
from llmrec_cli.report.page.words import name_of, quantity
from llmrec_cli.report.tables.sheets import NONE

_VALID, _LOSS, _VALID_LOSS = "valid_", "loss", "valid_loss"


def training_curves(page: Page) -> Section:
    """One panel per entry, its seeds together."""
    names = dict.fromkeys(log.entry for log in page.logs if _LOSS in log.curves)
    if not names:
        return Section("training", "", ())
    score = _score_name(page)
    logs = {name: [log for log in page.logs if log.entry == name] for name in names}
    scores = [
        value for log in page.logs if score in log.curves for value in log.curves[score].values
    ]
    limits = (0.0, max(scores, default=1.0) * 1.05 or 1.0)
    panels = tuple(
        training(_training_words(name, place, own, score), _panel(name, own, score, limits))
        for place, (name, own) in enumerate(logs.items())
    )
    legend = [Key(swatch("training-loss", LOSS), "training loss")]
    if any(_VALID_LOSS in log.curves for log in page.logs):
        legend.append(Key(swatch("training-valid", VALID_LOSS), "validation loss"))
    if scores:
        shown = score.removeprefix(_VALID).upper()
        legend.append(Key(swatch("training-score", SCORE), f"{shown} on validation rows"))
    per = max(log.curves[_LOSS].per for log in page.logs if _LOSS in log.curves)
    caption = (
        "Losses are each method's own and do not compare; validation metrics do, on equal scales. "
        "A pale vertical line marks the checkpoint that was kept."
    )
    caption += f" A point of a training loss is the mean of up to {per} updates." if per > 1 else ""
    figure = Figure(panels, caption, _training_data(page.logs, score), tuple(legend), "small")
    return Section("training", "Training curves", (figure,))


def _score_name(page: Page) -> str:
    """The validation metric that is shown: the compared one where it was logged."""
    wanted = f"{_VALID}{page.comparison.compared}"
    logged = [name for log in page.logs for name in log.curves if name.startswith(_VALID)]
    ranking = [name for name in logged if name != _VALID_LOSS]
    return wanted if wanted in ranking else next(iter(ranking), "")


def _panel(name: str, logs: Sequence[RunLog], score: str, limits: tuple[float, float]) -> Training:
    def lines(figure: str, how: Line) -> list[Line]:
        found = [log.curves[figure] for log in logs if figure in log.curves]
        return [Line(one.steps, one.values, how.look, how.width, how.marked) for one in found]

    return Training(
        name_of(name),
        lines(_LOSS, Line((), (), LOSS, 1.1, marked=False)),
        lines(_VALID_LOSS, Line((), (), VALID_LOSS)),
        lines(score, Line((), (), SCORE)),
        [log.best_step for log in logs if log.best_step is not None],
        limits,
    )


def _training_words(name: str, place: int, logs: Sequence[RunLog], score: str) -> Words:
    told = []
    for log in logs:
        loss = log.curves[_LOSS]
        told.append(
            f"{name_of(log.label)}: training loss from {quantity(loss.values[0])} to "
            f"{quantity(loss.values[-1])} in {loss.steps[-1]:,} updates"
        )
        if score in log.curves:
            best = max(log.curves[score].values)
            told.append(f"highest {score.removeprefix(_VALID).upper()} {quantity(best)}")
    return Words(f"training-{place}", f"Training of {name_of(name)}", "; ".join(told))


def _training_data(logs: Sequence[RunLog], score: str) -> Table:
    """A row per validation; of a run without validations, its last update."""
    rows = []
    for log in logs:
        if _LOSS not in log.curves:
            continue
        loss, valid = log.curves[_LOSS], log.curves.get(_VALID_LOSS)
        curves = [loss, valid, *([log.curves.get(score)] if score else [])]
        for step in valid.steps if valid else loss.steps[-1:]:
            texts = [_at(curve, step) for curve in curves]
            kept = "kept" if step == log.best_step else ""
            rows.append([name_of(log.label), f"{step:,}", *texts, kept])
    headings = ["run", "update", "training loss", "validation loss"]
    headings += [score.removeprefix(_VALID).upper()] if score else []
    return plain_table("Data: training", (*headings, "checkpoint"), rows)


def _at(curve: Curve | None, step: int) -> str:
    """A curve's value at an update, or the mean that it is part of."""
    points = zip(curve.steps, curve.values, strict=True) if curve else ()
    return next((quantity(value) for at, value in points if at >= step), NONE)
