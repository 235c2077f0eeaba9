"""What methods log while they train: temperatures, preferences, negatives by layer, others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from llmrec_cli.report.figures.canvas import Look, look
from llmrec_cli.report.figures.curves import Line, curves, swatch
from llmrec_cli.report.figures.svg import Words
from llmrec_cli.report.page.document import Figure, Key, Prose, Section, plain_table
from llmrec_cli.report.page.material import Curve, RunLog
from llmrec_cli.report.page.words import name_of, quantity

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


@dataclass(frozen=True, slots=True)
class _Series:
    name: str
    look: Look
    curve: Curve


@dataclass(frozen=True, slots=True)
class _Panel:
    heading: str
    series: tuple[_Series, ...]


def logged_sections(logs: Sequence[RunLog]) -> Iterator[Section]:
    """A section per kind of figure; whatever else is logged comes last."""
    tau, preference = _per_figure(logs, TEMPERATURE), _per_figure(logs, PREFERENCE)
    further = {
        name: FURTHER.get(name, name_of(name))
        for log in logs
        for name in log.curves
        if _is_further(name)
    }
    yield _section("temperature", "Adaptive temperature", _TEMPERATURE_TEXT, tau)
    yield _section("preferences", "Preferences", _PREFERENCE_TEXT, preference)
    yield _section("layers", "Self-hard negatives by layer", _LAYER_TEXT, _per_layer(logs))
    yield _section("further", "Further logged figures", _FURTHER_TEXT, _per_figure(logs, further))


def _is_further(name: str) -> bool:
    known = {"loss", JOINED, *TEMPERATURE, *PREFERENCE}
    return name not in known and not name.startswith(("valid_", LAYER))


def _per_figure(logs: Sequence[RunLog], figures: Mapping[str, str]) -> list[_Panel]:
    """A panel per figure, with all runs that log it.

    Args:
        figures: logged name -> what the axis is called.
    """
    concerned = [log for log in logs if any(name in log.curves for name in figures)]
    panels = [
        _Panel(
            heading,
            tuple(
                _Series(_run_name(log, logs), look(place), log.curves[name])
                for place, log in enumerate(concerned)
                if name in log.curves
            ),
        )
        for name, heading in figures.items()
    ]
    return [panel for panel in panels if panel.series]


def _per_layer(logs: Sequence[RunLog]) -> list[_Panel]:
    """A panel per run, with a line per layer and one for all of them joined."""
    panels = []
    for log in logs:
        layers = sorted(
            (name for name in log.curves if name.startswith(LAYER)),
            key=lambda name: (len(name), name),  # 2 before 10
        )
        series = [
            _Series(_layer_name(name), look(place), log.curves[name])
            for place, name in enumerate([JOINED, *layers])
            if layers and name in log.curves
        ]
        panels.append(_Panel(_run_name(log, logs), tuple(series)))
    return [panel for panel in panels if panel.series]


def _layer_name(name: str) -> str:
    number = name.removeprefix(LAYER)
    return "layers joined" if name == JOINED else f"{number} before the last"


def _run_name(log: RunLog, logs: Sequence[RunLog]) -> str:
    """An entry's name; of one with several seeds, with the seed."""
    alone = sum(other.entry == log.entry for other in logs) == 1
    return name_of(log.entry) if alone else f"{name_of(log.entry)}, seed {log.seed}"


def _section(key: str, title: str, text: str, panels: Sequence[_Panel]) -> Section:
    if not panels:
        return Section(key, title, ())
    pictures = []
    for place, panel in enumerate(panels):
        told = "; ".join(f"{one.name} {_course(one.curve)}" for one in panel.series)
        lines = [Line(one.curve.steps, one.curve.values, one.look) for one in panel.series]
        words = Words(f"{key}-{place}", f"{title}: {panel.heading}", told)
        pictures.append(curves(words, lines, panel.heading))
    looks = {one.name: one.look for panel in panels for one in panel.series}
    legend = tuple(
        Key(swatch(f"{key}-key{place}", own), name)
        for place, (name, own) in enumerate(looks.items())
    )
    rows = [
        [panel.heading, one.name, f"{step:,}", quantity(value)]
        for panel in panels
        for one in panel.series
        for step, value in _sampled(one.curve)
    ]
    headings = ("picture", "curve", "update", "value")
    data = plain_table(f"Data: {title.lower()}", headings, rows, prose=(1,))
    size: Literal["pair", "third"] = "pair" if len(panels) in (2, 4) else "third"
    return Section(key, title, (Prose(text), Figure(tuple(pictures), "", data, legend, size)))


def _course(curve: Curve) -> str:
    """From where to where a curve goes."""
    first, last = quantity(curve.values[0]), quantity(curve.values[-1])
    return f"from {first} to {last} in {curve.steps[-1]:,} updates"


def _sampled(curve: Curve) -> list[tuple[int, float]]:
    """A few points, the first and the last among them."""
    points = list(zip(curve.steps, curve.values, strict=True))
    if len(points) <= _SAMPLED:
        return points
    return [points[at * (len(points) - 1) // (_SAMPLED - 1)] for at in range(_SAMPLED)]
