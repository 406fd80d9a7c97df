"""Random choices that cost little when thousands of environments make them at once."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

from g1jax.typing import Array, Key


def seed_of(key: Key) -> Array:
    """Two words that stand for a key of any kind where only plain arrays can go, such as a loop's carry: uint32[2]."""
    return jax.random.bits(key, (2,), jnp.uint32)


def words(seed: Array, draw: Array, count: int) -> Array:
    """The random words of one draw from a seed: uint32[2], uint32[] -> uint32[count].

    Threefry-2x32 of (draw, 0), (draw, 1), …: one cipher call where `fold_in` and `bits` make two.
    """
    half = -(-count // 2)
    counter = jnp.concatenate([jnp.full(half, draw, jnp.uint32), jnp.arange(half, dtype=jnp.uint32)])
    return threefry_2x32((seed[0], seed[1]), counter)[:count]


def nth_marked(mask: Array, nth: Array) -> Array:
    """The place of the nth marked entry, counted from 0: bool[n], int32[] -> int32[]; n or more where there is none.

    Packs the mask into words of 32 bits and halves from there: on CPU several times faster than a running sum.
    """
    n = mask.shape[0]
    num_words = -(-n // 32)
    bits = jnp.pad(mask, (0, num_words * 32 - n)).reshape(num_words, 32)
    places = jnp.arange(32, dtype=jnp.uint32)[None, :]
    words = jnp.sum(jnp.where(bits, jnp.uint32(1) << places, jnp.uint32(0)), axis=1, dtype=jnp.uint32)
    if num_words == 1:
        return nth_bit(words[0], nth)
    counts = jax.lax.population_count(words).astype(jnp.int32)
    before = jnp.cumsum(counts, dtype=jnp.int32) - counts
    word = jnp.sum((before + counts <= nth).astype(jnp.int32), dtype=jnp.int32)
    place = nth_bit(words[jnp.minimum(word, num_words - 1)], nth - before[jnp.minimum(word, num_words - 1)])
    return jnp.where(word < num_words, word * 32 + place, n)


def nth_bit(word: Array, nth: Array) -> Array:
    """The place of the nth set bit of a word, from the lowest, counted from 0; 32 or more where there is none."""
    place = jnp.where(nth < jax.lax.population_count(word).astype(jnp.int32), jnp.int32(0), jnp.int32(32))
    for width in (16, 8, 4, 2, 1):
        count = jax.lax.population_count(word & np.uint32((1 << width) - 1)).astype(jnp.int32)
        is_above = nth >= count
        place += jnp.where(is_above, width, 0)
        nth = jnp.where(is_above, nth - count, nth)
        word = jnp.where(is_above, word >> width, word)
    return place


def dice(bits: Array, sides: Array | int) -> tuple[Array, Array]:
    """Two independent random numbers from 32 random bits: int32 below `sides`, and float32 in [0, 1).

    The high and the low word of the 64-bit product `bits · sides`. The first is even to within sides / 2^32.
    """
    sides = jnp.asarray(sides, jnp.uint32)
    a, b, c, d = bits >> 16, bits & 0xFFFF, sides >> 16, sides & 0xFFFF
    low = b * d
    middle = a * d + (low >> 16)
    cross = b * c + (middle & 0xFFFF)
    high = a * c + (middle >> 16) + (cross >> 16)
    fraction = (((cross & 0xFFFF) << 8) | ((low >> 8) & 0xFF)).astype(jnp.float32) * jnp.float32(2**-24)
    return high.astype(jnp.int32), fraction


def choose(mask: Array, bits: Array) -> Array:
    """A random marked place, all equally likely: bool[n], uint32[] -> int32[]; n or more where none is marked."""
    nth, _ = dice(bits, jnp.sum(mask.astype(jnp.int32), dtype=jnp.int32))
    return nth_marked(mask, nth)


def shuffled(bits: Array) -> Array:
    """A random order of n things, from n random words: uint32[n] -> int32[n], each of 0 … n - 1 once.

    The rank of each word. Few are ranked by counting, which XLA's CPU compiler does ten times faster than sorting.
    """
    n = bits.shape[0]
    if n > 128:
        return jnp.argsort(bits).astype(jnp.int32)
    place = np.arange(n)
    is_before = (bits[None, :] < bits[:, None]) | ((bits[None, :] == bits[:, None]) & (place[None] < place[:, None]))
    return jnp.sum(is_before.astype(jnp.int32), axis=1, dtype=jnp.int32)
