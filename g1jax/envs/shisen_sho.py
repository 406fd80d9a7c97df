"""Shisen-Sho: remove pairs of equal tiles that a path of at most two turns joins."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from g1jax.envs import core, looks, random, sprites, text
from g1jax.envs import level as level_keys
from g1jax.envs.batching import fence, loop_while
from g1jax.envs.level import require, traced
from g1jax.envs.lines import all_pairs_walk, first_twins, outer_places
from g1jax.typing import Array, HostImages, Key


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """A board of tile kinds: 0 empty, 1 + color · shapes + shape."""

    board: Array  # int8[R, C]
    terminated: Array  # bool[]
    seed: Array  # uint32[]
    level: core.TracedLevel


@dataclass(frozen=True, kw_only=True)
class Level(level_keys.Level):
    """The paper's board: 6×6, tiles of 9 types out of 6 colors × 6 shapes, 4 of each."""

    rows: int = 6
    cols: int = 6
    colors: int = traced(6, "at_most")
    """The first so many of `looks.COLORS`."""
    shapes: int = traced(6, "at_most")
    """The first so many of `looks.SHAPES`."""
    tile_types: int = traced(0)
    """Types on one board, drawn anew for each. 0: one for every four cells, as far as there are."""

    def check(self) -> None:
        """Refuses what cannot be played."""
        super().check()
        require(1 <= self.colors <= len(looks.COLORS), f"colors={self.colors}: 1 to {len(looks.COLORS)}")
        require(1 <= self.shapes <= len(looks.SHAPES), f"shapes={self.shapes}: 1 to {len(looks.SHAPES)}")
        check_tiles(self.rows, self.cols, self.tile_types, self.colors * self.shapes, "colors × shapes")


def check_tiles(rows: int, cols: int, tile_types: int, num_kinds: int, kinds: str) -> None:
    """Refuses boards that cannot be dealt in pairs."""
    require(rows * cols % 2 == 0, f"rows={rows}, cols={cols}: {rows * cols} tiles, an odd number, are not pairs")
    require(0 <= tile_types <= num_kinds, f"tile_types={tile_types}: there are {num_kinds} types ({kinds})")
    require(tile_types * 2 <= rows * cols, f"tile_types={tile_types}: {rows * cols} cells hold a pair of each of fewer")


class ShisenSho(core.Game[State]):
    """Shisen-Sho on R×C cells.

    Observation: colored shapes; text: `Red circle` and so on, `-` where the tile is gone.
    Actions: two cells (r1, c1) (r2, c2), from 0 at the top left.
    Legal: two tiles of one type and a path between them of at most two turns, through empty cells, that may leave the
    board through the ring around it.
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
    Level: ClassVar[type[level_keys.Level]] = Level
    default_prompt = (
        "This is a game of Shisen-Sho on {rows} rows and {cols} columns of tiles. Choose two tiles of the same kind "
        "({kinds}) that a path can join. The path runs through empty cells, straight along rows and "
        "columns, with at most two turns, and may run outside around the board. A joined pair is removed; the goal is "
        "to clear the board.\n{format}\nThe move is the two cells as (row, column), counted from 0 at the top left, "
        "for example <answer>(0, 1) (2, 3)</answer>."
    )

    def shape_actions(self) -> tuple[int, ...]:
        """Two cells."""
        return (self.rows, self.cols, self.rows, self.cols)

    def cell_names(self) -> Sequence[str]:
        """`-`, `Red circle`, `Red square`, …"""
        return ["-", *tile_names(self.level.colors, self.level.shapes)]

    def prompt_fields(self) -> dict[str, str]:
        """Adds `{kinds}`, what makes two tiles the same."""
        return {**super().prompt_fields(), "kinds": "the same color and the same shape"}

    def draw_tiles(self, palette: str, background: str) -> HostImages:
        """The empty cell and every colored shape."""
        empty = sprites.empty_cell(self.level.cell_size, background)
        return np.stack([empty, *draw_tiles(self.level, palette, background)])

    def begin(self, key: Key, seed: Array, level: core.TracedLevel) -> State:
        """A board on which at least one pair matches."""
        kind = jnp.arange(self.level.colors * self.level.shapes, dtype=jnp.int32)
        is_available = (kind // self.level.shapes < level["colors"]) & (kind % self.level.shapes < level["shapes"])
        board = deal(key, is_available, level["tile_types"], self.rows, self.cols)
        return State(board, ~has_match(board), seed, level)

    def move(self, state: Any, action: Array, key: Key) -> tuple[Any, Array, Array]:
        """Removes the pair if it matches."""
        del key
        num_cells = self.rows * self.cols
        a, b = action // num_cells % num_cells, action % num_cells
        is_legal = can_match(state.board, a, b) & (action != self.invalid_action)
        place = jnp.arange(num_cells, dtype=jnp.int32)
        is_taken = (is_legal & ((place == a) | (place == b))).reshape(self.rows, self.cols)
        board = fence(jnp.where(is_taken, jnp.int8(0), state.board))
        after = dataclasses.replace(state, board=board, terminated=~has_match(board))
        return after, jnp.where(is_legal, jnp.float32(1), jnp.float32(-1)), is_legal

    def cells(self, state: State) -> Array:
        """The board's kinds."""
        return state.board.astype(jnp.int32)

    def from_cells(self, cells: Array, seed: Array, level: core.TracedLevel) -> State:
        """The state of a board of kinds."""
        board = cells.astype(jnp.int8)
        return State(board, ~has_match(board), seed, level)

    def legal_actions(self, state: State) -> Array:
        """Every ordered pair of cells that matches."""
        return matches(state.board).reshape(-1)

    def expert(self, state: State, key: Key) -> Array:
        """Takes the last pair of a type, else the pair after which most pairs match; needs no key."""
        del key
        return best_pair(state.board)

    def teach(self, state: State, key: Key) -> tuple[Array, Array]:
        """Two equal tiles that follow each other where the teacher looks.

        The words name what a random side sees at the end of each line, in an order in which any two of its lines follow
        each other, up to the first two equal tiles: a path around the outside joins them. If there are none, they name
        the tiles of every row, or of every column, without the gaps, up to the first two equal ones. Whether two names
        that follow each other are equal is what a small model learns to see. Where that fails too, the pair of the
        fewest steps is taken.

        `Top: | Red star | Blue cross | - | Yellow star again: (0, 4) (2, 3).`
        """
        book, board = self._phrasebook, state.board
        side_key, line_key = jax.random.split(key)
        side = jax.random.randint(side_key, (), 0, len(_SIDES), jnp.int32)
        seen, is_seen, outer, inner = self._look_from(board, side)
        is_across, along, is_along, first, second = self._look_along(board, line_key)
        nearest = nearest_pair(board)
        pair = jnp.where(is_along, first * board.size + second, nearest)
        pair = jnp.where(is_seen, outer * board.size + inner, pair)
        words = book.write(
            [
                book.phrase_of(side, _SIDES),
                *seen,
                jnp.where(is_seen, book.nothing, book.phrase_if(is_across, _ROWS, _COLUMNS)),
                *jnp.where(is_seen, book.nothing, along),
                book.phrase_if(is_seen | is_along, _AGAIN, _JOINED),
                book.place(pair // board.size),
                book.place(pair % board.size),
                ".",
            ]
        )
        is_over = nearest < 0
        return jnp.where(is_over, self.invalid_action, pair), jnp.where(is_over, jnp.uint8(0), words)

    def _look_from(self, board: Array, side: Array) -> tuple[Array, Array, Array, Array]:
        """From a side: names up to the first pair, int32[n], whether there is one, and its places, the later first."""
        order = jnp.asarray(self._looks)[side]
        places = jnp.where(order < 0, -1, outer_places(board)[side, order])
        kinds = jnp.where(places < 0, 0, board.reshape(-1)[places]).astype(jnp.int32)
        is_again = (kinds[1:] == kinds[:-1]) & (kinds[1:] != 0)
        is_found = jnp.any(is_again)
        end = jnp.where(is_found, jnp.argmax(is_again).astype(jnp.int32) + 1, len(kinds))
        is_said = (np.arange(len(kinds), dtype=np.int32) < end) & (order >= 0)
        names = jnp.where(is_said, self._phrasebook.name(kinds), self._phrasebook.nothing)
        return names, is_found, places[end], places[end - 1]

    def _look_along(self, board: Array, key: Key) -> tuple[Array, Array, Array, Array, Array]:
        """Along rows or columns: which, the names up to the first pair, whether there is one, and its places.

        Random ones of those that have a pair; a line of tiles is a line of text.
        """
        places = np.arange(board.size, dtype=np.int32).reshape(board.shape)
        rows, columns = self._names_along(board, places), self._names_along(board.T, places.T)
        is_across = jax.random.bernoulli(key)
        is_across = jnp.where(rows[1] == columns[1], is_across, rows[1])
        names, is_found, first, second = (jnp.where(is_across, a, b) for a, b in zip(rows, columns, strict=True))
        return is_across, names, is_found, first, second

    def _names_along(self, lines: Array, places: np.ndarray) -> tuple[Array, Array, Array, Array]:
        """Along each line: the names up to the first pair, whether there is one, and its places on the board."""
        book = self._phrasebook
        is_found, first, second = first_twins(lines)
        kinds, is_tile = lines.astype(jnp.int32), lines != 0
        is_first = jnp.cumsum(is_tile.astype(jnp.int32), axis=1, dtype=jnp.int32) == 1
        names = book.name(jnp.where(is_first, kinds + np.int32(len(self.cell_names())), kinds)).reshape(-1)
        is_said = is_tile.reshape(-1) & (~is_found | (np.arange(lines.size, dtype=np.int32) < second))
        names = jnp.where(is_said, names, book.nothing)
        place = jnp.asarray(places.reshape(-1))
        return names, is_found, place[first], place[second]

    @functools.cached_property
    def _looks(self) -> np.ndarray:
        """The order in which the lines of each side are looked at: int32[4, n], -1 behind the last."""
        return np.stack([all_pairs_walk(n, max(self.rows, self.cols)) for n in (self.cols, self.rows) * 2])

    @functools.cached_property
    def _phrasebook(self) -> text.Phrasebook:
        names = [f"{before}{name}" for before in (" | ", "\n") for name in self.cell_names()]
        phrases = (*_SIDES, _ROWS, _COLUMNS, _AGAIN, _JOINED, ".")
        return text.Phrasebook(names, self.rows, self.cols, phrases)


# Dealing


def deal(key: Key, is_available: Array, num_types: Array, rows: int, cols: int) -> Array:
    """A shuffled board of pairs with at least one match: int8[R, C].

    Draws `num_types` (0: one for every four cells, as far as there are) of the available kinds, bool[K - 1], and deals
    the pairs evenly among them.
    """
    num_cells = rows * cols
    num_available = jnp.sum(is_available.astype(jnp.int32), dtype=jnp.int32)
    automatic = jnp.clip(jnp.minimum(num_cells // 4, num_available), 1)
    num_types = jnp.where(num_types == 0, automatic, num_types)

    def shuffle(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        is_available, num_types, seed, attempt, _ = carry
        num_kinds = is_available.shape[0]
        bits = random.words(seed, attempt, num_kinds + num_cells)
        rank = random.shuffled(jnp.where(is_available, bits[:num_kinds] >> 1, np.uint32(0xFFFFFFFF)))
        kinds = jnp.zeros(num_kinds, jnp.int8).at[rank].set(np.arange(1, num_kinds + 1, dtype=np.int8))
        pair = random.shuffled(bits[num_kinds:]) // 2
        board = kinds[pair % num_types].reshape(rows, cols)
        return is_available, num_types, seed, attempt + 1, board

    def is_unplayable(carry: tuple[Any, ...]) -> Array:
        # Next to never: most boards have a dozen matches. Levels on which none matches end at once.
        *_, attempt, board = carry
        return ~has_match(board) & (attempt < 100)

    none = jnp.zeros((rows, cols), jnp.int8)
    return loop_while(is_unplayable, shuffle, (is_available, num_types, random.seed_of(key), jnp.uint32(0), none))[-1]


# Rules: which pairs match
#
# A path of at most two turns runs across, down, across, or down, across, down, parts of it empty. So two tiles match if
# some column can be reached by both across their rows, with nothing between the two rows in that column; or the same
# with rows and columns exchanged. Sets of columns are words, bit 1 + c for column c, bits 0 and C + 1 for the ring.


def matches(board: Array) -> Array:
    """Which pairs of cells match: int8[R, C] -> bool[R·C, R·C]."""
    across, down, blocked_rows, blocked_cols = fence(lines_of_sight(board))
    flat = board.reshape(-1)
    by_column = across[:, :, None, None] & across[None, None] & ~blocked_rows[:, None, :, None]
    by_row = down[:, :, None, None] & down[None, None] & ~blocked_cols[None, :, None, :]
    is_joined = (by_column | by_row) != 0
    is_same = (flat[:, None] == flat[None, :]) & (flat != 0)[:, None] & ~np.eye(flat.shape[0], dtype=bool)
    return is_same & is_joined.reshape(is_same.shape)


def has_match(board: Array) -> Array:
    """Whether any pair matches: int8[R, C] -> bool[]."""
    return jnp.any(matches(board))


def can_match(board: Array, a: Array, b: Array) -> Array:
    """Whether the tiles of two cells, by their place in reading order, match: bool[]."""
    cols = board.shape[1]
    across, down, blocked_rows, blocked_cols = fence(lines_of_sight(board))
    flat, across, down = board.reshape(-1), across.reshape(-1), down.reshape(-1)
    by_column = across[a] & across[b] & ~blocked_rows[a // cols, b // cols]
    by_row = down[a] & down[b] & ~blocked_cols[a % cols, b % cols]
    return (a != b) & (flat[a] == flat[b]) & (flat[a] != 0) & ((by_column | by_row) != 0)


def lines_of_sight(board: Array) -> tuple[Array, Array, Array, Array]:
    """The words that decide matches.

    Returns:
        across: uint32[R, C], the columns a cell reaches along its row, its own included.
        down: uint32[R, C], the rows a cell reaches along its column, its own included.
        blocked_rows: uint32[R, R], the columns in which a tile stands between two rows.
        blocked_cols: uint32[C, C], the rows in which a tile stands between two columns.
    """
    row_words, col_words = occupied(board), occupied(board.T)
    across = reach(row_words, board.shape[1])
    down = reach(col_words, board.shape[0]).T
    return across, down, between(row_words), between(col_words)


def occupied(board: Array) -> Array:
    """Where the tiles of each row stand: int8[R, C] -> uint32[R]; `[- A A -] -> 0b001100`."""
    bits = np.uint32(2) << np.arange(board.shape[1], dtype=np.uint32)
    return jnp.sum(jnp.where(board != 0, bits[None, :], np.uint32(0)), axis=1, dtype=jnp.uint32)


def reach(words: Array, num_cells: int) -> Array:
    """What each cell of each line sees: itself and the empty cells on both sides, up to the next tile or the ring.

    uint32[n] -> uint32[n, num_cells]; in `[- A - -]` cell 1 sees the whole line.
    """
    own = (np.uint32(2) << np.arange(num_cells, dtype=np.uint32))[None, :]
    ring_to_ring = np.uint32((1 << (num_cells + 2)) - 1)
    after = words[:, None] & ~((own << 1) - 1)
    up_to_next = (after & (~after + 1)) - 1  # all bits below the lowest tile after; all there are if none
    before = words[:, None] & (own - 1)
    for shift in (1, 2, 4, 8, 16):
        before |= before >> shift  # all bits up to the highest tile before
    return up_to_next & ~before & ring_to_ring


def between(words: Array) -> Array:
    """All that stands between every two lines: uint32[n] -> uint32[n, n]."""
    n = words.shape[0]
    i, j, k = np.ogrid[:n, :n, :n]
    is_between = (np.minimum(i, j) < k) & (k < np.maximum(i, j))
    return lax.reduce(jnp.where(is_between, words[None, None, :], np.uint32(0)), np.uint32(0), lax.bitwise_or, (2,))


# The expert

_MOST_PAIRS = 64


def best_pair(board: Array) -> Array:
    """The action of a pair that is safe to take, else that keeps most pairs matching: int32[].

    The last pair of a type is always safe: its tiles match no others, and a gap never hurts. Of the other pairs, up to
    64 in reading order are tried. The invalid action if none matches.
    """
    num_cells = board.size
    is_match = matches(board) & ~np.tri(num_cells, dtype=bool)
    pairs = jnp.nonzero(is_match.reshape(-1), size=min(_MOST_PAIRS, num_cells**2), fill_value=-1)[0].astype(jnp.int32)
    flat = board.reshape(-1)
    place = jnp.arange(num_cells, dtype=jnp.int32)

    def value(pair: Array) -> Array:
        a, b = pair // num_cells, pair % num_cells
        after = jnp.where((place == a) | (place == b), jnp.int8(0), flat).reshape(board.shape)
        num_left = jnp.sum(matches(fence(after)).astype(jnp.int32), dtype=jnp.int32)
        is_last_pair = jnp.sum((flat == flat[a]).astype(jnp.int32), dtype=jnp.int32) == 2
        return jnp.where(pair < 0, -1, num_left + jnp.where(is_last_pair, num_cells**2, 0))

    values = jax.vmap(value)(pairs)
    best = pairs[jnp.argmax(values)]
    return jnp.where(best < 0, num_cells**2, best)


# The teacher

_SIDES = ("Top:", "Right:", "Bottom:", "Left:")
_ROWS, _COLUMNS = " Rows:", " Columns:"
_AGAIN, _JOINED = " again:", " A path joins"


def nearest_pair(board: Array) -> Array:
    """The pair that matches with the fewest steps between its cells, the first of those in reading order: int32[].

    As an action; -1 if none matches.
    """
    num_cells = board.size
    place = np.arange(num_cells)
    row, col = place // board.shape[1], place % board.shape[1]
    steps = abs(row[:, None] - row) + abs(col[:, None] - col)
    order = steps * num_cells**2 + place[:, None] * num_cells + place[None, :]  # unique, and says which pair it is
    never = np.int32(np.iinfo(np.int32).max)
    is_match = matches(board) & ~np.tri(num_cells, dtype=bool)
    first = jnp.min(jnp.where(is_match, order.astype(np.int32), never))
    return jnp.where(first == never, -1, first % num_cells**2)


# Sprites and names


def tile_names(colors: int, shapes: int) -> list[str]:
    """The names of all colored shapes, a color's shapes together."""
    return [f"{color} {shape}" for color in list(looks.COLORS)[:colors] for shape in looks.SHAPES[:shapes]]


def draw_tiles(level: Any, palette: str, background: str) -> list[HostImages]:
    """The sprites of all colored shapes, in the order of `tile_names`: each uint8[Z, Z, 3]."""
    return [
        sprites.shape_tile(level.cell_size, background, shape, looks.shade(color, palette))
        for color in list(looks.COLORS.values())[: level.colors]
        for shape in looks.SHAPES[: level.shapes]
    ]
