"""Tiles along the lines of a board: which have an equal one next in line, which are the first seen from a side."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np

from g1jax.typing import Array


def twins(lines: Array) -> Array:
    """Which equal tiles see each other along each line: int8[n, m] -> bool[n, m, m], the first before the second.

    0 is empty. `[2 0 2 2]` has two such pairs, of places 0 and 2 and of places 2 and 3.
    """
    is_tile = lines != 0
    count = jnp.cumsum(is_tile.astype(jnp.int32), axis=1, dtype=jnp.int32)  # of tiles up to a place, its own too
    first, second = lines[:, :, None], lines[:, None, :]
    is_next = count[:, None, :] - count[:, :, None] == 1
    before = np.triu(np.ones((lines.shape[1],) * 2, bool), 1)[None]
    return (first == second) & is_tile[:, :, None] & is_tile[:, None, :] & is_next & before


def first_twins(board: Array) -> tuple[Array, Array, Array]:
    """The first two equal tiles that see each other along a row: int8[R, C] -> (is_found bool[], places int32[] twice).

    Of all such pairs the one whose second tile comes first in reading order; places are in reading order too.
    """
    cols = board.shape[1]
    pairs = twins(board)  # [R, C, C]
    is_second = jnp.any(pairs, axis=1)
    second = jnp.argmax(is_second.reshape(-1)).astype(jnp.int32)
    row, column = second // cols, second % cols
    first = row * cols + jnp.argmax(pairs[row, :, column]).astype(jnp.int32)
    return jnp.any(is_second), first, second


def outer_places(board: Array) -> Array:
    """The first tile that each side sees on every line: int8[R, C] -> int32[4, max(R, C)], places in reading order.

    Of the top, right, bottom and left; -1 where a line is empty, or there is none.
    """
    place = np.arange(board.size, dtype=np.int32).reshape(board.shape)
    views = [  # the board and its places, turned so that the side is at the left
        (board.T, place.T),
        (board[:, ::-1], place[:, ::-1]),
        (board[::-1].T, place[::-1].T),
        (board, place),
    ]
    sides = []
    for tiles, places in views:
        lines = np.arange(len(places))
        first = jnp.argmax(tiles != 0, axis=1)
        seen = jnp.where(jnp.any(tiles != 0, axis=1), jnp.asarray(places)[lines, first], -1)
        sides.append(jnp.pad(seen, (0, max(board.shape) - len(lines)), constant_values=-1))
    return jnp.stack(sides)


@functools.lru_cache
def all_pairs_walk(count: int, most: int) -> np.ndarray:
    """A walk over 0 … count - 1 in which any two follow each other, first in order: int32[n], -1 behind its end.

    n is the same for all counts up to `most`. `all_pairs_walk(4, 4) -> [0 1 2 3 0 2 3 1]`
    """

    def walk(count: int) -> list[int]:
        left = set(itertools.combinations(range(count), 2))
        at, steps = 0, [0]
        while left:
            ahead = sorted(range(count), key=lambda to: (to - at - 1) % count)
            open_to = [to for to in ahead if tuple(sorted((at, to))) in left]
            at_next = open_to[0] if open_to else next(to for to in ahead if any(to in pair for pair in left))
            left.discard((min(at, at_next), max(at, at_next)))
            at = at_next
            steps.append(at)
        return steps

    steps = walk(count)
    return np.array(steps + [-1] * (len(walk(most)) - len(steps)), np.int32)
