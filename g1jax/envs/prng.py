"""Random choices that are cheap in large batches of environments."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32
from jaxtyping import Bool, Float32, Int32, UInt32

from g1jax.typing import Array, Key


def seed_of(key: Key) -> UInt32[Array, "2"]:
    """A seed from a key of any implementation, where a plain array is needed such as in a loop's carry."""
    return jax.random.bits(key, (2,), jnp.uint32)


def bits(seed: UInt32[Array, "2"], draw: UInt32[Array, ""], count: int) -> UInt32[Array, "{count}"]:
    """The random bits of one draw from a seed.

    Threefry-2x32 of (draw, 0), (draw, 1), …: one call of the cipher where `jax.random.fold_in` and `bits` need two.
    """
    half = -(-count // 2)
    counter = jnp.concatenate([jnp.full(half, draw, jnp.uint32), jnp.arange(half, dtype=jnp.uint32)])
    return threefry_2x32((seed[0], seed[1]), counter)[:count]


def nth_marked(mask: Bool[Array, "n"], nth: Int32[Array, ""]) -> Int32[Array, ""]:
    """The index of the nth True entry (n from 0); at least the length of the mask if there is none.

    Packs the mask into 32-bit integers and bisects these: on CPU several times faster than a cumulative sum.
    """
    n = mask.shape[0]
    num_packed = -(-n // 32)
    unpacked = jnp.pad(mask, (0, num_packed * 32 - n)).reshape(num_packed, 32)
    shifts = jnp.arange(32, dtype=jnp.uint32)[None, :]
    packed = jnp.sum(jnp.where(unpacked, jnp.uint32(1) << shifts, jnp.uint32(0)), axis=1, dtype=jnp.uint32)
    if num_packed == 1:
        return nth_bit(packed[0], nth)
    counts = jax.lax.population_count(packed).astype(jnp.int32)
    before = jnp.cumsum(counts, dtype=jnp.int32) - counts
    index = jnp.sum((before + counts <= nth).astype(jnp.int32), dtype=jnp.int32)
    bit = nth_bit(packed[jnp.minimum(index, num_packed - 1)], nth - before[jnp.minimum(index, num_packed - 1)])
    return jnp.where(index < num_packed, index * 32 + bit, n)


def nth_bit(mask: UInt32[Array, ""], nth: Int32[Array, ""]) -> Int32[Array, ""]:
    """The index of the nth set bit (n from 0, lowest bit first); at least 32 if there is none."""
    index = jnp.where(nth < jax.lax.population_count(mask).astype(jnp.int32), jnp.int32(0), jnp.int32(32))
    for width in (16, 8, 4, 2, 1):
        count = jax.lax.population_count(mask & np.uint32((1 << width) - 1)).astype(jnp.int32)
        is_above = nth >= count
        index += jnp.where(is_above, width, 0)
        nth = jnp.where(is_above, nth - count, nth)
        mask = jnp.where(is_above, mask >> width, mask)
    return index


def dice(
    bits: UInt32[Array, "*B"], sides: Int32[Array, "*#B"] | UInt32[Array, "*#B"] | int
) -> tuple[Int32[Array, "*B"], Float32[Array, "*B"]]:
    """Two independent random numbers from 32 random bits: below `sides`, and in [0, 1).

    The high and low halves of the 64-bit product `bits · sides`. The first is uniform to within sides / 2^32.
    """
    sides = jnp.asarray(sides, jnp.uint32)
    a, b, c, d = bits >> 16, bits & 0xFFFF, sides >> 16, sides & 0xFFFF
    low = b * d
    middle = a * d + (low >> 16)
    cross = b * c + (middle & 0xFFFF)
    high = a * c + (middle >> 16) + (cross >> 16)
    fraction = (((cross & 0xFFFF) << 8) | ((low >> 8) & 0xFF)).astype(jnp.float32) * jnp.float32(2**-24)
    return high.astype(jnp.int32), fraction


def choose(mask: Bool[Array, "n"], bits: UInt32[Array, ""]) -> Int32[Array, ""]:
    """The index of a uniformly random True entry; at least the length of the mask if there is none."""
    nth, _ = dice(bits, jnp.sum(mask.astype(jnp.int32), dtype=jnp.int32))
    return nth_marked(mask, nth)


def shuffled(bits: UInt32[Array, "n"]) -> Int32[Array, "n"]:
    """A random permutation from random bits: each of 0 … n - 1 once.

    A small n is ranked by pairwise comparison, which on XLA's CPU backend is ten times faster than sorting.
    """
    n = bits.shape[0]
    if n > 128:
        return jnp.argsort(bits).astype(jnp.int32)
    index = np.arange(n)
    is_before = (bits[None, :] < bits[:, None]) | ((bits[None, :] == bits[:, None]) & (index[None] < index[:, None]))
    return jnp.sum(is_before.astype(jnp.int32), axis=1, dtype=jnp.int32)
