"""The model card of an exported run: README.md with the hub's metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from llmrec_cli.report.text import build_markdown_table, markdown, plain

_BACKTICKS = re.compile("`+")


Rows = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Card:
    """What a card says; every text is plain, and escaped where it stands."""

    metadata: Mapping[str, Any]  # of the hub: license, base_model, datasets, tags, ...
    results: Sequence[tuple[str, float]]  # metric and value, for the hub's own tables
    name: str
    summary: str
    description: str
    load_code: str  # Python; defines model and tokenizer
    load_notes: tuple[str, ...]
    rank_code: str | None  # Python, to run behind load_code; None: the task ranks no catalogue
    answer: str  # what the model answers with
    decoding: str
    example: str | None  # a prompt and two answers, of the rank-pair task
    sources: Rows  # name, bytes, SHA-256
    splits: Rows  # name, rows, users, targets
    preparation: str
    training: tuple[str, ...]
    evaluated_on: str  # names of the files
    protocol: str
    score_headings: tuple[str, ...]
    scores: Rows  # empty: not evaluated
    limits: tuple[str, ...]
    licence: str
    version: str


def model_card(card: Card) -> str:
    """The card as Markdown, behind its metadata in YAML."""
    made = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)  # nosec B701 # noqa: S701 - Markdown: every text goes through the filter md
    made.filters |= {"md": markdown, "fenced": fenced, "table": table}
    template = files("llmrec_cli.exported").joinpath("README.md.j2").read_text(encoding="utf-8")
    return made.from_string(template).render(card=card, yaml=to_yaml(card))


def to_yaml(card: Card) -> str:
    """The metadata as the hub reads it."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            task_name="sequential recommendation",
            dataset_type=(card.metadata.get("datasets") or ["own"])[0],
            dataset_name=plain(card.evaluated_on),
            dataset_split="test",
            metric_type=name,
            metric_value=value,
        )
        for name, value in card.results
    ]
    evaluated = {"model_name": plain(card.name), "eval_results": results} if results else {}
    metadata: dict[str, Any] = {**card.metadata, **evaluated}
    return ModelCardData(**metadata).to_yaml().rstrip()


def fenced(text: str, language: str = "text") -> str:
    """A code block whose text cannot end it."""
    longest = max((len(found) for found in _BACKTICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def table(rows: Rows, headings: Sequence[str]) -> str:
    """Rows under headings; all but the first column to the right."""
    first, *others = [list(map(markdown, row)) for row in (headings, *rows)]
    return build_markdown_table(first, others)
