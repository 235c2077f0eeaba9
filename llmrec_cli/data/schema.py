"""Names of columns and files that stages exchange. Each is defined once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

# interactions, as readers deliver them (one row per review or rating)
USER_ID: Final = "user_id"  # string, exactly as in the file
ITEM_ID: Final = "item_id"  # string, exactly as in the file
RATING: Final = "rating"  # float64; null where the source has none
TIMESTAMP: Final = "timestamp"  # int64, milliseconds since 1970-01-01 UTC
# int64, breaks ties in time: 0-based order of the line over all files, plus FINER times the
# nanoseconds (0..999,999) of the time beyond its milliseconds
POSITION: Final = "position"
FINER: Final = 1 << 43

# item metadata, as readers deliver it (one row per item)
TITLE: Final = "title"  # string, cleaned; null where unusable
BRAND: Final = "brand"  # string or null
TOKENS: Final = "tokens"  # list<string>: a semantic ID; null for items known by title
# item fields, which ``data.fields`` asks for; each is text on one line, null where it is unusable
CATEGORY: Final = "category"  # the most specific one
PRICE: Final = "price"  # such as "$1250.00"
DESCRIPTION: Final = "description"
ITEM_FIELDS: Final = (BRAND, CATEGORY, PRICE, DESCRIPTION)
# interaction fields, which ``data.fields`` asks for too: of a user's interaction with an item
GAP: Final = "gap"  # the time since the interaction before it; the other one is RATING
INTERACTION_FIELDS: Final = (RATING, GAP)
SHOWN_FIELDS: Final = (*ITEM_FIELDS, *INTERACTION_FIELDS)

# the prepared folder
ITEM: Final = "item"  # int32, dense catalogue index 0..n_items-1, in order of item_id
USER: Final = "user"  # int32, dense user index, in order of user_id
ROW: Final = "row"  # int32, 0-based index within one split file
HISTORY: Final = "history"  # list<int32>: catalogue indices, oldest first
TARGET: Final = "target"  # int32: catalogue index
NEGATIVES: Final = "negatives"  # list<int32>, optional: the less liked item of each of its pairs
CHOSEN_FIRST: Final = "chosen_first"  # list<bool>, beside it: the prompt shows the target first
DISLIKED: Final = "disliked"  # list<int32>, optional: what the user rated below data.min_rating
HISTORY_RATING: Final = "history_rating"  # list<float64>, optional, beside HISTORY; null: unrated
HISTORY_TIMESTAMP: Final = "history_timestamp"  # list<int64>, optional, beside HISTORY; ms
HISTORY_COLUMNS: Final[Mapping[str, str]] = {  # by interaction field: what it is made from
    RATING: HISTORY_RATING,
    GAP: HISTORY_TIMESTAMP,
}
COUNT: Final = "count"  # int32: training interactions of an item (its popularity)

# predictions.parquet: one row per evaluated row (beside ROW, USER_ID, HISTORY, TARGET)
RANKED: Final = "ranked"  # list<int32>: catalogue indices, best first, one item per entry
SCORES: Final = "scores"  # list<float32>: score of each ranked item, never rising
BEAM_DIFFERS: Final = "beam_differs"  # bool, optional: the beam's list is not the exact one

ITEMS_FILE: Final = "items.parquet"
SPLITS: Final = ("train", "valid", "test")
PREFERENCE: Final = "preference"  # a further split, of sources that come with pairs to align on

# Counts of a manifest: what a source that comes split lost, and what was cut of every split.
AS_READ: Final = "rows as read"
NO_TARGET: Final = "rows whose target has no usable title"
SHORT_HISTORY: Final = "rows with a history below data.min_history"
NO_TITLE: Final = "history items without a usable title"
UNSAMPLED: Final = "rows before data.sample"
CUT_ROWS: Final = "rows with a history cut to data.history"
CUT_ITEMS: Final = "history items cut"
HISTORY_ITEMS: Final = "history items"
RATED_ITEMS: Final = "history items with a rating"


def in_order(splits: Iterable[str]) -> list[str]:
    """Names of splits in the order in which they are written."""
    present = set(splits)
    return [name for name in (*SPLITS, PREFERENCE) if name in present]


def split_file(split: str) -> str:
    """File name of one split of a prepared folder, e.g. ``train.parquet``."""
    return f"{split}.parquet"
