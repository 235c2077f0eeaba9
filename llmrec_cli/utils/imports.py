"""Importing large libraries without looking for garbage on the way."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def import_quickly() -> Iterator[None]:
    """Around imports of torch, transformers and the like: no garbage collection in the block.

    They make half a million objects that stay, and Python would look through them again and again:
    a fifth of the time that ``llmrec sft`` takes to start.  Where the block imports torch, what
    lives at its end is never looked through again.  Later that would keep models that are part of
    a cycle: it is done once, when there can be none.
    """
    collects, is_start = gc.isenabled(), "torch" not in sys.modules
    gc.disable()
    try:
        yield
        if is_start and "torch" in sys.modules:
            gc.freeze()
    finally:
        if collects:
            gc.enable()
