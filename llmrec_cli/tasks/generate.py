"""The generate task: a history, and the next item's title or semantic ID as the answer."""

from __future__ import annotations

from typing import Final

from llmrec_cli.tasks.base import Task

GENERATE: Final = Task(
    name="generate",
    summary="recommends the next item of a history",
    ranks_catalogue=True,
    shows_candidates=False,
    select=("ndcg", "loss"),
    rows=("window", "sequence", "user"),
    packs=False,
    answer_items=1,
    policies=("keep", "remove"),
)
