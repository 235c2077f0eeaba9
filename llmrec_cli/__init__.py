"""llmrec: turn a language model into a recommender, from one recipe file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmrec_cli.serving.recommender import Recommender

__version__ = "0.1.0"
__all__ = ["Recommender", "__version__"]


def __getattr__(name: str) -> object:
    """``Recommender`` on first use: it needs torch, and ``import llmrec_cli`` does not."""
    if name == "Recommender":
        from llmrec_cli.serving.recommender import Recommender

        return Recommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
