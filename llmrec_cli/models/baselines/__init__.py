"""One file per conventional model; the file name is the model's.  ``_name.py`` is shared code."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llmrec_cli.models.baselines.contract import Baseline

_SIMPLEST_FIRST: Final = ("pop", "itemknn", "sasrec", "gru4rec", "caser")


def baseline_names() -> list[str]:
    """Names of all conventional models: ours from the simplest on, then any others, sorted."""
    modules = {m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")}
    others = sorted(modules - {"contract", *_SIMPLEST_FIRST})
    return [*(name for name in _SIMPLEST_FIRST if name in modules), *others]


def find_baseline(name: str) -> Baseline:
    """The conventional model called ``name``.

    Raises:
        KeyError: there is no such model.
    """
    from llmrec_cli.models.baselines.contract import Baseline  # pydantic: not for the names

    if name not in baseline_names():
        raise KeyError(name)
    found = importlib.import_module(f"{__name__}.{name}").BASELINE
    if not isinstance(found, Baseline):
        raise TypeError(
            f"models/baselines/{name}.py: BASELINE is {type(found).__name__}, expected a Baseline"
        )
    return found


def trained_names() -> list[str]:
    """Names of the models that the training loop trains, which have a state of a history."""
    return [name for name in baseline_names() if find_baseline(name).is_trained]
