"""Shisen-Sho against a breadth-first search for paths."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs
from g1jax.envs.games import shisen_sho
from g1jax.typing import Array
from tests.envs import helpers
from tests.oracles import shisen_sho as oracle

CHUNK = 1000
PLAY = (160, 30)  # games and steps
SIZES = [(1, 2), (2, 2), (1, 8), (9, 1), (2, 7), (5, 4), (3, 10), (1, 30), (30, 1)]


def random_boards(rows: int, cols: int, num: int, seed: int) -> np.ndarray:
    """Boards from nearly empty to full, of few or many kinds, in pairs or not: int8[num, R, C]."""
    rng = np.random.default_rng(seed)
    size = rows * cols
    num_kinds = rng.integers(1, max(2, size // 2), (num, 1))
    place = np.tile(np.arange(size), (num, 1))
    paired = place // 2 % num_kinds + 1
    loose = rng.integers(1, num_kinds + 1, (num, size))
    tiles = np.where(np.arange(num)[:, None] % 3 > 0, paired, loose)
    num_tiles = (rng.uniform(0, 1.2, (num, 1)) * size).astype(int) // 2 * 2
    boards = rng.permuted(np.where(place < num_tiles, tiles, 0), axis=1)
    return boards.reshape(num, rows, cols).astype(np.int8)


def matching_pairs(board: helpers.Board) -> np.ndarray:
    """By search, for pairs of one kind in one order: bool[R·C, R·C]."""
    padded, cols = oracle.pad(board), len(board[0])
    flat = [kind for row in board for kind in row]
    found = np.zeros((len(flat), len(flat)), bool)
    for a, kind in enumerate(flat):
        for b in range(a):
            if kind != 0 and flat[b] == kind:
                start, goal = (a // cols + 1, a % cols + 1), (b // cols + 1, b % cols + 1)
                found[a, b] = found[b, a] = oracle.has_path(padded, start, goal)
    return found


def game_of(size: tuple[int, int], **keys: Any) -> Any:
    return envs.make("shisen_sho", rows=size[0], cols=size[1], **keys)


@jax.jit
@jax.vmap
def both_forms(board: Array) -> tuple[Array, Array]:
    """All pairs at once, and pair by pair."""
    cells = jnp.arange(board.size)
    pair_by_pair = jax.vmap(jax.vmap(shisen_sho.can_match, (None, None, 0)), (None, 0, None))(board, cells, cells)
    return shisen_sho.matches(board), pair_by_pair


# ---- Which pairs match -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [0, 1, *(pytest.param(i, marks=pytest.mark.slow) for i in range(2, 10))])
def test_all_pairs_on_the_papers_board_match_as_a_search_says(chunk: int) -> None:
    boards = random_boards(6, 6, CHUNK, chunk)
    all_pairs, pair_by_pair = map(np.asarray, both_forms(boards))
    for i, board in enumerate(helpers.to_lists(boards)):
        np.testing.assert_array_equal(all_pairs[i], matching_pairs(board), err_msg=str(board))
    np.testing.assert_array_equal(pair_by_pair, all_pairs)
    has_match = np.asarray(jax.jit(jax.vmap(shisen_sho.has_match))(boards))
    np.testing.assert_array_equal(has_match, all_pairs.any((1, 2)))
    assert 0.01 < all_pairs.mean() < 0.5
    assert 0.5 < has_match.mean() < 1


def test_ordered_pairs_match_as_the_rules_list_them() -> None:
    boards = random_boards(6, 6, 60, seed=100)
    game = envs.make("shisen_sho")
    from_cells = jax.jit(jax.vmap(lambda board: game.from_cells(board, jnp.uint32(0), game.traced_level())))
    states = from_cells(boards.astype(np.int32))
    masks = np.asarray(jax.jit(jax.vmap(game.legal_actions))(states))
    for i, board in enumerate(helpers.to_lists(boards)):
        pairs = oracle.legal_pairs(board)
        actions = {((r1 * 6 + c1) * 6 + r2) * 6 + c2 for (r1, c1), (r2, c2) in pairs}
        assert set(np.flatnonzero(masks[i]).tolist()) == actions
        assert bool(states.terminated[i]) == oracle.is_over(board)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pairs_match_as_a_search_says_on_boards_of_any_shape(size: tuple[int, int]) -> None:
    boards = random_boards(*size, 300, seed=7)
    all_pairs, pair_by_pair = map(np.asarray, both_forms(boards))
    for i, board in enumerate(helpers.to_lists(boards)):
        np.testing.assert_array_equal(all_pairs[i], matching_pairs(board), err_msg=str(board))
    np.testing.assert_array_equal(pair_by_pair, all_pairs)
    assert all_pairs.any()


@pytest.mark.parametrize("density", [0.5, 0.9, 1.0])
def test_the_largest_board_matches_as_a_search_says(density: float) -> None:
    rng = np.random.default_rng(int(density * 10))
    board = np.where(rng.random((30, 30)) < density, rng.integers(1, 37, (30, 30)), 0).astype(np.int8)
    found = np.asarray(jax.jit(shisen_sho.matches)(board))
    flat = board.reshape(-1)
    same = (flat[:, None] == flat[None, :]) & (flat > 0)[:, None] & ~np.eye(900, dtype=bool)
    assert not found[~same].any()
    np.testing.assert_array_equal(found, found.T)
    padded = oracle.pad(board.tolist())
    candidates = {True: np.argwhere(found), False: np.argwhere(same & ~found)}
    for expected, pairs in candidates.items():
        assert len(pairs) > 100
        for a, b in rng.permutation(pairs)[:60]:
            start, goal = (int(a) // 30 + 1, int(a) % 30 + 1), (int(b) // 30 + 1, int(b) % 30 + 1)
            assert oracle.has_path(padded, start, goal) is expected, (start, goal)


# ---- Moves -----------------------------------------------------------------------------------------------------------


def assert_played_by_the_rules(game: Any, played: helpers.Played) -> None:
    rows, cols = game.rows, game.cols
    moves = played.flat()
    boards, after = helpers.to_lists(moves.states.board), helpers.to_lists(moves.after.board)
    was_over = np.asarray(moves.states.terminated)
    rewards, is_legal = np.asarray(moves.results.reward), np.asarray(moves.results.is_legal)
    terminated = np.asarray(moves.results.terminated)
    for i, (board, action) in enumerate(zip(boards, np.asarray(moves.actions).tolist(), strict=True)):
        if was_over[i]:
            new, reward = board, 0
        elif 0 <= action < game.num_actions:
            first, second = divmod(action, rows * cols)
            new, reward, _ = oracle.step(board, divmod(first, cols), divmod(second, cols))
        else:
            new, reward = board, -1
        assert after[i] == new
        assert rewards[i] == reward
        assert is_legal[i] == (reward == 1)
        assert terminated[i] == ~matching_pairs(new).any()
    assert not np.asarray(moves.results.truncated).any()
    np.testing.assert_array_equal(terminated, moves.after.terminated)


@pytest.mark.parametrize("size", [pytest.param((6, 6), marks=pytest.mark.slow), (4, 5)], ids=str)
def test_steps_follow_the_rules_along_any_play(size: tuple[int, int]) -> None:
    game = game_of(size)
    played = helpers.play(game, *PLAY)
    for policy in ("any", "expert"):
        assert_played_by_the_rules(game, played.by(policy, most=8))
    rewards = np.asarray(played.results.reward)
    assert set(rewards.reshape(-1).tolist()) == {1, -1, 0}


@pytest.mark.parametrize(("size", "share_cleared"), [((6, 6), 0.9), ((4, 5), 0.8)], ids=str)
def test_the_expert_clears_nearly_every_board_and_is_always_legal(size: tuple[int, int], share_cleared: float) -> None:
    game = game_of(size)
    played = helpers.play(game, *PLAY).by("expert")
    is_on = ~np.asarray(played.states.terminated)
    assert len(is_on) >= 32
    assert np.asarray(played.results.is_legal)[is_on].all()
    assert (np.asarray(played.actions)[~is_on] == game.invalid_action).all()
    assert np.asarray(played.after.terminated)[:, -1].all()
    is_cleared = (np.asarray(played.after.board)[:, -1] == 0).all(axis=(1, 2))
    assert is_cleared.mean() >= share_cleared
    returns = np.asarray(played.results.reward).sum(axis=1)
    assert (returns[is_cleared] == size[0] * size[1] / 2).all()


def test_a_cleared_board_stays_over() -> None:
    game = game_of((1, 4))
    state = game.from_text("Red circle | - | - | Red circle")
    step = jax.jit(game.step)
    cleared, result = step(state, game.parse("<answer>(0, 3) (0, 0)</answer>"), jax.random.key(0))
    assert (float(result.reward), bool(result.terminated), bool(result.is_legal)) == (1, True, True)
    assert not np.asarray(cleared.board).any()
    assert not np.asarray(jax.jit(game.legal_actions)(cleared)).any()
    assert int(jax.jit(game.expert)(cleared, jax.random.key(0))) == game.invalid_action
    frozen, result = step(cleared, jnp.int32(3), jax.random.key(0))
    assert (float(result.reward), bool(result.terminated), bool(result.is_legal)) == (0, True, False)
    helpers.assert_trees_equal(frozen, cleared)


@pytest.mark.parametrize("name", ["shisen_sho", "shisen_sho_cifar10"])
def test_a_pair_that_leaves_no_other_is_worth_less(name: str) -> None:
    game: Any = envs.make(name, rows=3, cols=4, tile_types=3)
    a, b, c = list(game.cell_names())[1:4]

    @jax.jit
    def play(state: Any, action: Array) -> tuple[Array, Array]:
        _, result = game.step(state, action, jax.random.key(0))
        return game.worth(state, action, result), result.terminated

    def worth(board: str, answer: str) -> tuple[float, bool]:
        value, is_over = play(game.from_text(board), game.parse(f"<answer>{answer}</answer>"))
        return float(value), bool(is_over)

    open_board = f"{a} | {b} | {c} | {a}\n{b} | - | - | {c}\n- | - | - | -"
    assert worth(open_board, "(0, 0) (0, 3)") == (1, False)
    assert worth(open_board, "(0, 0) (0, 1)") == (-1, False)
    assert worth(f"{a} | {a} | {b} | {c}\n- | - | {c} | {b}\n- | - | - | -", "(0, 0) (0, 1)") == (0, True)
    assert worth(f"{a} | {a} | - | -\n- | - | - | -\n- | - | - | -", "(0, 0) (0, 1)") == (1, True)


def test_a_board_without_a_match_is_over_with_tiles_left() -> None:
    game = game_of((2, 2))
    state = game.from_text("Red circle | Blue star\nBlue star | Red circle")
    assert bool(state.terminated)
    assert not np.asarray(jax.jit(game.legal_actions)(state)).any()


# ---- New boards ------------------------------------------------------------------------------------------------------


def counts_of_kinds(boards: np.ndarray, num_kinds: int) -> np.ndarray:
    """int[n, num_kinds + 1], the first the empty cells."""
    return np.array([np.bincount(board.reshape(-1), minlength=num_kinds + 1) for board in boards])


def test_the_papers_board_has_four_of_nine_types_anywhere() -> None:
    game = envs.make("shisen_sho")
    states = jax.jit(jax.vmap(game.reset))(helpers.keys(4000))
    boards = np.asarray(states.board)
    assert not np.asarray(states.terminated).any()
    counts = counts_of_kinds(boards, 36)
    assert (counts[:, 0] == 0).all()
    assert ((counts == 4).sum(axis=1) == 9).all()
    helpers.assert_fits((counts[:, 1:] > 0).sum(axis=0), np.full(36, 1000))
    helpers.assert_fits([(boards == 1 + kind).sum(axis=0) for kind in (0, 17)], np.full((2, 6, 6), 4000 / 36))
    assert len(np.unique(boards.reshape(4000, -1), axis=0)) == 4000


def test_colors_shapes_and_types_are_traced() -> None:
    game = envs.make("shisen_sho", colors=8, shapes=5)

    @jax.jit
    @helpers.traced_once
    def deal(keys: Array, level: envs.TracedLevel) -> Any:
        return jax.vmap(game.reset, (0, None))(keys, level)

    for colors, shapes, tile_types in [(8, 5, 0), (1, 5, 0), (8, 1, 0), (2, 3, 4), (1, 1, 0), (3, 5, 15), (8, 5, 18)]:
        level = game.traced_level(colors=colors, shapes=shapes, tile_types=tile_types)
        states = deal(helpers.keys(300), level)
        counts = counts_of_kinds(np.asarray(states.board), 40)
        color, shape = np.divmod(np.arange(40), 5)
        is_allowed = (color < colors) & (shape < shapes)
        np.testing.assert_array_equal((counts[:, 1:] > 0).any(axis=0), is_allowed)
        num_types = tile_types or min(9, colors * shapes)
        assert ((counts > 0).sum(axis=1) == num_types).all()
        used = np.sort(counts, axis=1)[:, -num_types:]
        assert (used % 2 == 0).all()
        assert (used.max(axis=1) - used.min(axis=1) <= 2).all()
        assert (used.sum(axis=1) == 36).all()
        assert not np.asarray(states.terminated).any()
        assert int(states.level.tile_types[0]) == tile_types


def test_levels_may_differ_within_a_batch() -> None:
    game = envs.make("shisen_sho")
    levels = helpers.stack([game.traced_level(tile_types=n) for n in range(1, 19)])
    boards = np.asarray(jax.jit(jax.vmap(game.reset))(helpers.keys(18), levels).board)
    assert [len(np.unique(board)) for board in boards] == list(range(1, 19))


@pytest.mark.parametrize(
    ("size", "keys"),
    [
        ((1, 2), {}),
        ((2, 2), {"tile_types": 2}),
        ((2, 2), {"colors": 16}),
        ((1, 30), {"tile_types": 15}),
        ((30, 1), {"tile_types": 15}),
        ((6, 6), {"colors": 3, "tile_types": 18}),
    ],
    ids=str,
)
def test_every_new_board_has_a_match(size: tuple[int, int], keys: dict[str, int]) -> None:
    game = game_of(size, **keys)
    states = jax.jit(jax.vmap(game.reset))(helpers.keys(500))
    assert not np.asarray(states.terminated).any()
    for board in helpers.to_lists(states.board)[:100]:
        assert matching_pairs(board).any()


def test_the_largest_board_is_played() -> None:
    game = game_of((30, 30), colors=16)
    state = jax.jit(game.reset)(jax.random.key(0))
    counts = counts_of_kinds(np.asarray(state.board)[None], 96)[0]
    assert counts[0] == 0
    assert set(counts[1:].tolist()) == {8, 10}  # 450 pairs of 96 types
    action = jax.jit(game.sample_action)(state, jax.random.key(1))
    after, result = jax.jit(game.step)(state, action, jax.random.key(2))
    assert float(result.reward) == 1
    assert int((np.asarray(after.board) == 0).sum()) == 2
