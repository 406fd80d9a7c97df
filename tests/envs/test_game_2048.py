"""2048 against the rules in plain Python, and the fast 4×4 path against the general one."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs
from g1jax.envs import sliding_table as packed
from g1jax.envs.games import game_2048
from g1jax.envs.sliding import slide_lines
from g1jax.typing import Array
from tests.envs import helpers
from tests.oracles import game_2048 as oracle

INVALID = 4
SIZES = [(4, 4), (2, 2), (3, 5), (5, 3), (1, 6), (8, 8)]
NUM_BOARDS = {(4, 4): 10_000, (8, 8): 600}


def random_boards(rows: int, cols: int, num: int, seed: int = 0, highest: int = 17) -> np.ndarray:
    """Boards from nearly empty to full, of few or many kinds, some without a legal move: int8[num, R, C]."""
    rng = np.random.default_rng(seed)
    top = rng.integers(1, highest + 1, (num, 1, 1))
    lowest = np.maximum(1, top - rng.integers(0, 18, (num, 1, 1)))
    boards = rng.integers(lowest, top + 1, (num, rows, cols))
    is_filled = rng.random((num, rows, cols)) < rng.uniform(0.05, 1.25, (num, 1, 1))
    boards = np.where(is_filled, boards, 0)
    # Nothing merges if even and odd exponents alternate; on every other such board the first columns are empty.
    stuck = boards[::10]
    row, col = np.indices((rows, cols))
    stuck[:] = 1 + 2 * rng.integers(0, highest // 2, stuck.shape) + (row + col) % 2
    stuck[::2, :, : cols // 2] = 0
    return boards.astype(np.int8)


def some_boards(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return random_boards(*size, NUM_BOARDS.get(size, 1500), seed)


def game_of(size: tuple[int, int], **keys: Any) -> Any:
    return envs.make("game_2048", rows=size[0], cols=size[1], **keys)


def general_slide(board: Array, action: Array) -> tuple[Array, Array]:
    """As `slide` on boards that are not 4×4."""
    is_reversed = (action == oracle.RIGHT) | (action == oracle.DOWN)
    across, reward_across = slide_lines(board, is_reversed)
    along, reward_along = slide_lines(board.T, is_reversed)
    is_vertical = (action == oracle.UP) | (action == oracle.DOWN)
    return jnp.where(is_vertical, along.T, across), jnp.where(is_vertical, reward_along, reward_across)


# ---- A move, part by part --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_slide_rewards_legal_moves_and_end_follow_the_rules(size: tuple[int, int]) -> None:
    game = game_of(size)
    boards = some_boards(size)
    level = game.traced_level()

    @jax.jit
    @jax.vmap
    def everything(board: Array) -> tuple[Array, Array, Array, Array]:
        slid, reward = jax.vmap(game_2048.slide, (None, 0))(board, jnp.arange(4))
        is_over = game.from_cells(board.astype(jnp.int32), jnp.uint32(0), level).terminated
        return slid, reward, game_2048.legal_moves(board), is_over

    slid, rewards, legal, over = map(np.asarray, everything(boards))
    assert rewards.dtype == np.float32
    num_over = 0
    for i, board in enumerate(helpers.to_lists(boards)):
        expected = [oracle.slide(board, action) for action in oracle.ACTIONS]
        assert slid[i].tolist() == [after for after, _, _ in expected], board
        assert rewards[i].tolist() == [reward for _, reward, _ in expected], board
        assert legal[i].tolist() == [is_legal for _, _, is_legal in expected], board
        assert over[i] == oracle.is_over(board), board
        num_over += int(over[i])
    assert num_over > 10
    assert (rewards > 0).mean() > 0.1
    assert 0.1 < legal.mean() < 0.99


@pytest.mark.parametrize("size", SIZES[:3], ids=str)
def test_steps_follow_the_rules(size: tuple[int, int]) -> None:
    game = game_of(size)
    boards = some_boards(size, seed=1)
    actions = np.arange(len(boards), dtype=np.int32) % 5
    level = game.traced_level()

    @jax.jit
    @jax.vmap
    def step(board: Array, action: Array, key: Array) -> Any:
        return game.step(game.from_cells(board.astype(jnp.int32), jnp.uint32(0), level), action, key)

    states, results = step(boards, actions, helpers.keys(len(boards)))
    after, rewards = np.asarray(states.board), np.asarray(results.reward)
    is_legal, terminated = np.asarray(results.is_legal), np.asarray(results.terminated)
    assert not np.asarray(results.truncated).any()
    np.testing.assert_array_equal(terminated, states.terminated)
    seen = set()
    for i, board in enumerate(helpers.to_lists(boards)):
        action, new = int(actions[i]), tuple(map(tuple, after[i].tolist()))
        unchanged = tuple(map(tuple, board))
        if oracle.is_over(board):
            expected, allowed, kind = (0, False), {unchanged}, "frozen"
        elif action == INVALID:
            expected, allowed, kind = (-1, False), {unchanged}, "invalid"
        else:
            _, reward, changed = oracle.slide(board, action)
            expected, allowed, kind = (reward, changed), oracle.successors(board, action), str(changed)
        assert (rewards[i], is_legal[i]) == expected, (board, action)
        assert new in allowed, (board, action)
        assert terminated[i] == oracle.is_over([list(row) for row in new]), (board, action)
        seen.add(kind)
    assert seen == {"frozen", "invalid", "True", "False"}


def test_any_other_number_is_the_invalid_action() -> None:
    game = envs.make("game_2048")
    state = jax.jit(game.reset)(jax.random.key(0))
    actions = jnp.array([-(2**31), -1, INVALID, INVALID + 1, 2**31 - 1], jnp.int32)
    after, results = jax.jit(jax.vmap(game.step, (None, 0, None)))(state, actions, jax.random.key(1))
    assert np.asarray(results.reward).tolist() == [-1] * 5
    assert not np.asarray(results.is_legal).any()
    helpers.assert_trees_equal(after, helpers.stack([state] * 5))


def test_a_merge_to_256_scores_256() -> None:
    game = envs.make("game_2048")
    state = game.from_text("128 | 128 | - | -\n- | - | - | -\n- | - | - | -\n- | - | - | -")
    after, result = jax.jit(game.step)(state, oracle.LEFT, jax.random.key(0))
    assert float(result.reward) == 256
    assert int(after.board[0, 0]) == 8
    assert game.cell_names()[8] == "256"


def test_the_highest_tiles_of_play_merge() -> None:
    game = envs.make("game_2048")
    state = game.from_text("65536 | 65536 | 32768 | 32768\n- | - | - | -\n- | - | - | -\n- | - | - | -")
    after, result = jax.jit(game.step)(state, oracle.RIGHT, jax.random.key(0))
    assert float(result.reward) == 131072 + 65536
    assert after.board[0, 2:].tolist() == [17, 16]


# ---- The fast path of 4×4 against the general one --------------------------------------------------------------------


def test_packed_moves_equal_cell_by_cell_moves() -> None:
    boards = random_boards(4, 4, 11_000, seed=2)
    boards = boards[boards.any((1, 2))][:10_000]
    assert len(boards) == 10_000
    actions = np.arange(len(boards), dtype=np.int32) % 4
    keys = helpers.keys(len(boards), seed=2)

    @jax.jit
    @jax.vmap
    def both(board: Array, action: Array, key: Array) -> Any:
        fast = game_2048.slide_and_spawn(board, action, key, jnp.float32(0.5))
        slid, reward = general_slide(board, action)
        is_legal = jnp.any(slid != board)
        spawned = jnp.where(is_legal, game_2048.spawn_tile(slid, key, jnp.float32(0.5)), board)
        is_over = ~jnp.any(game_2048.legal_moves(fast[0]))
        return fast, game_2048.slide(board, action), (slid, reward, is_legal, spawned, is_over)

    (board, reward, is_legal, is_over), (slid_alone, reward_alone), general = both(boards, actions, keys)
    slid, general_reward, general_legal, general_board, general_over = map(np.asarray, general)
    np.testing.assert_array_equal(slid_alone, slid)
    np.testing.assert_array_equal(reward_alone, general_reward)
    np.testing.assert_array_equal(reward, general_reward)
    np.testing.assert_array_equal(is_legal, general_legal)
    np.testing.assert_array_equal(is_over, general_over)
    for spawned in (np.asarray(board), general_board):
        is_new = spawned != slid
        np.testing.assert_array_equal(is_new.sum((1, 2)), general_legal)
        assert (slid[is_new] == 0).all()
        assert set(spawned[is_new].tolist()) == {1, 2}
    # The same key gives the same tile, although cells are counted in another order.
    multisets = [np.sort(np.asarray(after).reshape(-1, 16), axis=1) for after in (board, general_board)]
    np.testing.assert_array_equal(multisets[0], multisets[1])
    assert 0.5 < general_legal.mean() < 1


def test_packed_lines_unpack_to_what_was_packed() -> None:
    lines = np.array(list(itertools.product(range(18), repeat=2)), np.uint32)
    board = np.concatenate([lines, lines[::-1]], axis=1).reshape(-1, 4)[:324].reshape(81, 4, 4).astype(np.int8)
    shifts = np.arange(4, dtype=np.uint32) * 5

    def round_trip(board: Array, is_vertical: bool, is_reversed: bool) -> Array:
        along = board.T if is_vertical else board
        along = along[:, ::-1] if is_reversed else along
        lines = jnp.sum(along.astype(jnp.uint32) << shifts[None, :], axis=1, dtype=jnp.uint32)
        return packed.unpack(lines, jnp.bool_(is_vertical), jnp.bool_(is_reversed))

    for is_vertical, is_reversed in itertools.product((False, True), repeat=2):
        unpacked = jax.jit(jax.vmap(functools.partial(round_trip, is_vertical=is_vertical, is_reversed=is_reversed)))
        np.testing.assert_array_equal(unpacked(board), board)


# ---- Randomness ------------------------------------------------------------------------------------------------------


def spawn_packed(board: Array, key: Array, spawn_four: Array) -> Array:
    """A spawn by the packed path: rows are the lines, nothing slides."""
    shifts = np.arange(4, dtype=np.uint32) * 5
    lines = jnp.sum(board.astype(jnp.uint32) << shifts[None, :], axis=1, dtype=jnp.uint32)
    lines, _ = packed.spawn(lines, jnp.bool_(True), key, spawn_four)
    return packed.unpack(lines, jnp.bool_(False), jnp.bool_(False))


SPAWNS = {"packed": spawn_packed, "general": game_2048.spawn_tile}


@pytest.mark.parametrize("spawn", SPAWNS.values(), ids=SPAWNS.keys())
def test_new_tiles_are_uniform_over_empty_cells_and_a_four_at_the_given_probability(
    spawn: Callable[[Array, Array, Array], Array],
) -> None:
    num_draws, spawn_four = 4000, 0.25
    order = np.random.default_rng(0).permuted(np.tile(np.arange(16), (15, 1)), axis=1)
    boards = np.where(order < np.arange(1, 16)[:, None], 0, 7).astype(np.int8).reshape(15, 4, 4)  # 1 … 15 empty cells
    keys = helpers.keys(15 * num_draws, seed=5).reshape(15, num_draws)
    draw = jax.jit(jax.vmap(jax.vmap(spawn, (None, 0, None)), (0, 0, None)))
    spawned = np.asarray(draw(boards, keys, jnp.float32(spawn_four))).reshape(15, num_draws, 16)
    for board, after in zip(boards.reshape(15, 16), spawned, strict=True):
        assert (after[:, board != 0] == 7).all()
        assert ((after != 0).sum(axis=1) == (board != 0).sum() + 1).all()
        twos, fours = (after[:, board == 0] == 1).sum(axis=0), (after[:, board == 0] == 2).sum(axis=0)
        each = num_draws / (board == 0).sum()
        helpers.assert_fits([twos, fours], [each * (1 - spawn_four) + 0 * twos, each * spawn_four + 0 * fours])


def test_moves_spawn_at_the_papers_probability_in_every_empty_cell() -> None:
    game = envs.make("game_2048")
    state = game.from_text("2 | 2 | - | -\n4 | - | 8 | -\n- | - | - | 2\n16 | 8 | 4 | 2")
    slid = np.array([[2, 0, 0, 0], [2, 3, 0, 0], [1, 0, 0, 0], [4, 3, 2, 1]])
    after, results = jax.jit(jax.vmap(game.step, (None, None, 0)))(state, oracle.LEFT, helpers.keys(20_000, seed=6))
    assert (np.asarray(results.reward) == 4).all()
    new = np.asarray(after.board) - slid
    twos, fours = (new == 1).sum(axis=0)[slid == 0], (new == 2).sum(axis=0)[slid == 0]
    assert twos.sum() + fours.sum() == 20_000
    helpers.assert_fits([twos.sum(), fours.sum()], [18_000, 2_000])
    helpers.assert_fits(twos + fours, np.full(8, 2_500))


@pytest.mark.parametrize("size", [(4, 4), (3, 5)], ids=str)
def test_spawn_probability_and_start_tiles_are_traced(size: tuple[int, int]) -> None:
    game = game_of(size)

    @jax.jit
    @helpers.traced_once
    def play(level: envs.TracedLevel, keys: Array) -> Any:
        states = jax.vmap(game.reset, (0, None))(keys, level)
        action = jnp.argmax(jax.vmap(game.legal_actions)(states), axis=1)
        return states, jax.vmap(game.step)(states, action, keys)[0]

    keys = helpers.keys(500)
    for spawn_four, start_tiles in ((0.0, 1), (1.0, 2), (1, 5), (0.0, 8)):
        states, after = play(game.traced_level(spawn_four=spawn_four, start_tiles=start_tiles), keys)
        start, board = np.asarray(states.board), np.asarray(after.board)
        assert ((start > 0).sum((1, 2)) == start_tiles).all()
        assert set(start.reshape(-1).tolist()) == {0, 2 if spawn_four else 1}
        if start_tiles == 1:  # nothing merges: the second tile is the new one
            assert set(board.reshape(-1).tolist()) == {0, 1}
            assert ((board > 0).sum((1, 2)) == 2).all()
        helpers.assert_trees_equal(after.level, states.level)


def test_start_tiles_are_anywhere_and_a_full_start_is_over_only_if_nothing_merges() -> None:
    game = envs.make("game_2048", start_tiles=1)
    reset = jax.jit(jax.vmap(game.reset, (0, None)))
    boards = np.asarray(reset(helpers.keys(8_000), game.traced_level()).board)
    helpers.assert_fits((boards > 0).sum(axis=0), np.full((4, 4), 500))
    helpers.assert_fits([(boards == 1).sum(), (boards == 2).sum()], [7_200, 800])
    full = reset(helpers.keys(64), game.traced_level(start_tiles=16, spawn_four=0.5))
    over = [oracle.is_over(board) for board in helpers.to_lists(full.board)]
    assert np.asarray(full.terminated).tolist() == over
    tiny = game_of((1, 2), start_tiles=2, spawn_four=0.5)
    states = jax.jit(jax.vmap(tiny.reset))(helpers.keys(64))
    over = [oracle.is_over(board) for board in helpers.to_lists(states.board)]
    assert np.asarray(states.terminated).tolist() == over
    assert 0 < sum(over) < 64


# ---- The expert ------------------------------------------------------------------------------------------------------


def test_the_expert_moves_legally_and_far_outscores_random_play() -> None:
    game = envs.make("game_2048")
    played = helpers.play(game, 280, 100)
    expert, random = played.by("expert"), played.by("random")
    is_on = ~np.asarray(expert.states.terminated)
    assert len(is_on) >= 64
    assert np.asarray(expert.results.is_legal)[is_on].all()
    assert (np.asarray(expert.actions)[~is_on] == game.invalid_action).all()
    scores = [np.asarray(games.results.reward).sum(axis=1).mean() for games in (expert, random)]
    assert scores[0] > 1.4 * scores[1], scores
    is_alive = [(~np.asarray(games.after.terminated)[:, -1]).mean() for games in (expert, random)]
    assert is_alive[0] > is_alive[1]


def test_the_expert_moves_legally_on_boards_of_any_shape() -> None:
    boards = random_boards(3, 5, 600, seed=4, highest=12)
    chosen = np.asarray(jax.jit(jax.vmap(game_2048.best_move, (0, None)))(boards, jnp.float32(0.1)))
    legal = np.asarray(jax.jit(jax.vmap(game_2048.legal_moves))(boards))
    is_on = legal.any(axis=1)
    assert legal[is_on, chosen[is_on]].all()
    assert (chosen[~is_on] == INVALID).all()
    assert 0 < is_on.mean() < 1


def test_the_expert_takes_the_only_legal_move() -> None:
    rows, cols = np.indices((4, 4))
    stuck = np.random.default_rng(0).permuted(1 + np.arange(16, dtype=np.int8)[None].repeat(30, 0), axis=1)
    stuck = stuck.reshape(-1, 4, 4)
    walls = {oracle.UP: rows >= 2, oracle.RIGHT: cols < 1, oracle.DOWN: rows < 3, oracle.LEFT: cols >= 3}
    boards = np.concatenate([np.where(is_tile, stuck, 0) for is_tile in walls.values()] + [stuck])
    best = jax.jit(jax.vmap(game_2048.best_move, (0, None)))
    chosen = np.asarray(best(boards, jnp.float32(0.1)))
    np.testing.assert_array_equal(chosen, np.repeat([*walls, INVALID], 30))


# ---- What a move is worth --------------------------------------------------------------------------------------------


def value_of(board: list[list[int]], action: int, spawn_four: float) -> float | None:
    """The expected merged values of a move and the best one after it, plus 2 points per empty cell; None if illegal."""
    slid, merged, is_legal = oracle.slide(board, action)
    if not is_legal:
        return None
    empty = [(r, c) for r, row in enumerate(slid) for c, cell in enumerate(row) if cell == 0]
    total = 0.0
    for r, c in empty:
        for exponent, share in ((1, 1 - spawn_four), (2, spawn_four)):
            spawned = [[exponent if (r, c) == (i, j) else x for j, x in enumerate(row)] for i, row in enumerate(slid)]
            follow = [oracle.slide(spawned, other) for other in range(4)]
            best = [more + 2.0 * sum(row.count(0) for row in after) for after, more, legal in follow if legal]
            total += share * max(best, default=-50.0)
    return merged + total / len(empty)


def test_a_move_is_worth_what_enumeration_says() -> None:
    game = envs.make("game_2048")
    boards = random_boards(4, 4, 60, seed=9, highest=6)
    states = jax.vmap(lambda board: game.from_cells(board, jnp.uint32(0), game.traced_level()))(boards)

    @jax.jit
    @jax.vmap
    def worth(state: game_2048.State) -> Array:
        def of(action: Array) -> Array:
            return game.worth(state, action, game.step(state, action, jax.random.key(0))[1])

        return jax.vmap(of)(jnp.arange(5, dtype=jnp.int32))

    found, checked = np.asarray(worth(states)), 0
    for board, row in zip(helpers.to_lists(boards), found, strict=True):
        values = [value_of(board, action, 0.1) for action in range(4)]
        legal = [value for value in values if value is not None]
        if legal:
            spread = max(legal) - min(legal)
            scaled = [-1 if v is None else 1 if not spread else 2 * (v - min(legal)) / spread - 1 for v in values]
            np.testing.assert_allclose(row, [*scaled, -1], atol=2e-4)
            checked += spread > 0
        else:
            assert (row == -1).all()
    assert checked > 30
