"""Swap against the rules in plain Python: runs, falling, legal swaps, and whole moves replayed pass by pass."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs
from g1jax.envs import prng
from g1jax.envs.games import swap
from g1jax.typing import Array
from tests.envs import helpers
from tests.oracles import swap as oracle

PAPER = (8, 8)
MOST_PASSES = 40
PLAY = (96, 50)  # games and steps


def game_of(size: tuple[int, int], **keys: Any) -> Any:
    return envs.make("swap", rows=size[0], cols=size[1], **keys)


def any_boards(size: tuple[int, int], num: int, seed: int) -> np.ndarray:
    """Random boards of 2 to 12 kinds, every third with holes: int8[num, R, C]."""
    rng = np.random.default_rng(seed)
    boards = rng.integers(0, rng.integers(2, 13, (num, 1, 1)), (num, *size))
    is_hole = (rng.random(boards.shape) < rng.uniform(0, 0.6, (num, 1, 1))) & (np.arange(num) % 3 == 0)[:, None, None]
    return np.where(is_hole, oracle.HOLE, boards).astype(np.int8)


def boards_without_runs(size: tuple[int, int], num: int, seed: int, most_kinds: int = 12) -> np.ndarray:
    """Boards of 3 kinds or more, as the game fills them: int8[num, R, C]."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, (num, size[0] * size[1]), np.uint32)
    num_kinds = rng.integers(3, most_kinds + 1, num).astype(np.int32)
    fill = jax.jit(jax.vmap(lambda bits, kinds: swap.fill_without_runs(bits, kinds, size).astype(jnp.int8)))
    return np.asarray(fill(bits, num_kinds))


def swaps_of(size: tuple[int, int]) -> np.ndarray:
    """Every pair of adjacent cells once, by index in reading order: int32[n, 2]."""
    place = np.arange(size[0] * size[1], dtype=np.int32).reshape(size)
    across = np.stack([place[:, :-1], place[:, 1:]], axis=-1).reshape(-1, 2)
    down = np.stack([place[:-1], place[1:]], axis=-1).reshape(-1, 2)
    return np.concatenate([across, down])


# ---- Runs and falling ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "num"), [(PAPER, 10_000), ((2, 3), 500), ((1, 4), 500), ((7, 1), 500), ((5, 9), 500)], ids=str
)
def test_runs_and_falling_follow_the_rules(size: tuple[int, int], num: int) -> None:
    boards = any_boards(size, num, seed=0)
    rng = np.random.default_rng(1)
    removed = rng.random(boards.shape) < rng.random((num, 1, 1))
    both = jax.jit(jax.vmap(lambda board, taken: (swap.runs(board), swap.fall(board, taken))))
    is_run, fallen = both(boards, removed)
    is_run, fallen = np.asarray(is_run), np.asarray(fallen)
    for i, board in enumerate(helpers.to_lists(boards)):
        assert {(int(r), int(c)) for r, c in np.argwhere(is_run[i])} == oracle.run_cells(board), board
        taken = {(int(r), int(c)) for r, c in np.argwhere(removed[i])}
        assert fallen[i].tolist() == oracle.remove_and_fall(board, taken), (board, taken)
    assert 0.02 < is_run.mean() < 0.9


# ---- Legal swaps -----------------------------------------------------------------------------------------------------


@jax.jit
@jax.vmap
def legal_in_all_ways(board: Array) -> tuple[Array, Array, Array]:
    """Whether each swap of `swaps_of` makes a run, by doing it; the mask of all pairs; whether any is legal."""
    first, second = map(jnp.asarray, swaps_of((board.shape[0], board.shape[1])).T)
    leaves_run = jax.vmap(lambda a, b: jnp.any(swap.runs(swap.exchange(board, a, b))))(first, second)
    return leaves_run, swap.as_pairs(*swap.legal_swaps(board)), swap.has_legal_swap(board)


def assert_legal_swaps(boards: np.ndarray) -> np.ndarray:
    """The mask agrees with doing each swap, in either order, and has no other pair."""
    leaves_run, mask, has_any = map(np.asarray, legal_in_all_ways(boards))
    expected = np.zeros_like(mask)
    first, second = swaps_of(boards.shape[1:]).T
    expected[:, first, second] = expected[:, second, first] = leaves_run
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(has_any, leaves_run.any(axis=1))
    return leaves_run


def test_all_112_swaps_are_legal_where_they_make_a_run() -> None:
    assert len(swaps_of(PAPER)) == 112
    boards = boards_without_runs(PAPER, 10_000, seed=0)
    assert not np.asarray(jax.jit(jax.vmap(swap.runs))(boards)).any()
    legal = assert_legal_swaps(boards)
    assert 0.02 < legal.mean() < 0.5


@pytest.mark.parametrize("size", [(1, 4), (6, 1), (2, 3), (3, 2), (3, 3), (4, 9)], ids=str)
def test_swaps_on_other_boards_are_legal_where_they_make_a_run(size: tuple[int, int]) -> None:
    assert assert_legal_swaps(boards_without_runs(size, 1000, seed=1)).any()


def assert_legal_by_the_oracle(boards: np.ndarray) -> None:
    _, masks, _ = map(np.asarray, legal_in_all_ways(boards))
    cols = boards.shape[2]
    for board, mask in zip(helpers.to_lists(boards), masks, strict=True):
        for a, b in swaps_of(boards.shape[1:]):
            expected = oracle.is_valid_swap(board, divmod(int(a), cols), divmod(int(b), cols))
            assert mask[a, b] == mask[b, a] == expected, (board, a, b)


@pytest.mark.parametrize(("size", "num"), [(PAPER, 250), ((3, 4), 800), ((2, 5), 800)], ids=str)
def test_swaps_are_legal_as_the_rules_say(size: tuple[int, int], num: int) -> None:
    assert_legal_by_the_oracle(boards_without_runs(size, num, seed=2))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(10))
def test_all_112_swaps_are_legal_as_the_rules_say_on_10000_boards(chunk: int) -> None:
    assert_legal_by_the_oracle(boards_without_runs(PAPER, 1000, seed=100 + chunk))


def test_the_mask_of_a_state_lists_the_pairs_the_rules_list() -> None:
    game = envs.make("swap")
    states = jax.jit(jax.vmap(game.reset))(helpers.keys(20))
    masks = np.asarray(jax.jit(jax.vmap(game.legal_actions))(states))
    for board, mask in zip(helpers.to_lists(states.board), masks, strict=True):
        actions = {((r1 * 8 + c1) * 8 + r2) * 8 + c2 for (r1, c1), (r2, c2) in oracle.valid_swaps(board)}
        assert set(np.flatnonzero(mask).tolist()) == actions


# ---- Whole moves -----------------------------------------------------------------------------------------------------


def refills(game: Any, keys: Array, levels: Any) -> np.ndarray:
    """The tiles that enter at every cell in each pass of a move with this key: [n, passes, R, C]."""

    def of_one(key: Array, level: Any) -> Any:
        def draw(source: Any, _: None) -> tuple[Any, Array]:
            bits, source = source.bits(game.rows * game.cols)
            number = prng.dice(bits, source.colors * source.shapes)[0]
            return source, source.kind(number, game.level.shapes).reshape(game.rows, game.cols)

        source: Any = swap.Source.of(key, level)
        return jax.lax.scan(draw, source, None, MOST_PASSES)[1]

    return np.asarray(jax.jit(jax.vmap(of_one))(keys, levels))


def assert_replays(game: Any, moves: helpers.Played) -> list[int]:
    """Every move equals the oracle's with the same new tiles; returns the numbers of passes."""
    boards, after = helpers.to_lists(moves.states.board), np.asarray(moves.after.board)
    rewards, is_legal = np.asarray(moves.results.reward), np.asarray(moves.results.is_legal)
    entering = refills(game, moves.keys, moves.states.level)
    runs, is_playable = jax.jit(jax.vmap(lambda board: (swap.runs(board), swap.has_legal_swap(board))))(after)
    assert not np.asarray(runs).any()
    assert np.asarray(is_playable).all()
    passes = []
    for i, (board, action) in enumerate(zip(boards, np.asarray(moves.actions).tolist(), strict=True)):
        first, second = (divmod(int(place), game.cols) for place in divmod(action, game.rows * game.cols))
        if not (0 <= action < game.num_actions and oracle.is_valid_swap(board, first, second)):
            assert (rewards[i], is_legal[i]) == (-1, False)
            assert after[i].tolist() == board
            continue
        supply = iter(entering[i].tolist())

        def refill(holes: helpers.Board, supply: Any = supply) -> helpers.Board:
            new = next(supply)
            return [
                [new[r][c] if kind == oracle.HOLE else kind for c, kind in enumerate(row)]
                for r, row in enumerate(holes)
            ]

        expected, score, counts = oracle.resolve(oracle.swap_cells(board, first, second), refill)
        assert (rewards[i], is_legal[i]) == (score, True)
        if after[i].tolist() != expected:
            assert oracle.valid_swaps(expected) == set(), "shuffled though a swap was legal"
        passes.append(len(counts))
    assert not np.asarray(moves.results.terminated | moves.results.truncated).any()
    return passes


def move_once(game: Any, boards: np.ndarray, **level: int) -> helpers.Played:
    """A legal move on every board that has one."""
    boards = boards[np.asarray(jax.jit(jax.vmap(swap.has_legal_swap))(boards))]

    @jax.jit
    def move(boards: Array, keys: Array, level: envs.TracedLevel) -> Any:
        def one(board: Array, key: Array) -> Any:
            state = game.from_cells(board.astype(jnp.int32), jnp.uint32(0), level)
            action = game.sample_action(state, key)
            return state, action, key, *game.step(state, action, key)

        return jax.vmap(one)(boards, keys)

    moves = helpers.Played(*move(boards, helpers.keys(len(boards)), game.traced_level(**level)))
    assert np.asarray(moves.results.is_legal).all()
    return moves


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_moves_replay(count: int) -> None:
    game = envs.make("swap")
    boards = boards_without_runs(PAPER, count * 11 // 10, seed=3)
    passes = assert_replays(game, move_once(game, boards))
    assert len(passes) > count
    assert max(passes) >= 3


@pytest.mark.parametrize(
    ("size", "num_kinds", "level"),
    [
        (PAPER, 3, {"colors": 3, "shapes": 1}),
        ((2, 3), 3, {"colors": 2, "shapes": 3}),
        ((1, 4), 3, {"colors": 3, "shapes": 1}),
    ],
    ids=str,
)
def test_moves_with_other_levels_replay(size: tuple[int, int], num_kinds: int, level: dict[str, int]) -> None:
    game = game_of(size)
    boards = boards_without_runs(size, 300, seed=4, most_kinds=num_kinds)
    assert len(assert_replays(game, move_once(game, boards, **level))) > 50


@pytest.mark.slow
def test_moves_of_any_play_replay() -> None:
    game = envs.make("swap")
    played = helpers.play(game, *PLAY)
    for policy in ("any", "expert"):
        assert len(assert_replays(game, played.by(policy, most=4).flat())) > 50
    assert (np.asarray(played.by("any").results.reward) == -1).sum() > 200
    rewards = np.asarray(played.by("expert").results.reward)
    assert rewards.max() > 30


def test_new_tiles_are_uniform_over_the_kinds_in_play() -> None:
    game = envs.make("swap", colors=6, shapes=4)
    entering = refills(game, helpers.keys(100), helpers.stack([game.traced_level(colors=5, shapes=2)] * 100))
    counts = np.bincount(entering.reshape(-1), minlength=24)
    color, shape = np.divmod(np.arange(24), 4)
    is_in_play = (color < 5) & (shape < 2)
    helpers.assert_fits(counts, np.where(is_in_play, entering.size / 10, 0))


def test_colors_and_shapes_are_traced() -> None:
    game = envs.make("swap", colors=6, shapes=4)

    @jax.jit
    @helpers.traced_once
    def deal(keys: Array, level: envs.TracedLevel) -> Array:
        return jax.vmap(game.reset, (0, None))(keys, level).board

    for colors, shapes in [(6, 4), (3, 1), (1, 4), (2, 3)]:
        boards = np.asarray(deal(helpers.keys(32), game.traced_level(colors=colors, shapes=shapes)))
        color, shape = np.divmod(np.arange(24), 4)
        assert np.unique(boards).tolist() == np.flatnonzero((color < colors) & (shape < shapes)).tolist()
        assert np.asarray(jax.jit(jax.vmap(swap.has_legal_swap))(boards)).all()


# ---- New and shuffled boards -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "keys", "num"),
    [
        (PAPER, {}, 3000),
        (PAPER, {"colors": 3, "shapes": 1}, 1000),
        (PAPER, {"colors": 16, "shapes": 6}, 300),
        ((2, 3), {"colors": 3, "shapes": 1}, 1000),
        ((2, 3), {"colors": 16, "shapes": 6}, 50),
        ((1, 4), {"colors": 1, "shapes": 3}, 1000),
        ((30, 30), {}, 20),
    ],
    ids=str,
)
def test_new_boards_have_no_run_and_a_legal_swap(size: tuple[int, int], keys: dict[str, int], num: int) -> None:
    game = game_of(size, **keys)
    states = jax.jit(jax.vmap(game.reset))(helpers.keys(num))
    boards = np.asarray(states.board)
    runs, can_play = jax.jit(jax.vmap(lambda board: (swap.runs(board), swap.has_legal_swap(board))))(boards)
    assert not np.asarray(runs).any()
    assert np.asarray(can_play).all()
    assert not np.asarray(states.terminated).any()
    assert boards.min() >= 0
    assert boards.max() < game.level.colors * game.level.shapes
    if num >= 1000:
        counts = [(boards == kind).sum(axis=0)[-1, -1] for kind in range(game.level.colors * game.level.shapes)]
        helpers.assert_fits(counts, np.full(len(counts), num / len(counts)))


def test_a_fill_is_uniform_over_numbers_that_make_no_run() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, (12_000, 6), np.uint32)
    fill = jax.jit(jax.vmap(lambda bits: swap.fill_without_runs(bits, jnp.int32(3), (2, 3))))
    boards = np.asarray(fill(bits)).reshape(-1, 6)
    kinds, counts = np.unique(boards, axis=0, return_counts=True)
    probabilities = [np.prod([0.5 if row[0] == row[1] else 1 / 3 for row in kind.reshape(2, 3)]) / 81 for kind in kinds]
    assert sum(probabilities) == pytest.approx(1)
    helpers.assert_fits(counts, 12_000 * np.array(probabilities))


@jax.jit
@jax.vmap
def renewed(board: Array, key: Array) -> Any:
    level: Any = envs.make("swap").traced_level()
    source = swap.Source.of(key, level)
    return swap.renew(board, jnp.bool_(True), 50, source, 3)


def test_a_stuck_board_keeps_its_tiles_if_they_allow_a_swap() -> None:
    boards = boards_without_runs((4, 4), 4000, seed=5)
    boards = boards[~np.asarray(jax.jit(jax.vmap(swap.has_legal_swap))(boards))][:500]
    assert len(boards) > 200
    renewals = np.asarray(renewed(boards, helpers.keys(len(boards))))
    for new in helpers.to_lists(renewals):
        assert oracle.run_cells(new) == set()
        assert oracle.valid_swaps(new) != set()
    # On 4×4, three tiles of a kind can nearly always form a run; fewer never can.
    tiles, new_tiles = (np.sort(some.reshape(len(boards), -1)) for some in (boards, renewals))
    is_kept = (tiles == new_tiles).all(axis=1)
    has_three = np.array([np.bincount(board.reshape(-1)).max() >= 3 for board in boards])
    assert not is_kept[~has_three].any()
    assert is_kept[has_three].mean() > 0.9
    assert 0 < has_three.mean() < 1


def test_the_same_board_is_shuffled_in_many_ways() -> None:
    board = boards_without_runs((4, 4), 1, seed=7, most_kinds=3)
    shuffled = renewed(np.repeat(board, 50, axis=0), helpers.keys(50))
    assert len(np.unique(np.asarray(shuffled).reshape(50, -1), axis=0)) > 40


def test_a_stuck_board_is_shuffled_after_a_move() -> None:
    """On 2×3 nearly every move leaves no legal swap, and often no permutation has one, so that a new board is drawn."""
    game = game_of((2, 3))
    moves = move_once(game, boards_without_runs((2, 3), 2000, seed=8))
    assert len(assert_replays(game, moves)) > 100


# ---- Set positions ---------------------------------------------------------------------------------------------------


def test_a_set_board_without_a_legal_swap_stays_and_every_move_costs_one() -> None:
    game = game_of((2, 3))
    state = game.from_text("Red circle | Red square | Red triangle\nGreen circle | Green square | Green triangle")
    mask, best, chosen = jax.jit(lambda s, k: (game.legal_actions(s), game.expert(s, k), game.sample_action(s, k)))(
        state, jax.random.key(0)
    )
    assert not np.asarray(mask).any()
    assert int(best) == int(chosen) == game.invalid_action
    after, results = jax.jit(jax.vmap(game.step, (None, 0, None)))(state, jnp.arange(37), jax.random.key(0))
    assert (np.asarray(results.reward) == -1).all()
    assert not np.asarray(results.terminated).any()
    np.testing.assert_array_equal(after.board, np.broadcast_to(state.board, (37, 2, 3)))


def test_mask_and_step_agree_on_set_boards_that_hold_a_run() -> None:
    """Swapping two tiles of one kind makes no run, even if the board already has one."""
    game = game_of((4, 5))
    boards = np.random.default_rng(3).integers(0, 3, (300, 4, 5), np.int32)
    states = jax.vmap(lambda board: game.from_cells(board, jnp.uint32(0), game.traced_level()))(boards)
    masks = np.asarray(jax.vmap(game.legal_actions)(states))
    actions = jnp.arange(game.num_actions)
    step = jax.jit(jax.vmap(jax.vmap(game.step, (None, 0, None)), (0, None, None)))
    np.testing.assert_array_equal(np.asarray(step(states, actions, jax.random.key(0))[1].is_legal), masks)
    for board, mask in zip(boards, masks, strict=True):
        for action in np.flatnonzero(mask):
            a, b = divmod(int(action), 20)
            assert board.reshape(-1)[a] != board.reshape(-1)[b]


# ---- The expert ------------------------------------------------------------------------------------------------------


def test_the_expert_is_always_legal_and_scores_many_times_what_random_play_does() -> None:
    played = helpers.play(envs.make("swap"), *PLAY)
    assert np.asarray(played.by("expert").results.is_legal).all()
    gains = {policy: np.maximum(np.asarray(played.by(policy).results.reward), 0).mean() for policy in helpers.POLICIES}
    assert gains["expert"] >= 10 * gains["random"]
    assert gains["expert"] > 1.05 * gains["legal"]


def test_the_expert_takes_the_best_swap_without_new_tiles() -> None:
    """Scored by the oracle, with falling tiles but without new ones."""
    boards = boards_without_runs((5, 5), 150, seed=6, most_kinds=6)
    chosen = np.asarray(jax.jit(jax.vmap(swap.best_swap))(boards))
    first, second = np.divmod(chosen, 25)
    for board, a, b in zip(helpers.to_lists(boards), first, second, strict=True):
        scores = {}
        for start, end in oracle.valid_swaps(board):
            current, score = oracle.swap_cells(board, start, end), 0
            for _ in range(3):
                cells = oracle.run_cells(current)
                score += oracle.removal_score(len(cells))
                current = oracle.remove_and_fall(current, cells)
            scores[start, end] = score
        if scores:
            assert scores[divmod(int(a), 5), divmod(int(b), 5)] == max(scores.values())
        else:
            assert a * 25 + b == 625
