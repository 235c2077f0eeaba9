"""Sequences in two arrays are the sequences that went in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_cli.training.rows import Ragged

TOKENS = st.integers(0, 2**31 - 1)


@given(st.lists(st.lists(TOKENS, max_size=4), max_size=6), st.slices(6))
def test_what_went_in_comes_out(sequences: list[list[int]], part: slice) -> None:
    ragged = Ragged.of(sequences)
    assert [tokens.tolist() for tokens in ragged] == sequences
    assert [tokens.tolist() for tokens in ragged[part]] == sequences[part]
    assert [ragged[-1 - s].tolist() for s in range(len(ragged))] == sequences[::-1]
    assert Ragged.of(ragged) is ragged
    again = Ragged.from_arrays(ragged.arrays())
    assert [tokens.tolist() for tokens in again] == sequences
    for beyond in (len(sequences), -1 - len(sequences)):
        with pytest.raises(IndexError):
            ragged[beyond]


def test_what_comes_out_is_a_view() -> None:
    ragged = Ragged.of([[1, 2], np.array([3], np.int32)])
    assert ragged[1].base is ragged.token_T
    assert ragged[1].dtype == np.int32
