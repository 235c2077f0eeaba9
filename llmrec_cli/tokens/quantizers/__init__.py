"""One file per quantizer; the file name is the quantizer's.  ``_name.py`` is shared code."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmrec_cli.tokens.quantizers.contract import Quantizer

DEFAULT = "rq-kmeans"


def quantizer_names() -> list[str]:
    """Names of all quantizers: the default first, then the others, sorted."""
    modules = {m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")}
    names = sorted(name.replace("_", "-") for name in modules - {"contract"})
    return [DEFAULT, *(name for name in names if name != DEFAULT)]


def find_quantizer(name: str) -> Quantizer:
    """The quantizer called ``name``.

    Raises:
        KeyError: there is no such quantizer.
    """
    from llmrec_cli.tokens.quantizers.contract import Quantizer  # pydantic: not for the names

    if name not in quantizer_names():
        raise KeyError(name)
    module = name.replace("-", "_")
    found = importlib.import_module(f"{__name__}.{module}").QUANTIZER
    if not isinstance(found, Quantizer):
        raise TypeError(
            f"tokens/quantizers/{module}.py: QUANTIZER is {type(found).__name__}, expected a "
            "Quantizer"
        )
    return found
