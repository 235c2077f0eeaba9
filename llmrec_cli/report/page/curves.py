"""Sections with curves: training of the entries, and the values that methods log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from llmrec_cli.report.figures import (
    LOSS,
    SCORE,
    VALID_LOSS,
    Line,
    Look,
    choose_look,
    draw_curves,
    draw_swatch,
    draw_training,
)
from llmrec_cli.report.formatting import NONE, cut_name, typeset_quantity
from llmrec_cli.report.page.blocks import PageBlock, PageSection, PageTable, Panels, build_data
from llmrec_cli.report.page.data import Curve, Page, RunLog

_VALID, _LOSS, _VALID_LOSS = "valid_", "loss", "valid_loss"
TEMPERATURE: Final = {
    "tau": "temperature tau",
    "tau_wanted": "wanted tau, before the limits",
    "tau_outside": "recent updates outside the limits, share",
}
PREFERENCE: Final = {
    "margin": "margin, nats",
    "accuracy": "accuracy",
    "d_chosen": "D(chosen), nats",
    "d_rejected": "D(rejected), nats",
    "logp_chosen": "log pi(chosen), nats",
    "logp_rejected": "log pi(rejected), nats",
}
FURTHER: Final = {
    "cpo": "CPO, nats",
    "cpd": "CPD, nats",
    "crr": "CRR, nats",
    "self_hard_any": "positions with a self-hard negative, share",
    "nll_chosen": "NLL of the chosen answer, nats per token",
    "in_beam": "positions whose target is among the K best, share",
    "answers_in_beam": "answers whose tokens all are, share",
    "weight": "weight of a position",
    "penalty": "penalty of a position, before lambda",
    "reward": "reward of a rollout",
    "reward_std": "reward within a group, standard deviation",
    "without_target": "groups without the target, share",
    "mass": "probability of a group's rollouts",
    "kl": "divergence from the parent, nats per token",
}
LAYER, JOINED = "self_hard_layer_", "self_hard"
_TEMPERATURE_TEXT = (
    "The softmax temperature that ATS arrives at, update by update, and the one that each update "
    "asks for. Where most recent updates ask for one outside the limits, tau is held at a limit."
)
_PREFERENCE_TEXT = (
    "D is the log-ratio of policy and reference for an answer; the margin is D(chosen) minus "
    "D(rejected), the accuracy the share of pairs with a positive margin. Where D(chosen) falls "
    "far below 0, the policy forgets what it should prefer, even while margin and accuracy rise."
)
_LAYER_TEXT = (
    "Self-hard negatives per position: tokens that intermediate layers find at least as likely as "
    "the target. Each layer alone, counted backwards from the last one, and all of them joined."
)
_FURTHER_TEXT = (
    "Other figures that methods log: parts of their losses, before any weight, and counts."
)
_SAMPLED = 10  # points of a curve in a table


class _Series(NamedTuple):
    """One line of a picture."""

    name: str
    look: Look
    curve: Curve


_Panel = tuple[str, list[_Series]]  # what the vertical axis shows, and its lines


def build_training(page: Page) -> PageSection:
    """Losses, and the validation metric that chose the checkpoint: a panel per entry."""
    trained = [log for log in page.logs if _LOSS in log.curves]
    if not trained:
        return PageSection("training", "", ())
    score = _choose_score(page)
    scores = [
        value for log in page.logs if score in log.curves for value in log.curves[score].values
    ]
    limits = (0.0, max(scores, default=1.0) * 1.05 or 1.0)
    pictures = []
    for name in dict.fromkeys(log.entry for log in trained):
        own = [log for log in page.logs if log.entry == name]
        losses = _trace_figure(own, _LOSS, LOSS, 1.1, marked=False)
        losses += _trace_figure(own, _VALID_LOSS, VALID_LOSS)
        kept = [log.best_step for log in own if log.best_step is not None]
        alt = f"Training of {cut_name(name)}: {'; '.join(_describe_training(own, score))}"
        traced = _trace_figure(own, score, SCORE)
        pictures.append(draw_training(cut_name(name), losses, traced, kept, limits, alt))
    legend = [(draw_swatch(LOSS), "training loss")]
    if any(_VALID_LOSS in log.curves for log in page.logs):
        legend.append((draw_swatch(VALID_LOSS), "validation loss"))
    if scores:
        legend.append((draw_swatch(SCORE), f"{_name_score(score)} on validation rows"))
    caption = (
        "Losses are each method's own and do not compare; validation metrics do, on equal scales. "
        "A pale vertical line marks the checkpoint that was kept."
    )
    per = max(log.curves[_LOSS].per for log in trained)
    caption += f" A point of a training loss is the mean of up to {per} updates." if per > 1 else ""
    data = _tabulate_training(trained, score)
    panels = Panels(tuple(pictures), caption, data, tuple(legend), "small")
    return PageSection("training", "Training curves", (PageBlock("panels", panels),))


def _choose_score(page: Page) -> str:
    """The validation metric that is shown: the compared one where it was logged."""
    wanted = f"{_VALID}{page.comparison.compared}"
    logged = [name for log in page.logs for name in log.curves if name.startswith(_VALID)]
    ranking = [name for name in logged if name != _VALID_LOSS]
    return wanted if wanted in ranking else next(iter(ranking), "")


def _name_score(score: str) -> str:
    return score.removeprefix(_VALID).upper()


def _trace_figure(
    logs: Sequence[RunLog], figure: str, look: Look, width: float = 1.6, *, marked: bool = True
) -> list[Line]:
    found = [log.curves[figure] for log in logs if figure in log.curves]
    return [Line(one.steps, one.values, look, width, marked) for one in found]


def _describe_training(logs: Sequence[RunLog], score: str) -> Iterator[str]:
    for log in logs:
        yield f"{cut_name(log.label)}: training loss {_describe_course(log.curves[_LOSS])}"
        if score in log.curves:
            best = max(log.curves[score].values)
            yield f"highest {_name_score(score)} {typeset_quantity(best)}"


def _tabulate_training(logs: Sequence[RunLog], score: str) -> PageTable:
    """A row per validation; of a run without validations, its last update."""
    rows = []
    for log in logs:
        loss, valid = log.curves[_LOSS], log.curves.get(_VALID_LOSS)
        curves = [loss, valid, *([log.curves.get(score)] if score else [])]
        for step in valid.steps if valid else loss.steps[-1:]:
            texts = [_value_at(curve, step) for curve in curves]
            kept = "kept" if step == log.best_step else ""
            rows.append([cut_name(log.label), f"{step:,}", *texts, kept])
    headings = ["run", "update", "training loss", "validation loss"]
    headings += [_name_score(score)] if score else []
    return build_data("Data: training", (*headings, "checkpoint"), rows)


def _value_at(curve: Curve | None, step: int) -> str:
    """A curve's value at an update, or the mean that it is part of."""
    points = zip(curve.steps, curve.values, strict=True) if curve else ()
    return next((typeset_quantity(value) for at, value in points if at >= step), NONE)


def _describe_course(curve: Curve) -> str:
    """The first and the last value of a curve, in words."""
    first, last = typeset_quantity(curve.values[0]), typeset_quantity(curve.values[-1])
    return f"from {first} to {last} in {curve.steps[-1]:,} updates"


# What methods log.


def build_logged(logs: Sequence[RunLog]) -> Iterator[PageSection]:
    """A section per kind of figure; whatever else is logged comes last."""
    further = {
        name: FURTHER.get(name, cut_name(name))
        for log in logs
        for name in log.curves
        if name not in {_LOSS, JOINED, *TEMPERATURE, *PREFERENCE}
        and not name.startswith((_VALID, LAYER))
    }
    for key, title, text, panels in (
        ("temperature", "Adaptive temperature", _TEMPERATURE_TEXT, _per_figure(logs, TEMPERATURE)),
        ("preferences", "Preferences", _PREFERENCE_TEXT, _per_figure(logs, PREFERENCE)),
        ("layers", "Self-hard negatives by layer", _LAYER_TEXT, _per_layer(logs)),
        ("further", "Further logged figures", _FURTHER_TEXT, _per_figure(logs, further)),
    ):
        shown = [panel for panel in panels if panel[1]]
        blocks = (PageBlock("prose", text), PageBlock("panels", _draw_panels(title, shown)))
        yield PageSection(key, title, blocks if shown else ())


def _per_figure(logs: Sequence[RunLog], figures: Mapping[str, str]) -> list[_Panel]:
    """A panel per figure, with all runs that log it.

    Args:
        figures: logged name -> what the axis is called.
    """
    concerned = [log for log in logs if any(name in log.curves for name in figures)]
    looks = list(map(choose_look, range(len(concerned))))
    return [
        (
            heading,
            [
                _Series(_name_run(log, logs), look, log.curves[name])
                for log, look in zip(concerned, looks, strict=True)
                if name in log.curves
            ],
        )
        for name, heading in figures.items()
    ]


def _per_layer(logs: Sequence[RunLog]) -> list[_Panel]:
    """A panel per run, with a line per layer and one for all of them joined."""
    panels = []
    for log in logs:
        layers = sorted(
            (name for name in log.curves if name.startswith(LAYER)),
            key=lambda name: (len(name), name),  # 2 before 10
        )
        series = [
            _Series(_name_layer(name), choose_look(place), log.curves[name])
            for place, name in enumerate([JOINED, *layers])
            if layers and name in log.curves
        ]
        panels.append((_name_run(log, logs), series))
    return panels


def _name_layer(name: str) -> str:
    number = name.removeprefix(LAYER)
    return "layers joined" if name == JOINED else f"{number} before the last"


def _name_run(log: RunLog, logs: Sequence[RunLog]) -> str:
    """An entry's name; of one with several seeds, with the seed."""
    alone = sum(other.entry == log.entry for other in logs) == 1
    return cut_name(log.entry) if alone else f"{cut_name(log.entry)}, seed {log.seed}"


def _draw_panels(title: str, panels: Sequence[_Panel]) -> Panels:
    pictures, looks, rows = [], dict[str, Look](), []
    for heading, series in panels:
        summary = "; ".join(f"{one.name} {_describe_course(one.curve)}" for one in series)
        lines = [Line(one.curve.steps, one.curve.values, one.look) for one in series]
        pictures.append(draw_curves(lines, heading, f"{title}: {heading}: {summary}"))
        looks |= {one.name: one.look for one in series}
        for one in series:
            for step, value in _sample_points(one.curve):
                rows.append([heading, one.name, f"{step:,}", typeset_quantity(value)])
    headings = ("picture", "curve", "update", "value")
    return Panels(
        tuple(pictures),
        "",
        build_data(f"Data: {title.lower()}", headings, rows, prose=(1,)),
        tuple((draw_swatch(look), name) for name, look in looks.items()),
        "pair" if len(panels) in (2, 4) else "third",
    )


def _sample_points(curve: Curve) -> list[tuple[int, float]]:
    """A few points, the first and the last among them."""
    points = list(zip(curve.steps, curve.values, strict=True))
    if len(points) <= _SAMPLED:
        return points
    return [points[at * (len(points) - 1) // (_SAMPLED - 1)] for at in range(_SAMPLED)]
