"""One vector per item: of its text, of a conventional model, of both, or drawn at random.

Shape suffixes: I items, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from llmrec_cli.config.tokens import list_placeholders
from llmrec_cli.data.schema import ITEM_ID, TITLE
from llmrec_cli.errors import DataError

RANDOM_WIDTH: Final = 64


def render_texts(pieces: Sequence[str], items: pd.DataFrame) -> list[str]:
    """The text of each item: the pieces whose fields it has, joined by blanks.

    Args:
        items: the catalogue, with a column for each placeholder.

    Raises:
        DataError: nothing is left of an item.
    """
    names = sorted({name for piece in pieces for name in list_placeholders(piece)})
    columns = {name: items[TITLE if name == "title" else name].tolist() for name in names}
    texts = []
    for at in range(len(items)):
        known = {name: column[at] for name, column in columns.items() if _is_text(column[at])}
        shown = [p for p in pieces if all(name in known for name in list_placeholders(p))]
        texts.append(" ".join(piece.format(**known) for piece in shown))
    if "" in texts:
        name = items[ITEM_ID].iloc[texts.index("")]
        raise DataError(
            f"tokens.text: item {name!r} has nothing that it shows ({texts.count(''):,} such "
            "items); expected a piece with {title}"
        )
    return texts


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def describe_repeats(texts: Sequence[str]) -> str | None:
    """What to say of items with equal texts, which get equal codes; None: there are none."""
    frame = pd.Series(list(texts))
    repeated = frame[frame.duplicated(keep=False)]
    if repeated.empty:
        return None
    first = repeated.iloc[0]
    shown = first if len(first) <= 60 else f"{first[:57]}..."
    return (
        f"{len(repeated):,} items have a text that another item has too, such as {shown!r}: they "
        "get equal codes"
    )


def draw_vectors(ids: Sequence[str], seed: int) -> Tensor:
    """Random vectors [I, D]; an item's own depend on its id and the seed alone."""
    rows = []
    for name in ids:
        digest = hashlib.sha256(f"{seed}\0{name}".encode(errors="surrogatepass")).digest()
        drawn = np.random.default_rng(list(digest)).standard_normal(RANDOM_WIDTH)
        rows.append(torch.from_numpy(drawn.astype(np.float32)))
    return torch.stack(rows)


def join_blocks(blocks: Sequence[Tensor]) -> Tensor:
    """Blocks side by side [I, D]; where there are several, each weighs alike.

    Each is centred, and divided by one number, so that its vectors' mean squared length is 1.
    """
    if len(blocks) == 1:
        return blocks[0]
    return torch.cat([_standardize(block_ID) for block_ID in blocks], dim=1)


def _standardize(block_ID: Tensor) -> Tensor:
    centred_ID = block_ID - block_ID.mean(dim=0)
    length = (centred_ID**2).sum(dim=1).mean().sqrt()
    return centred_ID / length if length > 0 else centred_ID


def require_finite(vector_ID: Tensor, ids: Sequence[str], what: str) -> None:
    """Refuse vectors with NaN or infinity.

    Args:
        what: where they come from.

    Raises:
        DataError: names the first item.
    """
    bad_I = ~torch.isfinite(vector_ID).all(dim=1)
    if bad_I.any():
        first = ids[int(bad_I.nonzero()[0])]
        raise DataError(
            f"{what}: the vectors of {int(bad_I.sum()):,} of {len(ids):,} items, such as "
            f"{first!r}, have NaN or infinity; expected finite numbers"
        )


def hash_vectors(vector_ID: Tensor) -> str:
    """SHA-256 of fp32 vectors and their shape."""
    digest = hashlib.sha256(str(tuple(vector_ID.shape)).encode())
    digest.update(vector_ID.contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()
