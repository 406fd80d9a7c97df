"""The number of parts that batches are computed in on several devices."""

import hypothesis.strategies as st
from hypothesis import given

from g1jax.training.setup import parts_on


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 9))
def test_parts_on_several_devices(parts: int, shards: int, factor: int) -> None:
    num_states = parts * shards * factor
    fitting = parts_on(shards, num_states, parts)
    assert parts % fitting == 0
    assert num_states % (fitting * shards) == 0, "every device has as many states of a part"
    assert num_states // (fitting * shards) <= num_states // parts, "and no more than one device would have"
    assert parts_on(1, num_states, parts) == parts
