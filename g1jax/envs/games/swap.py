"""Swap: exchange two adjacent tiles to make a run of three or more equal ones (match-3)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int, Int8, Int32, UInt32

from g1jax.envs import core, prng, shapes
from g1jax.envs import level as level_keys
from g1jax.envs.level import traced
from g1jax.envs.vmap_loop import fence, loop_while
from g1jax.errors import LevelError
from g1jax.typing import Array, HostImages, Key


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TracedLevel(level_keys.TracedLevel):
    """The traced keys of the rules."""

    colors: Int32[Array, "*B"]
    shapes: Int32[Array, "*B"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """A full board of tile kinds, color · shapes + shape."""

    board: Int8[Array, "*B R C"]
    terminated: Bool[Array, "*B"]  # never
    seed: UInt32[Array, "*B"]
    level: TracedLevel


@dataclass(frozen=True, kw_only=True)
class Level(level_keys.Level):
    """The paper's board: 8×8, tiles of 4 colors × 3 shapes."""

    traced_type = TracedLevel
    rows: int = 8
    cols: int = 8
    colors: int = traced(4, "at_most")
    """The number of colors, the first ones of `appearance.COLORS`."""
    shapes: int = traced(3, "at_most")
    """The number of shapes, the first ones of `appearance.SHAPES`."""

    def check(self) -> None:
        """Rejects levels that cannot be played."""
        super().check()
        shapes.check_shapes(self.colors, self.shapes)
        LevelError.require(
            self.colors * self.shapes >= 3,
            f"colors={self.colors}, shapes={self.shapes}: a board without a run needs at least 3 types",
        )
        short, long = sorted((self.rows, self.cols))
        LevelError.require(
            long >= 4 or (long == 3 and short >= 2),
            f"rows={self.rows}, cols={self.cols}: no swap can make a run of three; the smallest are 1×4 and 2×3",
        )


class Swap(core.Game[State]):
    """Match-3 on R×C cells.

    Observation: colored shapes; text: `Red circle` and so on.
    Actions: two cells (r1, c1) (r2, c2), from 0 at the top left.
    Legal: adjacent cells whose swap brings at least one of the tiles into a run of three or more equal tiles in a row
    or column. Then all runs are removed at once, tiles fall, and new ones enter at the top, until there is no run.
    Reward: m·(m - 1) for every m tiles removed at once; -1 if the swap makes no run.
    Ends: never. A board without a legal swap is shuffled.

    >>> from g1jax import envs
    >>> game = envs.make("swap")
    >>> state = game.reset(jax.random.key(0))
    >>> bool(game.legal_actions(state).any()), bool(runs(state.board).any())
    (True, False)
    """

    id = "swap"
    Level = Level
    default_prompt = (
        "This is a game of match-3 on {rows} rows and {cols} columns of tiles. Choose two tiles{rules} that are next "
        "to each other in a row or column{/rules} to swap them{goal}, so that three or more tiles of the same color "
        "and shape stand in a line. They are removed and score, more for more at once{/goal}{rules}; the tiles above "
        "fall and new ones enter at the top{/rules}.\n{format}\nThe move is the two cells as (row, column), counted "
        "from 0 at the top left, for example <answer>(0, 1) (0, 2)</answer>."
    )

    def shape_actions(self) -> tuple[int, ...]:
        """Two cells."""
        return (self.rows, self.cols, self.rows, self.cols)

    def cell_names(self) -> Sequence[str]:
        """`Red circle`, `Red square`, …; no cell is ever empty."""
        return shapes.tile_names(self.level.colors, self.level.shapes)

    def draw_tiles(self, palette: str, background: str) -> HostImages:
        """Every colored shape."""
        size = self.level.appearance.cell_size
        return np.stack(shapes.draw_tiles(self.level.colors, self.level.shapes, size, palette, background))

    def begin(self, key: Key, seed: UInt32[Array, ""], level: TracedLevel) -> State:
        """A board without a run and with a legal swap."""
        board = jnp.zeros((self.rows, self.cols), jnp.int8)
        board = renew(board, jnp.bool_(True), 0, Source.of(key, level), self.level.shapes)
        return State(board, jnp.bool_(False), seed, level)

    def move(
        self, state: State, action: Int32[Array, ""], key: Key
    ) -> tuple[State, Float32[Array, ""], Bool[Array, ""]]:
        """Swaps and resolves the runs, if the swap makes one."""
        num_cells = self.rows * self.cols
        a, b = action // num_cells % num_cells, action % num_cells
        swapped = fence(exchange(state.board, a, b))
        is_legal = are_adjacent(a, b, self.cols) & makes_run(swapped, a, b) & (action != self.invalid_action)
        board = jnp.where(is_legal, swapped, state.board)
        board, score, source = cascade(board, is_legal, Source.of(key, state.level), self.level.shapes)
        board = renew(board, is_legal & ~has_legal_swap(board), _MOST_SHUFFLES, source, self.level.shapes)
        return replace(state, board=board), jnp.where(is_legal, score, jnp.float32(-1)), is_legal

    def cells(self, state: State) -> Int32[Array, "R C"]:
        """The board's kinds."""
        return state.board.astype(jnp.int32)

    def from_cells(self, cells: Int[Array, "R C"], seed: UInt32[Array, ""], level: TracedLevel) -> State:
        """The state of a board of kinds; unlike in play, it may have runs or no legal swap."""
        return State(cells.astype(jnp.int8), jnp.bool_(False), seed, level)

    def legal_actions(self, state: State) -> Bool[Array, "{self.num_actions}"]:
        """The ordered pairs of adjacent cells whose swap makes a run."""
        right, down = legal_swaps(state.board)
        return as_pairs(right, down).reshape(-1)

    def expert(self, state: State, key: Key) -> Int32[Array, ""]:
        """The swap that scores most, including cascades of falling tiles but not new ones; deterministic."""
        del key
        return best_swap(state.board)

    @property
    def fact_names(self) -> tuple[str, ...]:
        """Equal tiles nearby, legal swaps, and the first legal swap of each row."""
        return (*(f"like ({down}, {right})" for down, right in NEARBY), "right", "down", "named right", "named down")

    def facts(self, state: State) -> Bool[Array, "R C F"]:
        """Equal tiles at the offsets in `NEARBY`; legal swaps; the first legal swap of each row."""
        right, down = legal_swaps(state.board)
        right, down = jnp.pad(right, ((0, 0), (0, 1))), jnp.pad(down, ((0, 1), (0, 0)))
        is_named = (right | down) & (jnp.cumsum((right | down).astype(jnp.int32), axis=1, dtype=jnp.int32) == 1)
        return jnp.stack([*equal_nearby(state.board), right, down, is_named & right, is_named & down & ~right], axis=-1)


# Rules


def runs(board: Int8[Array, "R C"]) -> Bool[Array, "R C"]:
    """The cells in a row or column of three or more equal tiles. Negative cells are holes."""
    is_run = jnp.zeros(board.shape, bool)
    for along in (0, 1):
        length = board.shape[along]
        if length >= 3:
            cut = [jax.lax.slice_in_dim(board, i, length - 2 + i, axis=along) for i in range(3)]
            is_three = (cut[0] == cut[1]) & (cut[1] == cut[2]) & (cut[0] >= 0)
            for i in range(3):
                pad = [(0, 0), (0, 0)]
                pad[along] = (i, 2 - i)
                is_run |= jnp.pad(is_three, pad)
    return is_run


def exchange(board: Int8[Array, "R C"], a: Int32[Array, ""], b: Int32[Array, ""]) -> Int8[Array, "R C"]:
    """The board with two cells, by their index in reading order, exchanged."""
    flat = board.reshape(-1)
    index = jnp.arange(flat.shape[0], dtype=jnp.int32)
    tile_a, tile_b = flat[a], flat[b]
    return jnp.where(index == a, tile_b, jnp.where(index == b, tile_a, flat)).reshape(board.shape)


def are_adjacent(a: Int32[Array, ""], b: Int32[Array, ""], cols: int) -> Bool[Array, ""]:
    """Whether two cells share an edge."""
    return jnp.abs(a // cols - b // cols) + jnp.abs(a % cols - b % cols) == 1


def makes_run(swapped: Int8[Array, "R C"], a: Int32[Array, ""], b: Int32[Array, ""]) -> Bool[Array, ""]:
    """Whether the exchange of two different tiles brought one of them into a run, given the board after it."""
    flat, is_run = swapped.reshape(-1), runs(swapped).reshape(-1)
    return (flat[a] != flat[b]) & (is_run[a] | is_run[b])


def legal_swaps(board: Int8[Array, "R C"]) -> tuple[Bool[Array, "R C-1"], Bool[Array, "R-1 C"]]:
    """Which cells can be swapped with the next one, to the right and downwards.

    A moved tile makes a run if, on a line through its new cell, two equal tiles are beyond it, or before it, or one on
    each side; its old cell then has the other tile.
    """
    return _legal_across(board), _legal_across(board.T).T


def _legal_across(board: Int8[Array, "R C"]) -> Bool[Array, "R C-1"]:
    rows, cols = board.shape
    padded = jnp.pad(board, 3, constant_values=-1)

    def at(down: int, right: int) -> Int8[Array, "R _"]:
        """The tile at an offset from the left cell of each pair."""
        return padded[3 + down : 3 + down + rows, 3 + right : 3 + right + cols - 1]

    def is_completed(tile: Int8[Array, "n m"], col: int, away: int) -> Bool[Array, "n m"]:
        up2, up, below, below2 = (at(d, col) == tile for d in (-2, -1, 1, 2))
        beyond = (at(0, col + away) == tile) & (at(0, col + 2 * away) == tile)
        return beyond | (up2 & up) | (up & below) | (below & below2)

    left, right = at(0, 0), at(0, 1)
    return (left != right) & (is_completed(left, 1, 1) | is_completed(right, 0, -1))


def as_pairs(right: Bool[Array, "R _"], down: Bool[Array, "_ C"]) -> Bool[Array, "R*C R*C"]:
    """Converts swaps by their first cell, of `legal_swaps`, to pairs of cells in either order."""
    cols = right.shape[1] + 1
    right = jnp.pad(right, ((0, 0), (0, 1))).reshape(-1)
    down = jnp.pad(down, ((0, 1), (0, 0))).reshape(-1)
    n = right.shape[0]
    ahead = (right[:, None] & np.eye(n, k=1, dtype=bool)) | (down[:, None] & np.eye(n, k=cols, dtype=bool))
    back = (right[None, :] & np.eye(n, k=-1, dtype=bool)) | (down[None, :] & np.eye(n, k=-cols, dtype=bool))
    return ahead | back


def fall(board: Int8[Array, "R C"], is_removed: Bool[Array, "R C"]) -> Int8[Array, "R C"]:
    """Removes cells and lets the tiles above fall; holes (-1) are at the top of each column."""
    rows = board.shape[0]
    is_left = ~is_removed & (board >= 0)
    num_left_below = jnp.flip(
        jnp.cumsum(jnp.flip(is_left.astype(jnp.int32), 0), axis=0, dtype=jnp.int32), 0
    ) - is_left.astype(jnp.int32)
    target = rows - 1 - num_left_below  # [R, C]
    lands = (target[:, None, :] == np.arange(rows, dtype=np.int32)[None, :, None]) & is_left[:, None, :]
    return jnp.sum(jnp.where(lands, board[:, None, :] + 1, 0), axis=0).astype(jnp.int8) - 1


NEARBY = ((0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (3, 0), (1, 1), (1, 2), (2, 1), (1, -1), (1, -2), (2, -1))
"""Offsets, down and to the right, between two tiles that one swap can bring into a run."""


def equal_nearby(board: Int8[Array, "R C"]) -> list[Bool[Array, "R C"]]:
    """Whether the tile at each offset in `NEARBY` is equal."""
    rows, cols = board.shape
    padded = jnp.pad(board, 3, constant_values=-1)
    return [padded[3 + down : 3 + down + rows, 3 + right : 3 + right + cols] == board for down, right in NEARBY]


def has_legal_swap(board: Int8[Array, "R C"]) -> Bool[Array, ""]:
    """Whether any swap makes a run."""
    right, down = legal_swaps(board)
    return jnp.any(right) | jnp.any(down)


# New tiles: kinds are drawn as numbers below colors · shapes, of the colors and shapes in play

_MOST_SHUFFLES = 50


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Source:
    """A source of random tiles. Under `vmap` some fields may have no batch axis, as environments share their level."""

    seed: UInt32[Array, "*#B 2"]
    count: UInt32[Array, "*#B"]  # number of draws so far
    colors: Int32[Array, "*#B"]
    shapes: Int32[Array, "*#B"]

    @staticmethod
    def of(key: Key, level: TracedLevel) -> "Source":
        """The source of a key and the colors and shapes in play."""
        return Source(prng.seed_of(key), jnp.uint32(0), level.colors, level.shapes)

    def bits(self, count: int) -> tuple[UInt32[Array, "{count}"], "Source"]:
        """Random bits, and the source of the next ones."""
        return prng.bits(self.seed, self.count, count), replace(self, count=self.count + 1)

    def kind(self, number: Int32[Array, "*n"], num_shapes: int) -> Int8[Array, "*n"]:
        """Numbers below colors · shapes as kinds, with `num_shapes` kinds per color."""
        return (number // self.shapes * num_shapes + number % self.shapes).astype(jnp.int8)


def cascade(
    board: Int8[Array, "R C"], is_active: Bool[Array, ""], source: Source, num_shapes: int
) -> tuple[Int8[Array, "R C"], Float32[Array, ""], Source]:
    """Removes runs, lets tiles fall and new ones enter until there is no run: the board, the score and the source."""

    def one_pass(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        board, score, _, source = carry
        is_run = runs(board)
        count = jnp.sum(is_run.astype(jnp.float32))
        board = fence(fall(board, is_run))
        bits, source = source.bits(board.size)
        number, _ = prng.dice(bits.reshape(board.shape), source.colors * source.shapes)
        board = fence(jnp.where(board < 0, source.kind(number, num_shapes), board))
        return board, score + count * (count - 1), jnp.any(runs(board)), source

    board, score, _, source = loop_while(lambda carry: carry[2], one_pass, (board, jnp.float32(0), is_active, source))
    return board, score, source


def renew(
    board: Int8[Array, "R C"], is_wanted: Bool[Array, ""], most_shuffles: int, source: Source, num_shapes: int
) -> Int8[Array, "R C"]:
    """If wanted, a board without a run and with a legal swap.

    Shuffles the board's own tiles. If `most_shuffles` tries fail, since these may not allow one, it draws new tiles.
    """

    def is_unfit(board: Int8[Array, "R C"]) -> Bool[Array, ""]:
        return jnp.any(runs(board)) | ~has_legal_swap(board)

    def shuffle(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        board, _, tries, source = carry
        bits, source = source.bits(board.size)
        fresh = fence(board.reshape(-1)[prng.shuffled(bits)].reshape(board.shape))
        is_next = is_unfit(fresh)
        return jnp.where(is_next & (tries + 1 < most_shuffles), board, fresh), is_next, tries + 1, source

    def draw(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        board, _, source = carry
        bits, source = source.bits(board.size)
        numbers = fill_without_runs(bits, source.colors * source.shapes, board.shape)
        fresh = fence(source.kind(numbers, num_shapes))
        return fresh, is_unfit(fresh), source

    # Two loops: under `vmap` one would draw a board, cell by cell, in every pass, though nearly all passes shuffle.
    if most_shuffles:
        start = (board, is_wanted, jnp.int32(0), source)
        board, is_wanted, _, source = loop_while(lambda carry: carry[1] & (carry[2] < most_shuffles), shuffle, start)
    return loop_while(lambda carry: carry[1], draw, (board, is_wanted, source))[0]


def fill_without_runs(
    bits: UInt32[Array, "n"], num_kinds: Int32[Array, ""], shape: tuple[int, int]
) -> Int32[Array, "{shape[0]} {shape[1]}"]:
    """Random numbers below `num_kinds` ≥ 3 without three equal ones in a row or column.

    Cell by cell in reading order, each uniform over the numbers allowed by the two cells before and the two above.
    """
    rows, cols = shape

    def put(i: Int[Array, ""], flat: Int32[Array, "n"]) -> Int32[Array, "n"]:
        def banned(step: int, has_two: Bool[Array, ""]) -> Int32[Array, ""]:
            near, far = flat[jnp.maximum(i - step, 0)], flat[jnp.maximum(i - 2 * step, 0)]
            return jnp.where(has_two & (near == far), near, num_kinds)  # num_kinds: none is banned

        first, second = banned(1, i % cols >= 2), banned(cols, i // cols >= 2)
        second = jnp.where(first == second, num_kinds, second)
        low, high = jnp.minimum(first, second), jnp.maximum(first, second)
        num_banned = (first < num_kinds).astype(jnp.int32) + (second < num_kinds).astype(jnp.int32)
        number, _ = prng.dice(bits[i], num_kinds - num_banned)
        number += (number >= low).astype(jnp.int32)
        number += (number >= high).astype(jnp.int32)
        return flat.at[i].set(number)

    return jax.lax.fori_loop(np.int32(0), np.int32(rows * cols), put, jnp.zeros(rows * cols, jnp.int32)).reshape(
        rows, cols
    )


# The expert

_PASSES = 3


def best_swap(board: Int8[Array, "R C"]) -> Int32[Array, ""]:
    """The action of the swap that scores most, including runs made by falling tiles.

    Ties go to the lowest on the board, which moves more tiles. The invalid action if no swap is legal.
    """
    num_cells, cols = board.size, board.shape[1]
    index = np.arange(num_cells, dtype=np.int32)
    first = np.concatenate([index[index % cols < cols - 1], index[: num_cells - cols]])
    second = np.concatenate([index[index % cols < cols - 1] + 1, index[: num_cells - cols] + cols])

    def value(a: Int32[Array, ""], b: Int32[Array, ""]) -> Float32[Array, ""]:
        after, score = exchange(board, a, b), jnp.float32(0)
        is_legal = makes_run(after, a, b)
        for _ in range(_PASSES):
            is_run = runs(fence(after))
            count = jnp.sum(is_run.astype(jnp.float32))
            score += count * (count - 1)
            after = fall(after, is_run)
        return jnp.where(is_legal, score + b.astype(jnp.float32) / num_cells, -1.0)

    values = jax.vmap(value)(jnp.asarray(first), jnp.asarray(second))
    best = jnp.argmax(values)
    action = jnp.asarray(first)[best] * num_cells + jnp.asarray(second)[best]
    return jnp.where(values[best] < 0, num_cells * num_cells, action)
