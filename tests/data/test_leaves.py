"""Leaves without a tokenizer: equal titles or equal semantic IDs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from llmrec_cli.data.catalog import leaf_of_equal_titles
from llmrec_cli.errors import ArtefactError


def test_equal_titles_share_a_leaf() -> None:
    items = pd.DataFrame({"title": ["Dune", "Emma", "Dune"], "tokens": [None, None, None]})
    assert leaf_of_equal_titles(items).tolist() == [0, 1, 0]


def test_semantic_ids_decide_where_they_exist() -> None:
    tokens = [np.array(["<a_1>", "<b_2>"]), ["<a_1>", "<b_3>"], ("<a_1>", "<b_2>")]
    items = pd.DataFrame({"title": ["same", "same", None], "tokens": tokens})
    assert leaf_of_equal_titles(items).tolist() == [0, 1, 0]


def test_an_item_without_a_name_is_refused() -> None:
    items = pd.DataFrame({"title": ["Dune", None], "tokens": [None, None]})
    with pytest.raises(ArtefactError, match="item 1 has neither tokens nor a title"):
        leaf_of_equal_titles(items)
