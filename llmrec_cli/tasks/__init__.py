"""The tasks: one value each, by its name in recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llmrec_cli.tasks.base import Task
from llmrec_cli.tasks.generate import GENERATE
from llmrec_cli.tasks.rank_pair import RANK_PAIR

TASKS: Final[Mapping[str, Task]] = {task.name: task for task in (GENERATE, RANK_PAIR)}


def find_reported_task(protocol: Mapping[str, Any]) -> Task:
    """The task of a report's protocol; reports of lists name none."""
    name = protocol.get("task")
    return TASKS.get(name, GENERATE) if isinstance(name, str) else GENERATE
