"""Which rows a file of hidden states holds."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlp_mtl.data import kept_states
from nlp_mtl.data.kept_states import first_rows


@given(lengths=st.lists(st.integers(0, 40), max_size=60), rows=st.integers(1, 9), tokens=st.integers(1, 60))
def test_files_hold_as_many_rows_as_may_be_and_each_row_once(lengths: list[int], rows: int, tokens: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kept_states, "ROWS", rows)
        patched.setattr(kept_states, "TOKENS", tokens)
        found = first_rows(np.array(lengths, dtype=np.int32))
    assert (found[0], found[-1]) == (0, len(lengths))

    def fits(first: int, end: int) -> bool:
        return end - first <= rows and (sum(lengths[first:end]) <= tokens or end - first == 1)

    for first, end in pairwise(found):
        assert first < end
        assert fits(first, end)
        assert end == len(lengths) or not fits(first, end + 1)


def test_long_rows_make_files_of_fewer() -> None:
    assert first_rows(np.full(9000, 20)) == [0, 4096, 8192, 9000]
    assert first_rows(np.full(1200, 512)) == [0, 512, 1024, 1200]
