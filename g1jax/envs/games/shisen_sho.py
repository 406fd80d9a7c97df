"""Shisen-Sho: remove pairs of equal tiles joined by a path with at most two turns."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float32, Int, Int8, Int32, UInt32

from g1jax.envs import core, prng, shapes, sprites
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
    tile_types: Int32[Array, "*B"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """A board of tile kinds: 0 empty, 1 + color · shapes + shape."""

    board: Int8[Array, "*B R C"]
    terminated: Bool[Array, "*B"]
    seed: UInt32[Array, "*B"]
    level: TracedLevel


@dataclass(frozen=True, kw_only=True)
class Level(level_keys.Level):
    """The paper's board: 6×6, tiles of 9 types out of 6 colors × 6 shapes, 4 of each."""

    traced_type = TracedLevel
    rows: int = 6
    cols: int = 6
    colors: int = traced(6, "at_most")
    """The number of colors, the first ones of `appearance.COLORS`."""
    shapes: int = traced(6, "at_most")
    """The number of shapes, the first ones of `appearance.SHAPES`."""
    tile_types: int = traced(0)
    """Types on a board, drawn for each board. 0: one per four cells, or all if there are fewer."""

    def check(self) -> None:
        """Rejects levels that cannot be played."""
        super().check()
        shapes.check_shapes(self.colors, self.shapes)
        check_tiles(self.rows, self.cols, self.tile_types, self.colors * self.shapes, "colors × shapes")


def check_tiles(rows: int, cols: int, tile_types: int, num_kinds: int, kinds: str) -> None:
    """Rejects boards that cannot be filled with pairs."""
    LevelError.require(
        rows * cols % 2 == 0, f"rows={rows}, cols={cols}: {rows * cols} tiles, an odd number, cannot be pairs"
    )
    LevelError.require(0 <= tile_types <= num_kinds, f"tile_types={tile_types}: there are {num_kinds} types ({kinds})")
    LevelError.require(
        tile_types * 2 <= rows * cols, f"tile_types={tile_types}: {rows * cols} cells are too few for a pair of each"
    )


class ShisenSho(core.Game[State]):
    """Shisen-Sho on R×C cells.

    Observation: colored shapes; text: `Red circle` and so on, `-` for an empty cell.
    Actions: two cells (r1, c1) (r2, c2), from 0 at the top left.
    Legal: two tiles of one type joined by a path with at most two turns, through empty cells and the ring around the
    board.
    Reward: +1 for a match, else -1.
    Ends: the board is cleared, or no two tiles match.

    >>> from g1jax import envs
    >>> game = envs.make("shisen_sho", rows=1, cols=4)
    >>> state = game.from_text("Red circle | Blue star | Blue star | Red circle")
    >>> state, result = game.step(state, game.parse("<answer>(0, 0) (0, 3)</answer>"), jax.random.key(0))
    >>> float(result.reward), bool(result.terminated)
    (1.0, False)
    """

    id = "shisen_sho"
    Level = Level
    default_prompt = (
        "This is a game of Shisen-Sho on {rows} rows and {cols} columns of tiles{rules}. Choose two tiles of the same "
        "kind ({kinds}) that a path can join. The path runs through empty cells, straight along rows and columns, with "
        "at most two turns, and may run outside around the board. A joined pair is removed{/rules}{goal}; the goal is "
        "to clear the board{/goal}.\n{format}\nThe move is the two cells as (row, column), counted from 0 at the top "
        "left, for example <answer>(0, 1) (2, 3)</answer>."
    )

    def shape_actions(self) -> tuple[int, ...]:
        """Two cells."""
        return (self.rows, self.cols, self.rows, self.cols)

    def cell_names(self) -> Sequence[str]:
        """`-`, `Red circle`, `Red square`, …"""
        return ["-", *shapes.tile_names(self.level.colors, self.level.shapes)]

    def prompt_fields(self) -> dict[str, str]:
        """Adds `{kinds}`, when two tiles are the same."""
        return {**super().prompt_fields(), "kinds": "the same color and the same shape"}

    def draw_tiles(self, palette: str, background: str) -> HostImages:
        """The empty cell and every colored shape."""
        size = self.level.appearance.cell_size
        shown = shapes.draw_tiles(self.level.colors, self.level.shapes, size, palette, background)
        return np.stack([sprites.empty_cell(size, background), *shown])

    def begin(self, key: Key, seed: UInt32[Array, ""], level: TracedLevel) -> State:
        """A board on which at least one pair matches."""
        kind = jnp.arange(self.level.colors * self.level.shapes, dtype=jnp.int32)
        is_available = (kind // self.level.shapes < level.colors) & (kind % self.level.shapes < level.shapes)
        board = deal(key, is_available, level.tile_types, self.rows, self.cols)
        return State(board, ~has_match(board), seed, level)

    def move(
        self, state: State, action: Int32[Array, ""], key: Key
    ) -> tuple[State, Float32[Array, ""], Bool[Array, ""]]:
        """Removes the pair if it matches."""
        del key
        board, is_legal = remove_pair(state.board, action)
        after = dataclasses.replace(state, board=board, terminated=~has_match(board))
        return after, jnp.where(is_legal, jnp.float32(1), jnp.float32(-1)), is_legal

    def cells(self, state: State) -> Int32[Array, "R C"]:
        """The board's kinds."""
        return state.board.astype(jnp.int32)

    def from_cells(self, cells: Int[Array, "R C"], seed: UInt32[Array, ""], level: TracedLevel) -> State:
        """The state of a board of kinds."""
        board = cells.astype(jnp.int8)
        return State(board, ~has_match(board), seed, level)

    def legal_actions(self, state: State) -> Bool[Array, "{self.num_actions}"]:
        """The ordered pairs of cells that match."""
        return matches(state.board).reshape(-1)

    def worth(self, state: State, action: Int32[Array, ""], result: core.StepResult) -> Float32[Array, ""]:
        """1 for a pair, 0 for one that leaves tiles but no other pair."""
        del action
        return worth_of_pair(state.board, result)

    def expert(self, state: State, key: Key) -> Int32[Array, ""]:
        """The last pair of a type, else the pair after which most pairs match; deterministic."""
        del key
        return best_pair(state.board)

    @property
    def fact_names(self) -> tuple[str, ...]:
        """See `facts_of`."""
        return names_of_facts(self.rows, self.cols)

    def facts(self, state: State) -> Bool[Array, "R C F"]:
        """See `facts_of`."""
        return facts_of(state.board)


# Moves


def remove_pair(board: Int8[Array, "R C"], action: Int32[Array, ""]) -> tuple[Int8[Array, "R C"], Bool[Array, ""]]:
    """The board without the pair of an action, if it matches, and whether it does."""
    num_cells = board.size
    a, b = action // num_cells % num_cells, action % num_cells
    is_legal = can_match(board, a, b) & (action < num_cells**2)
    index = jnp.arange(num_cells, dtype=jnp.int32)
    is_taken = (is_legal & ((index == a) | (index == b))).reshape(board.shape)
    return fence(jnp.where(is_taken, jnp.int8(0), board)), is_legal


# Dealing


def deal(
    key: Key, is_available: Bool[Array, "n"], num_types: Int32[Array, ""], rows: int, cols: int
) -> Int8[Array, "{rows} {cols}"]:
    """A shuffled board of pairs with at least one match.

    Draws `num_types` of the available kinds (0: one per four cells, or all if there are fewer), which start with the
    first kind of tile, and distributes the pairs evenly among them.
    """
    num_cells = rows * cols
    num_available = jnp.sum(is_available.astype(jnp.int32), dtype=jnp.int32)
    automatic = jnp.clip(jnp.minimum(num_cells // 4, num_available), 1)
    num_types = jnp.where(num_types == 0, automatic, num_types)

    def shuffle(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        is_available, num_types, seed, attempt, _ = carry
        num_kinds = is_available.shape[0]
        bits = prng.bits(seed, attempt, num_kinds + num_cells)
        rank = prng.shuffled(jnp.where(is_available, bits[:num_kinds] >> 1, np.uint32(0xFFFFFFFF)))
        kinds = jnp.zeros(num_kinds, jnp.int8).at[rank].set(np.arange(1, num_kinds + 1, dtype=np.int8))
        pair = prng.shuffled(bits[num_kinds:]) // 2
        board = kinds[pair % num_types].reshape(rows, cols)
        return is_available, num_types, seed, attempt + 1, board

    def is_unplayable(carry: tuple[Any, ...]) -> Bool[Array, ""]:
        # Rare: most boards have a dozen matches. A level without any possible match ends as a finished game.
        *_, attempt, board = carry
        return ~has_match(board) & (attempt < 100)

    none = jnp.zeros((rows, cols), jnp.int8)
    return loop_while(is_unplayable, shuffle, (is_available, num_types, prng.seed_of(key), jnp.uint32(0), none))[-1]


# Rules: which pairs match
#
# A path with at most two turns runs across, down, across, or down, across, down; each part may be empty. So two tiles
# match if both reach some column along their rows, with nothing between the two rows in that column; or the same with
# rows and columns exchanged. Sets of columns are bit masks: bit 1 + c for column c, bits 0 and C + 1 for the ring.


def matches(board: Int8[Array, "R C"]) -> Bool[Array, "R*C R*C"]:
    """Which pairs of cells match."""
    across, down, blocked_rows, blocked_cols = fence(lines_of_sight(board))
    flat = board.reshape(-1)
    by_column = across[:, :, None, None] & across[None, None] & ~blocked_rows[:, None, :, None]
    by_row = down[:, :, None, None] & down[None, None] & ~blocked_cols[None, :, None, :]
    is_joined = (by_column | by_row) != 0
    is_same = (flat[:, None] == flat[None, :]) & (flat != 0)[:, None] & ~np.eye(flat.shape[0], dtype=bool)
    return is_same & is_joined.reshape(is_same.shape)


def has_match(board: Int8[Array, "R C"]) -> Bool[Array, ""]:
    """Whether any pair matches."""
    return jnp.any(matches(board))


def can_match(board: Int8[Array, "R C"], a: Int32[Array, ""], b: Int32[Array, ""]) -> Bool[Array, ""]:
    """Whether the tiles of two cells, by their index in reading order, match."""
    cols = board.shape[1]
    across, down, blocked_rows, blocked_cols = fence(lines_of_sight(board))
    flat, across, down = board.reshape(-1), across.reshape(-1), down.reshape(-1)
    by_column = across[a] & across[b] & ~blocked_rows[a // cols, b // cols]
    by_row = down[a] & down[b] & ~blocked_cols[a % cols, b % cols]
    return (a != b) & (flat[a] == flat[b]) & (flat[a] != 0) & ((by_column | by_row) != 0)


def lines_of_sight(
    board: Int8[Array, "R C"],
) -> tuple[UInt32[Array, "R C"], UInt32[Array, "R C"], UInt32[Array, "R R"], UInt32[Array, "C C"]]:
    """The masks that determine matches.

    Returns:
        across: the columns a cell reaches along its row, including its own.
        down: the rows a cell reaches along its column, including its own.
        blocked_rows: the columns with a tile between two rows.
        blocked_cols: the rows with a tile between two columns.
    """
    row_masks, col_masks = occupied(board), occupied(board.T)
    across = reach(row_masks, board.shape[1])
    down = reach(col_masks, board.shape[0]).T
    return across, down, between(row_masks), between(col_masks)


def occupied(board: Int8[Array, "R C"]) -> UInt32[Array, "R"]:
    """The mask of each row's tiles: `[- A A -] -> 0b001100`."""
    bits = np.uint32(2) << np.arange(board.shape[1], dtype=np.uint32)
    return jnp.sum(jnp.where(board != 0, bits[None, :], np.uint32(0)), axis=1, dtype=jnp.uint32)


def reach(masks: UInt32[Array, "n"], num_cells: int) -> UInt32[Array, "n {num_cells}"]:
    """The cells that each cell of a line reaches: itself and the empty cells on both sides, including the ring.

    In `[- A - -]` cell 1 reaches the whole line.
    """
    own = (np.uint32(2) << np.arange(num_cells, dtype=np.uint32))[None, :]
    ring_to_ring = np.uint32((1 << (num_cells + 2)) - 1)
    after = masks[:, None] & ~((own << 1) - 1)
    up_to_next = (after & (~after + 1)) - 1  # all bits below the lowest tile after; all bits if none
    before = masks[:, None] & (own - 1)
    for shift in (1, 2, 4, 8, 16):
        before |= before >> shift  # all bits up to the highest tile before
    return up_to_next & ~before & ring_to_ring


def between(masks: UInt32[Array, "n"]) -> UInt32[Array, "n n"]:
    """The tiles between every two lines."""
    n = masks.shape[0]
    i, j, k = np.ogrid[:n, :n, :n]
    is_between = (np.minimum(i, j) < k) & (k < np.maximum(i, j))
    return lax.reduce(jnp.where(is_between, masks[None, None, :], np.uint32(0)), np.uint32(0), lax.bitwise_or, (2,))


def ends(board: Int8[Array, "R C"]) -> list[tuple[Bool[Array, "R C"], Bool[Array, "R C"]]]:
    """Left and right of each tile, whether the next tile is equal, and whether there is none.

    False for empty cells. `[2 0 2 0]`: equal to the right and to the left.
    """

    def towards_end(lines: Int8[Array, "R C"]) -> tuple[Bool[Array, "R C"], Bool[Array, "R C"]]:
        cols = lines.shape[1]
        index = np.arange(cols, dtype=np.int32)
        is_after = (index[None, :] > index[:, None])[None] & (lines != 0)[:, None, :]  # [R, from, to]
        nearest = jnp.min(jnp.where(is_after, index[None, None, :], cols), axis=2)
        tile = jnp.take_along_axis(jnp.pad(lines, ((0, 0), (0, 1))), nearest, axis=1)
        is_tile = lines != 0
        return is_tile & (tile == lines), is_tile & (nearest == cols)

    left = [fact[:, ::-1] for fact in towards_end(board[:, ::-1])]
    return [(left[0], left[1]), towards_end(board)]


# Facts


def names_of_facts(rows: int, cols: int) -> tuple[str, ...]:
    """The names of `facts_of`, in order."""
    sides = ("left", "right", "up", "down")
    ahead = (f"partner in {line} {i}" for line, count in (("row", rows), ("column", cols)) for i in range(count))
    return (*(f"like {side}" for side in sides), *(f"border {side}" for side in sides), "partner", "named", *ahead)


def facts_of(board: Int8[Array, "R C"]) -> Bool[Array, "R C F"]:
    """What can be seen of each cell.

    In each direction, whether the next tile across empty cells is equal, and whether there is none; whether the tile
    has a partner; whether it is its row's first with a partner after it; row and column of the first such partner.
    """
    num_rows, num_cols = board.shape
    is_like, is_open = zip(*(facts for lines in (board, board.T) for facts in ends(lines)), strict=True)
    oriented = [[fact if i < 2 else fact.T for i, fact in enumerate(facts)] for facts in (is_like, is_open)]
    is_match = matches(board)
    is_ahead = is_match & ~np.tri(board.size, dtype=bool)
    partner = jnp.where(jnp.any(is_ahead, axis=1), jnp.argmax(is_ahead, axis=1), -1).reshape(board.shape)
    has_ahead = partner >= 0
    is_named = has_ahead & (jnp.cumsum(has_ahead.astype(jnp.int32), axis=1, dtype=jnp.int32) == 1)
    rows = [partner // num_cols == row for row in range(num_rows)]
    cols = [has_ahead & (partner % num_cols == col) for col in range(num_cols)]
    has_partner = jnp.any(is_match, axis=1).reshape(board.shape)
    return jnp.stack([*oriented[0], *oriented[1], has_partner, is_named, *rows, *cols], axis=-1)


def worth_of_pair(board: Int8[Array, "R C"], result: core.StepResult) -> Float32[Array, ""]:
    """The worth of an action on a board from its result. See `Game.worth`."""
    is_stuck = result.terminated & (jnp.sum((board > 0).astype(jnp.int32), dtype=jnp.int32) > 2)
    return jnp.where(result.is_legal, jnp.where(is_stuck, 0.0, 1.0), -1.0)


# The expert

_MOST_PAIRS = 64


def best_pair(board: Int8[Array, "R C"]) -> Int32[Array, ""]:
    """The action of a pair that is safe to take, else of the pair after which most pairs match.

    The last pair of a type is always safe: its tiles match no others, and a gap never blocks a path. Otherwise the
    first 64 pairs in reading order are tried. The invalid action if none matches.
    """
    num_cells = board.size
    is_match = matches(board) & ~np.tri(num_cells, dtype=bool)
    pairs = jnp.nonzero(is_match.reshape(-1), size=min(_MOST_PAIRS, num_cells**2), fill_value=-1)[0].astype(jnp.int32)
    flat = board.reshape(-1)
    index = jnp.arange(num_cells, dtype=jnp.int32)

    def value(pair: Int32[Array, ""]) -> Int32[Array, ""]:
        a, b = pair // num_cells, pair % num_cells
        after = jnp.where((index == a) | (index == b), jnp.int8(0), flat).reshape(board.shape)
        num_left = jnp.sum(matches(fence(after)).astype(jnp.int32), dtype=jnp.int32)
        is_last_pair = jnp.sum((flat == flat[a]).astype(jnp.int32), dtype=jnp.int32) == 2
        return jnp.where(pair < 0, -1, num_left + jnp.where(is_last_pair, num_cells**2, 0))

    values = jax.vmap(value)(pairs)
    best = pairs[jnp.argmax(values)]
    return jnp.where(best < 0, num_cells**2, best)
