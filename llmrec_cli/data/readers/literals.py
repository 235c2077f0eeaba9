"""Python literals, the notation of Amazon 2014 metadata.  ``ast.literal_eval``, never ``eval``."""

from __future__ import annotations

import ast
import warnings
from typing import Final

LONGEST_LITERAL: Final = 256 << 10  # bytes; parsing takes about 3 s and 0.5 GB per MB


def parse_literal(line: bytes) -> object:
    """Evaluate one Python literal.

    Raises:
        ValueError: above 256 KiB, nested too deeply, or no literal; the message is one line.
    """
    if len(line) > LONGEST_LITERAL:
        raise ValueError(f"a Python literal above {LONGEST_LITERAL >> 10} KiB")
    try:
        with warnings.catch_warnings():  # "\d" in a description is legal, and not ours to mend
            warnings.simplefilter("ignore")
            return ast.literal_eval(line.decode("utf-8").strip())
    except (MemoryError, RecursionError):
        raise ValueError("a Python literal nested too deeply") from None
    except SyntaxError as error:
        place = f" at column {error.offset}" if error.offset else ""
        raise ValueError(f"not a Python literal: {error.msg}{place}") from None
    except (ValueError, TypeError):
        raise ValueError("not a Python literal: it names something or computes") from None
