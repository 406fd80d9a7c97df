"""2048: slide the tiles, merge equal ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int, Int8, Int32, UInt32

from g1jax.envs import appearance, core, prng, sprites
from g1jax.envs import level as level_keys
from g1jax.envs import sliding_table as packed
from g1jax.envs.level import traced
from g1jax.envs.sliding import equal_neighbors, landing_places, slide_lines, twins
from g1jax.errors import LevelError
from g1jax.typing import Array, HostImages, Key

UP, RIGHT, DOWN, LEFT = range(4)
DIRECTIONS = ("up", "right", "down", "left")

_MERGES = range(2, 10)  # 4 to 512, the exponents of merged tiles in the facts


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TracedLevel(level_keys.TracedLevel):
    """The traced keys of the rules."""

    start_tiles: Int32[Array, "*B"]
    spawn_four: Float32[Array, "*B"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """A board of exponents: 0 empty, 1 the tile 2, 2 the tile 4, …"""

    board: Int8[Array, "*B R C"]
    terminated: Bool[Array, "*B"]
    seed: UInt32[Array, "*B"]
    level: TracedLevel


@dataclass(frozen=True, kw_only=True)
class Level(level_keys.Level):
    """The paper's board: 4×4, two start tiles, a new tile is a 4 with probability 0.1, else a 2."""

    traced_type = TracedLevel
    rows: int = 4
    cols: int = 4
    start_tiles: int = traced(2)
    spawn_four: float = traced(0.1)

    def check(self) -> None:
        """Rejects levels that cannot be played."""
        super().check()
        num_cells = self.rows * self.cols
        LevelError.require(num_cells >= 2, "rows × cols: 2048 needs at least two cells")
        LevelError.require(max(self.rows, self.cols) <= 16, "rows, cols: a 2048 board has at most 16 rows and columns")
        LevelError.require(
            1 <= self.start_tiles <= num_cells,
            f"start_tiles={self.start_tiles}: 1 to {num_cells}, the cells of a {self.rows}×{self.cols} board",
        )
        LevelError.require(0 <= self.spawn_four <= 1, f"spawn_four={self.spawn_four}: a probability, 0 to 1")


class Game2048(core.Game[State]):
    """2048 on R×C cells.

    Observation: the board in the usual tile colors; text: the tile's number, or `-`.
    Actions: 0 up, 1 right, 2 down, 3 left; the invalid action is 4.
    Reward: the sum of the merged tiles' values. A move that changes nothing gives 0 and no new tile, 4 gives -1.
    Ends: when no move changes the board.

    >>> from g1jax import envs
    >>> game = envs.make("game_2048")
    >>> state = game.from_text("2 | 2 | 2 | 2\\n- | - | - | -\\n- | - | - | -\\n- | - | - | -")
    >>> state, result = game.step(state, game.parse("<answer>3</answer>"), jax.random.key(0))
    >>> float(result.reward), state.board[0, :2].tolist()
    (8.0, [2, 2])
    """

    id = "game_2048"
    Level = Level
    default_prompt = (
        "This is a game of 2048 on {rows} rows and {cols} columns.{rules} A move slides every tile as far as it goes "
        "in one direction; two equal tiles that meet become one of twice the value, and its value is added to the "
        "score. Then a new tile appears in an empty cell.{/rules} Choose the move{goal} that leads to the highest "
        "score in the long run{/goal}: 0 for up, 1 for right, 2 for down, 3 for left.\n{format}\nThe move is one "
        "number, for example <answer>3</answer>."
    )

    def shape_actions(self) -> tuple[int, ...]:
        """Four directions."""
        return (4,)

    def cell_names(self) -> Sequence[str]:
        """`-`, 2, 4, … up to the highest tile that fits on the board."""
        return ["-", *(str(2**e) for e in range(1, self.num_exponents))]

    @property
    def num_exponents(self) -> int:
        """One more than the highest exponent: n cells hold at most 2^(n+1). Above 2^31 is out of reach."""
        return min(self.rows * self.cols + 1, 31) + 1

    def draw_tiles(self, palette: str, background: str) -> HostImages:
        """The empty cell and a rounded tile for every number."""
        size = self.level.appearance.cell_size
        return np.stack([draw_tile(e, size, palette, background) for e in range(self.num_exponents)])

    def begin(self, key: Key, seed: UInt32[Array, ""], level: TracedLevel) -> State:
        """An empty board with its start tiles."""
        board = jnp.zeros((self.rows, self.cols), jnp.int8)

        def place(i: Int[Array, ""], board: Int8[Array, "R C"]) -> Int8[Array, "R C"]:
            return spawn_tile(board, jax.random.fold_in(key, i), level.spawn_four)

        board = jax.lax.fori_loop(np.int32(0), level.start_tiles, place, board)
        return State(board, ~jnp.any(legal_moves(board)), seed, level)

    def move(
        self, state: State, action: Int32[Array, ""], key: Key
    ) -> tuple[State, Float32[Array, ""], Bool[Array, ""]]:
        """Slides, then spawns a tile if anything moved."""
        is_invalid = action == self.invalid_action
        board, merged, is_legal, is_over = slide_and_spawn(state.board, action, key, state.level.spawn_four)
        board, is_over = jnp.where(is_invalid, state.board, board), jnp.where(is_invalid, state.terminated, is_over)
        reward = jnp.where(is_invalid, jnp.float32(-1), merged)
        return State(board, is_over, state.seed, state.level), reward, is_legal & ~is_invalid

    def cells(self, state: State) -> Int32[Array, "R C"]:
        """Exponents are the kinds."""
        return state.board.astype(jnp.int32)

    def from_cells(self, cells: Int[Array, "R C"], seed: UInt32[Array, ""], level: TracedLevel) -> State:
        """The state of a board of exponents. (On a board set by hand, a merge may exceed the highest name.)"""
        board = cells.astype(jnp.int8)
        return State(board, ~jnp.any(legal_moves(board)), seed, level)

    def legal_actions(self, state: State) -> Bool[Array, "4"]:
        """The directions in which something moves."""
        return legal_moves(state.board)

    def expert(self, state: State, key: Key) -> Int32[Array, ""]:
        """Two-step lookahead over every tile that may appear between the moves; deterministic."""
        del key
        return best_move(state.board, state.level.spawn_four)

    def worth(self, state: State, action: Int32[Array, ""], result: core.StepResult) -> Float32[Array, ""]:
        """The expert's value of a move, scaled from −1 for the worst legal one to 1 for the best."""
        is_legal = legal_moves(state.board)
        values = move_values(state.board, state.level.spawn_four)
        worst, best = jnp.min(jnp.where(is_legal, values, jnp.inf)), jnp.max(jnp.where(is_legal, values, -jnp.inf))
        is_spread = best > worst
        value = values[jnp.clip(action, 0, 3)]
        share = jnp.where(is_spread, (value - worst) / jnp.where(is_spread, best - worst, 1), 1)
        return jnp.where(result.is_legal, 2 * share - 1, -1.0)

    @property
    def fact_names(self) -> tuple[str, ...]:
        """For each direction, whether the next tile across empty cells is equal, and whether the tile would move.

        Then, for each direction: in which place from the wall the tile lands, whether it merges, and on which sides it
        then has an equal tile next to it across empty cells. The same in every cell: whether the move makes a certain
        tile or a higher one, and whether the next move can.
        """
        cell = [f"{fact} {direction}" for fact in ("like", "moves") for direction in DIRECTIONS]
        lands = [
            f"lands {direction} {place}" for way, direction in enumerate(DIRECTIONS) for place in self._places(way)
        ]
        landed = [
            f"{fact} {direction}"
            for direction in DIRECTIONS
            for fact in ("merges", *(f"beside {side}" for side in DIRECTIONS))
        ]
        board = [f"{fact} {direction} {2**e}" for fact in ("now", "then") for direction in DIRECTIONS for e in _MERGES]
        return (*cell, *lands, *landed, *board)

    def facts(self, state: State) -> Bool[Array, "R C F"]:
        """Which tiles have an equal one next to them; where each lands; what this move and the next can make."""
        board = state.board
        slid = _slide_all(board)[0]
        lands = [landing(board, jnp.int32(way)) for way in range(4)]
        from_wall = _from_wall(self.rows, self.cols)
        cells = [*_equal_around(board)]
        cells += [(place >= 0) & (place != own) for place, own in zip(lands, from_wall, strict=True)]
        cells += [lands[way] == place for way in range(4) for place in self._places(way)]
        for way, place in enumerate(lands):
            after = (slid[way], *_equal_around(slid[way]))
            new, *beside = (_at_place(each, way, jnp.maximum(place, 0)) for each in after)
            cells += [(place >= 0) & fact for fact in (new != board, *beside)]
        merges = jnp.concatenate([largest_merges(board), next_merges(board)])
        of_board = (merges[:, None] >= np.asarray(_MERGES, np.int32)[None]).reshape(-1)
        return jnp.concatenate(
            [jnp.stack(cells, axis=-1), jnp.broadcast_to(of_board, (*board.shape, of_board.size))], -1
        )

    def _places(self, way: int) -> range:
        """The places along a direction, from the wall."""
        return range(self.rows if way in (UP, DOWN) else self.cols)


# Rules


def legal_moves(board: Int8[Array, "R C"]) -> Bool[Array, "4"]:
    """The directions in which something moves.

    A tile moves if the cell before it is empty or has an equal tile: `[0 2 0 0]` can go left and right,
    `[2 4 0 0]` only right, `[4 4 2 8]` both ways.
    """

    def pushes(near: Int8[Array, "n m"], far: Int8[Array, "n m"]) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
        is_equal = (near == far) & (near != 0)
        return jnp.any(is_equal | ((near == 0) & (far != 0))), jnp.any(is_equal | ((far == 0) & (near != 0)))

    left, right = pushes(board[:, :-1], board[:, 1:])
    up, down = pushes(board[:-1], board[1:])
    return jnp.stack([up, right, down, left])


def slide_and_spawn(
    board: Int8[Array, "R C"], action: Int32[Array, ""], key: Key, spawn_four: Float32[Array, ""]
) -> tuple[Int8[Array, "R C"], Float32[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
    """A whole move: the board, the reward, whether the move is legal and whether the game is over."""
    if board.shape == (packed.SIZE, packed.SIZE):
        is_vertical, is_reversed = _direction(action)
        lines, reward, is_legal = packed.slide(board, is_vertical, is_reversed)
        lines, is_over = packed.spawn(lines, is_legal, key, spawn_four)
        return packed.unpack(lines, is_vertical, is_reversed), reward, is_legal, is_over
    slid, reward = slide(board, action)
    is_legal = jnp.any(slid != board)
    board = jnp.where(is_legal, spawn_tile(slid, key, spawn_four), board)
    return board, reward, is_legal, ~jnp.any(legal_moves(board))


def slide(board: Int8[Array, "R C"], action: Int32[Array, ""]) -> tuple[Int8[Array, "R C"], Float32[Array, ""]]:
    """Slides and merges, without a new tile: the board, and the sum of the merged tiles' values."""
    is_vertical, is_reversed = _direction(action)
    if board.shape == (packed.SIZE, packed.SIZE):
        lines, reward, _ = packed.slide(board, is_vertical, is_reversed)
        return packed.unpack(lines, is_vertical, is_reversed), reward
    across, reward_across = slide_lines(board, is_reversed)
    along, reward_along = slide_lines(board.T, is_reversed)
    return jnp.where(is_vertical, along.T, across), jnp.where(is_vertical, reward_along, reward_across)


def _direction(action: Int32[Array, ""]) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
    """Whether a move is along columns, and whether towards the end of its lines."""
    return (action == UP) | (action == DOWN), (action == RIGHT) | (action == DOWN)


def spawn_tile(board: Int8[Array, "R C"], key: Key, spawn_four: Float32[Array, ""]) -> Int8[Array, "R C"]:
    """Adds a 2, or with probability `spawn_four` a 4, in a random empty cell."""
    is_empty = (board == 0).reshape(-1)
    nth, uniform = prng.dice(
        jax.random.bits(key, dtype=jnp.uint32), jnp.sum(is_empty.astype(jnp.int32), dtype=jnp.int32)
    )
    is_chosen = jnp.arange(board.size, dtype=jnp.int32) == prng.nth_marked(is_empty, nth)
    tile = jnp.where(uniform < spawn_four, 2, 1).astype(jnp.int8)
    return jnp.where(is_chosen.reshape(board.shape), tile, board)


# Facts


def _equal_around(board: Int8[Array, "R C"]) -> list[Bool[Array, "R C"]]:
    """Whether the next tile in each direction, across empty cells, is equal."""
    (left, right), (up, down) = equal_neighbors(board), equal_neighbors(board.T)
    return [up.T, right, down.T, left]


def landing(board: Int8[Array, "R C"], action: Int32[Array, ""]) -> Int32[Array, "R C"]:
    """The place, counted from the wall, in which each tile lands; -1 for an empty cell.

    `[2 0 2 4]` to the left: `[0 -1 0 1]`.
    """
    is_vertical, is_reversed = _direction(action)
    return jnp.where(is_vertical, landing_places(board.T, is_reversed).T, landing_places(board, is_reversed))


def _from_wall(rows: int, cols: int) -> list[Int32[np.ndarray, "R C"]]:
    """The place of each cell, counted from the wall of each direction."""
    down, right = np.mgrid[:rows, :cols].astype(np.int32)
    return [down, cols - 1 - right, rows - 1 - down, right]


def _at_place(cells: Array, way: int, place: Int32[Array, "R C"]) -> Array:
    """The value of the cell in the same line at a place from the wall."""
    rows, cols = cells.shape
    down, right = np.mgrid[:rows, :cols].astype(np.int32)
    if way in (UP, DOWN):
        return cells[place if way == UP else rows - 1 - place, right]
    return cells[down, place if way == LEFT else cols - 1 - place]


def largest_merges(board: Int8[Array, "R C"]) -> Int32[Array, "4"]:
    """The largest tile that a move in each direction merges, as its exponent; 0 if nothing merges.

    `[2 2 4 4]` to the left or right: 3, the 8.
    """

    def largest(lines: Int8[Array, "n m"]) -> Int32[Array, ""]:
        return jnp.max(jnp.where(twins(lines), lines[:, :, None].astype(jnp.int32) + 1, 0))

    along, across = largest(board.T), largest(board)
    return jnp.stack([along, across, along, across])


def next_merges(board: Int8[Array, "R C"]) -> Int32[Array, "4"]:
    """The largest tile that any move can merge after one in each direction, before a new tile appears; 0 for none."""
    return jnp.max(jax.vmap(largest_merges)(_slide_all(board)[0]), axis=1)


# The expert

_GAP, _DEAD = 2.0, -50.0
"""The value, in points, of an empty cell after two moves, and of a board without a legal move."""


def best_move(board: Int8[Array, "R C"], spawn_four: Float32[Array, ""]) -> Int32[Array, ""]:
    """The move with the highest expected score after two moves, over every tile that may appear in between.

    The invalid action if none is legal.
    """
    is_legal = legal_moves(board)
    best = jnp.argmax(jnp.where(is_legal, move_values(board, spawn_four), -jnp.inf)).astype(jnp.int32)
    return jnp.where(jnp.any(is_legal), best, 4)


def move_values(board: Int8[Array, "R C"], spawn_four: Float32[Array, ""]) -> Float32[Array, "4"]:
    """The expected score of two moves, the first in each direction, plus the value of the empty cells.

    Meaningless for illegal moves.
    """
    slid, scores = _slide_all(board)
    return scores + jax.vmap(_value_before_spawn, (0, None))(slid, spawn_four)


def _slide_all(board: Int8[Array, "R C"]) -> tuple[Int8[Array, "4 R C"], Float32[Array, "4"]]:
    return jax.vmap(lambda action: slide(board, action))(jnp.arange(4, dtype=jnp.int32))


def _value_before_spawn(board: Int8[Array, "R C"], spawn_four: Float32[Array, ""]) -> Float32[Array, ""]:
    """The expected value of a board before a tile is added."""
    is_empty = (board == 0).reshape(-1)
    one_hot = jnp.eye(board.size, dtype=jnp.int8).reshape(-1, *board.shape)
    twos = jax.vmap(_value_before_move)(board[None] + one_hot)  # nonempty cells are masked out below
    fours = jax.vmap(_value_before_move)(board[None] + 2 * one_hot)
    values = twos * (1 - spawn_four) + fours * spawn_four
    return jnp.sum(jnp.where(is_empty, values, 0.0)) / jnp.maximum(jnp.sum(is_empty.astype(jnp.float32)), 1.0)


def _value_before_move(board: Int8[Array, "R C"]) -> Float32[Array, ""]:
    """The highest score of one move, plus the value of the empty cells after it."""
    slid, scores = _slide_all(board)
    gaps = jnp.sum((slid == 0).astype(jnp.float32), axis=(1, 2), dtype=jnp.float32)
    return jnp.max(jnp.where(legal_moves(board), scores + _GAP * gaps, _DEAD))


# Sprites

TILE_COLORS: tuple[appearance.Color, ...] = (
    (238, 228, 218),
    (237, 224, 200),
    (242, 177, 121),
    (245, 149, 99),
    (246, 124, 95),
    (246, 94, 59),
    (237, 207, 114),
    (237, 204, 97),
    (237, 200, 80),
    (237, 197, 63),
    (237, 194, 46),
)
"""2, 4, … 2048; higher tiles are near black."""
_HIGH_TILE: appearance.Color = (60, 58, 50)
_DARK_INK, _LIGHT_INK = (74, 66, 58), (249, 246, 242)


def draw_tile(exponent: int, size: int, palette: str, background: str) -> sprites.Cell:
    """The sprite of an exponent."""
    if exponent == 0:
        return sprites.empty_cell(size, background)
    color = appearance.shade(TILE_COLORS[exponent - 1] if exponent <= len(TILE_COLORS) else _HIGH_TILE, palette)
    ink = _DARK_INK if appearance.luminance(color) > 145 else _LIGHT_INK
    return sprites.number_tile(size, background, str(2**exponent), color, ink)
