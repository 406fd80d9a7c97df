"""Random choices: correct, in range, and uniform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g1jax.envs import prng
from tests.envs import helpers

SIZES = [1, 2, 31, 32, 33, 36, 64, 65, 112, 1296, 4096, 5000]


@pytest.mark.parametrize("size", SIZES)
def test_the_nth_marked_index_is_found(size: int) -> None:
    rng = np.random.default_rng(size)
    masks = rng.random((40, size)) < rng.choice([0, 0.01, 0.5, 0.95, 1], (40, 1))
    masks[0], masks[1], masks[1, -1] = True, False, True
    nth = rng.integers(0, np.maximum(1, masks.sum(axis=1)) + 1).astype(np.int32)
    nth[0] = size - 1
    found = np.asarray(jax.jit(jax.vmap(prng.nth_marked))(masks, nth))
    for mask, n, index in zip(masks, nth, found, strict=True):
        marked = np.flatnonzero(mask)
        if n < len(marked):
            assert index == marked[n]
        else:
            assert index >= size


@given(masks=st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=8))
def test_the_nth_bit_is_found(masks: list[int]) -> None:
    nth = jnp.arange(34)
    indices = np.asarray(_nth_bits(np.array(masks, np.uint32), nth))
    for mask, found in zip(masks, indices.tolist(), strict=True):
        bits = [index for index in range(32) if mask >> index & 1]
        assert found[: len(bits)] == bits
        assert min(found[len(bits) :], default=32) >= 32


_nth_bits = jax.jit(jax.vmap(jax.vmap(prng.nth_bit, (None, 0)), (0, None)))

EDGES = [0, 1, 2, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 65536, 2**32 - 2, 2**32 - 1]
_dice = jax.jit(jax.vmap(prng.dice))


@given(
    bits=st.lists(st.one_of(st.sampled_from(EDGES), st.integers(0, 2**32 - 1)), min_size=16, max_size=16),
    sides=st.lists(st.one_of(st.integers(1, 100), st.integers(1, 2**31 - 1)), min_size=16, max_size=16),
)
def test_dice_are_the_two_halves_of_the_product(bits: list[int], sides: list[int]) -> None:
    numbers, fractions = _dice(np.array(bits, np.uint32), np.array(sides, np.int32))
    assert numbers.dtype == jnp.int32
    assert fractions.dtype == jnp.float32
    for factor, count, number, fraction in zip(bits, sides, numbers.tolist(), fractions.tolist(), strict=True):
        high, low = divmod(factor * count, 2**32)
        assert number == high < count
        assert fraction == (low >> 8) / 2**24 < 1


@pytest.mark.parametrize("sides", [1, 2, 7, 36, 1296])
def test_dice_are_uniform_and_independent_of_the_fraction(sides: int) -> None:
    bits = jax.random.bits(jax.random.key(sides), (sides * 200,))
    numbers, fractions = jax.jit(jax.vmap(prng.dice, (0, None)))(bits, sides)
    table = np.zeros((sides, 4))
    np.add.at(table, (np.asarray(numbers), (np.asarray(fractions) * 4).astype(int)), 1)
    helpers.assert_fits(table, np.full((sides, 4), 50))


def test_a_choice_is_uniform_over_marked_entries() -> None:
    mask = np.random.default_rng(0).random(1296) < 0.05
    bits = jax.random.bits(jax.random.key(0), (20_000,))
    chosen = np.asarray(jax.jit(jax.vmap(prng.choose, (None, 0)))(mask, bits))
    helpers.assert_fits(np.bincount(chosen, minlength=1296), mask * 20_000 / mask.sum())
    assert int(prng.choose(jnp.zeros(70, bool), bits[0])) >= 70


@pytest.mark.parametrize("size", [1, 2, 36, 128, 129, 900])
def test_a_shuffle_is_a_permutation(size: int) -> None:
    rng = np.random.default_rng(size)
    bits = rng.integers(0, 2**32, (50, size), np.uint32)
    bits[0] = 7  # also if all bits are equal
    bits[1, ::2] = 0
    orders = np.asarray(jax.jit(jax.vmap(prng.shuffled))(bits))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(size), (50, 1)))


def test_all_permutations_are_equally_likely() -> None:
    bits = jax.random.bits(jax.random.key(1), (24_000, 4))
    orders = np.asarray(jax.jit(jax.vmap(prng.shuffled))(bits))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    helpers.assert_fits(counts, np.full(24, 1000))


def test_bits_differ_by_seed_draw_and_index_and_are_uniform() -> None:
    seeds = jax.vmap(prng.seed_of)(helpers.keys(20))
    draws = jnp.arange(30, dtype=jnp.uint32)
    many = jax.jit(jax.vmap(jax.vmap(lambda seed, draw: prng.bits(seed, draw, 37), (None, 0)), (0, None)))
    bits = np.asarray(many(seeds, draws))
    assert bits.dtype == np.uint32
    assert bits.shape == (20, 30, 37)
    assert len(np.unique(bits)) > bits.size - 20
    means = np.unpackbits(bits.reshape(-1).view(np.uint8)).reshape(-1, 32).mean(axis=0)
    np.testing.assert_allclose(means, 0.5, atol=0.02)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_key_of_any_implementation_has_a_seed(impl: str) -> None:
    seeds = [np.asarray(prng.seed_of(jax.random.key(seed, impl=impl))) for seed in range(5)]
    assert len({tuple(seed.tolist()) for seed in seeds}) == 5
    assert seeds[0].shape == (2,)
