"""One file per method; the file name is the ``--method`` name.  ``_name.py`` is shared code.

Listing the names imports none of them: ``llmrec align --help`` knows a new file at once.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmrec_cli.methods.contract import Method


def list_methods() -> list[str]:
    """Names of all methods, sorted."""
    modules = (m.name for m in pkgutil.iter_modules(__path__))
    return sorted(name for name in modules if name != "contract" and not name.startswith("_"))


def find_method(name: str) -> Method:
    """The method called ``name``.

    Raises:
        KeyError: there is no such method.
    """
    from llmrec_cli.methods.contract import Method  # pydantic: nobody needs it for the names

    if name not in list_methods():
        raise KeyError(name)
    method = importlib.import_module(f"{__name__}.{name}").METHOD
    if not isinstance(method, Method):
        raise TypeError(f"methods/{name}.py: METHOD is {type(method).__name__}, expected a Method")
    return method
