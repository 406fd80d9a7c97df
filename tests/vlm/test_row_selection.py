"""Rows taken out of a batch and put back."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g1jax.vlm.row_selection import batch_sizes, put_rows, running_first, take_rows


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_running_rows_come_first_and_keep_their_order(done: list[bool]) -> None:
    order, needed = running_first(jnp.array(done))
    running = [i for i, is_done in enumerate(done) if not is_done]
    assert int(needed) == len(running)
    assert order[0, : len(running)].tolist() == running
    assert sorted(order[0].tolist()) == list(range(len(done)))


@pytest.mark.parametrize("axis", [0, 1, -2])
@pytest.mark.parametrize("index", [[[2, 5, 0]], [[1], [2]], [[2, 0], [1, 2]]])
def test_rows_go_back_to_their_places(axis: int, index: list[list[int]]) -> None:
    x = np.moveaxis(np.arange(6 * 4 * 3).reshape(6, 4, 3), 0, axis)
    rows = [device * (6 // len(index)) + i for device, local in enumerate(index) for i in local]
    taken = take_rows(jnp.asarray(x), jnp.array(index), axis)
    np.testing.assert_array_equal(taken, np.take(x, rows, axis))
    expected = np.moveaxis(x.copy(), axis, 0)
    expected[rows] *= -1
    np.testing.assert_array_equal(
        put_rows(jnp.asarray(x), jnp.array(index), -taken, axis), np.moveaxis(expected, 0, axis)
    )


def test_sizes_divide_the_batch() -> None:
    assert batch_sizes(128) == [16, 32, 64, 128]
    assert batch_sizes(12) == [3, 6, 12]
    assert batch_sizes(5) == [5]
