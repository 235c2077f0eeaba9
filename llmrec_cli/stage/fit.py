"""Whether tokenizer, catalogue and backbone fit together, asked before any weights are read.

Shape suffixes: I items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from llmrec_cli.data.columns import ITEM_ID, TITLE
from llmrec_cli.data.leaves import has_tokens
from llmrec_cli.engine.ragged import Ragged
from llmrec_cli.errors import ArtefactError, DataError
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.stage.base import base_source


@dataclass(frozen=True)
class Room:
    """Places for tokens that a prompt and its answers may take."""

    prompt: int  # longest prompt
    why: str  # what sets that, as a setting and its value
    context: int | None = None  # prompt and answers together; None: no end
    longest: int = 0  # tokens of the longest item

    def holds(self, prompt: int, targets: Sequence[int]) -> bool:
        """Whether one causal pass fits, and the longest item in place of its last target.

        Args:
            prompt: tokens.
            targets: tokens of each target behind it.
        """
        return self.context is None or prompt + sum(targets[:-1]) + self.longest <= self.context


def check_vocabulary(recipe: Recipe, config: Any, tokenizer: Any, added: Sequence[str]) -> None:
    """Refuse a tokenizer that names tokens for which the backbone has no row.

    Args:
        config: of the backbone.
        added: tokens that llmrec added to the tokenizer; rows are made for them.

    Raises:
        ArtefactError: with both numbers.  (More rows than tokens are common, and are not refused.)
    """
    rows, ours = config.get_text_config().vocab_size, set(added)
    beyond = [t for t, number in tokenizer.get_vocab().items() if number >= rows and t not in ours]
    if beyond:
        size = len(tokenizer) - len(ours & set(tokenizer.get_added_vocab()))
        raise ArtefactError(
            f"model.backbone = {base_source(recipe)!r}: its tokenizer has {size:,} tokens (such as "
            f"{min(beyond)!r}), its embedding {rows:,} rows: expected the tokenizer that the model "
            "was trained with"
        )


def room(recipe: Recipe, config: Any, catalogue: Ragged, items: pd.DataFrame, most: int) -> Room:
    """How long prompts may be: what the recipe says, or what the backbone's positions leave.

    A backbone of our own has rotary positions, trained here: they have no end.

    Args:
        most: ``prompt.max_tokens``.

    Raises:
        DataError: an item alone takes all positions.
    """
    length_I = np.diff(catalogue.start_S1)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if recipe.model.backbone == "scratch" or not isinstance(context, int) or context < 1:
        return Room(most, f"prompt.max_tokens = {most}", None, int(length_I.max()))
    at, longest = int(length_I.argmax()), int(length_I.max())
    if longest >= context:
        title = items.iloc[at][TITLE]
        named = "" if title is None else f" ({_short(title)})"
        raise DataError(
            f"item {items.iloc[at][ITEM_ID]!r}{named} takes {longest:,} tokens in this tokenizer, "
            f"the backbone has {context:,} positions (max_position_embeddings): leave the item "
            "out, or choose a backbone with more"
        )
    if most <= context - longest:
        return Room(most, f"prompt.max_tokens = {most}", context, longest)
    why = (
        f"{context:,} positions of the backbone less {longest:,} for the longest item = "
        f"{context - longest:,}"
    )
    return Room(context - longest, why, context, longest)


def shared_entries(items: pd.DataFrame, leaf_of_item_I: np.ndarray[Any, Any]) -> str | None:
    """What to say of titles that differ, and that a tokenizer cannot tell apart; None: nothing."""
    if has_tokens(items):
        return None
    named = pd.DataFrame({"leaf": leaf_of_item_I, TITLE: items[TITLE].to_numpy()}).drop_duplicates()
    mixed = named[named["leaf"].duplicated(keep=False)]
    if mixed.empty:
        return None
    first = mixed.loc[mixed["leaf"] == mixed["leaf"].iloc[0], TITLE]
    entries = mixed["leaf"].nunique()
    example = " and ".join(_short(title) for title in first[:2])
    return (
        f"{len(mixed):,} titles have tokens that another title has too, such as "
        f"{example}: they share {entries:,} entries of the catalogue, and a hit on either counts"
    )


def _short(title: str) -> str:
    return repr(title if len(title) <= 60 else title[:57] + "...")
