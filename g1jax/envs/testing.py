"""`check_game`: what every game must hold, also one of your own.

from g1jax.envs.testing import check_game
check_game(MyGame(MyGame.Level()))
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from g1jax.envs import text
from g1jax.envs.core import Game, StepResult
from g1jax.typing import Array, Pytree

_ACTIONS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class _Sample:
    """States met in play: half of the moves random of all, half of the legal ones."""

    game: Game[Any]
    states: Pytree  # leaves [n, …]
    actions: Array  # int32[n], what was done in each
    after: Pytree  # leaves [n, …]
    results: StepResult  # leaves [n]
    seed: int

    @property
    def size(self) -> int:
        return int(self.actions.shape[0])

    def state(self, i: int) -> Pytree:
        return jax.tree.map(lambda leaf: leaf[i], self.states)


def check_game(game: Game[Any], *, num_games: int = 16, num_steps: int = 40, seed: int = 0) -> None:
    """Puts a game through the contract: shapes, purity, text, actions, endings, pixels, compilation.

    Plays `num_games` games for `num_steps` moves and checks the states it meets.

    Raises:
        AssertionError: the game breaks the contract; the message says where.
    """
    _check_shapes(game)
    sample = _play(game, num_games, num_steps, seed)
    for check in _CHECKS:
        check(sample)


def _play(game: Game[Any], num_games: int, num_steps: int, seed: int) -> _Sample:
    def move(state: Any, key: Any) -> tuple[Any, Any]:
        any_key, legal_key, coin_key, step_key = jax.random.split(key, 4)
        any_action = game.sample_action(state, any_key, legal=False)
        action = jnp.where(jax.random.bernoulli(coin_key), any_action, game.sample_action(state, legal_key))
        after, result = game.step(state, action, step_key)
        return after, (state, action, after, result)

    def play(key: Any) -> Any:
        reset_key, move_key = jax.random.split(key)
        return jax.lax.scan(move, game.reset(reset_key), jax.random.split(move_key, num_steps))[1]

    met = jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(seed), num_games))
    states, actions, after, results = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), met)
    return _Sample(game, states, actions, after, results, seed)


def _check_shapes(game: Game[Any]) -> None:
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(game.reset, key)
    after, result = jax.eval_shape(game.step, state, jax.ShapeDtypeStruct((), jnp.int32), key)
    _same_types("step changes the shape or dtype of the state", state, after)
    height, width, channels = game.frame_shape
    expected: dict[str, tuple[Any, tuple[int, ...], Any]] = {
        "reward": (result.reward, (), jnp.float32),
        "terminated": (result.terminated, (), jnp.bool_),
        "truncated": (result.truncated, (), jnp.bool_),
        "is_legal": (result.is_legal, (), jnp.bool_),
        "state.terminated": (state.terminated, (), jnp.bool_),
        "state.seed": (state.seed, (), jnp.uint32),
        "legal_actions": (jax.eval_shape(game.legal_actions, state), (game.num_actions,), jnp.bool_),
        "render": (jax.eval_shape(game.render, state), (height, width, channels), jnp.uint8),
        "describe": (jax.eval_shape(game.describe, state), (game.board_text.length,), jnp.uint8),
        "cells": (jax.eval_shape(game.cells, state), (game.rows, game.cols), jnp.int32),
        "parse": (jax.eval_shape(game.parse, jax.ShapeDtypeStruct((99,), jnp.uint8)), (), jnp.int32),
        "expert": (jax.eval_shape(game.expert, state, key), (), jnp.int32),
    }
    for name, (got, shape, dtype) in expected.items():
        _require(got.shape == shape and got.dtype == dtype, f"{name} is {got.dtype}{got.shape}, not {dtype}{shape}")
    _require(game.invalid_action == game.num_actions, "invalid_action is not num_actions")
    _require(bool(game.prompt.strip()), "the prompt is empty")


def _check_jit_is_eager(sample: _Sample) -> None:
    key = jax.random.key(sample.seed)
    i = int(np.argmax(np.asarray(sample.results.is_legal)))  # a legal move, if there was any, does most
    state, action = sample.state(i), sample.actions[i]

    def play(state: Any, action: Array, key: Any) -> Any:
        return sample.game.step(state, action, key), sample.game.render(state), sample.game.describe(state)

    eager, compiled = play(state, action, key), jax.jit(play)(state, action, key)
    _same_values("jit gives other values than eager execution", eager, compiled)


def _check_vmap_is_loop(sample: _Sample) -> None:
    keys = jax.random.split(jax.random.key(sample.seed + 1), sample.size)
    run = jax.jit(lambda s, a, k: (sample.game.step(s, a, k), sample.game.render(s), sample.game.legal_actions(s)))
    batch = jax.jit(jax.vmap(lambda s, a, k: run(s, a, k)))(sample.states, sample.actions, keys)
    for i in np.linspace(0, sample.size - 1, 8).astype(int):
        one = run(sample.state(i), sample.actions[i], keys[i])
        _same_values("vmap gives other values than one by one", one, jax.tree.map(lambda leaf, i=i: leaf[i], batch))


def _check_determinism(sample: _Sample) -> None:
    reset = jax.jit(sample.game.reset)
    key = jax.random.key(sample.seed + 2)
    _same_values("reset with one key gives two states", reset(key), reset(key))
    step = jax.jit(sample.game.step)
    state, action = sample.state(0), sample.actions[0]
    _same_values("step with one key gives two states", step(state, action, key), step(state, action, key))


def _check_board_text(sample: _Sample) -> None:
    game = sample.game
    texts = jax.jit(jax.vmap(game.describe))(sample.states)
    again = jax.jit(jax.vmap(lambda t: game.describe(game.from_text(t))))(texts)
    _same_values("from_text(describe(state)) describes another board", texts, again)
    first = text.decode(texts[0])
    _require(text.decode(game.describe(game.from_text(first))) == first, "from_text of a string gives another board")
    legal = jax.jit(jax.vmap(lambda s: (game.legal_actions(game.from_text(game.describe(s))), game.legal_actions(s))))
    _same_values("a state set from its text has other legal actions", *legal(sample.states))


def _check_perception(sample: _Sample) -> None:
    game, state = sample.game, sample.state(0)
    board = text.decode(game.describe(state))
    right = f"<perception>\n{board}\n</perception><answer></answer>"
    _require(bool(game.perception_exact(right, state)), "the true board text is not scored as exact")
    _require(float(game.perception_cells(right, state)) == 1.0, "the true board text does not score 1 a cell")
    _require(not bool(game.perception_exact(board, state)), "a board text outside of its tag is scored")


def _check_action_text(sample: _Sample) -> None:
    game = sample.game
    there_and_back = jax.jit(jax.vmap(lambda action: game.parse(game.write_action(action))))
    for start in range(0, game.num_actions + 1, _ACTIONS_AT_ONCE):
        actions = jnp.arange(start, min(start + _ACTIONS_AT_ONCE, game.num_actions + 1), dtype=jnp.int32)
        padded = jnp.pad(actions, (0, _ACTIONS_AT_ONCE - actions.shape[0]))
        _same_values("parse(write_action(a)) is not a", actions, there_and_back(padded)[: actions.shape[0]])
    for action in (0, game.num_actions - 1, game.invalid_action):
        _require(int(game.parse(game.format_action(action))) == action, f"parse(format_action({action})) differs")
    for unreadable in ("", "<answer>", "<answer>nonsense</answer>", "<answer></answer>"):
        _require(int(game.parse(unreadable)) == game.invalid_action, f"{unreadable!r} is not the invalid action")


def _check_legal_actions(sample: _Sample) -> None:
    game = sample.game
    masks = np.asarray(jax.jit(jax.vmap(game.legal_actions))(sample.states))
    is_over = np.asarray(sample.states.terminated)
    _require(bool(masks[~is_over].any(axis=1).all()), "a running game has no legal action")
    _require(not masks[is_over].any(), "a finished game has legal actions")
    said = np.asarray(sample.results.is_legal)
    actions = np.asarray(sample.actions)
    known = np.concatenate([masks, np.zeros((len(masks), 1), bool)], axis=1)[np.arange(len(masks)), actions]
    _require(bool((said == known).all()), "step's is_legal differs from legal_actions")
    experts = np.asarray(
        jax.jit(jax.vmap(game.expert))(sample.states, jax.random.split(jax.random.key(0), sample.size))
    )
    chosen = np.concatenate([masks, ~masks.any(axis=1, keepdims=True)], axis=1)[np.arange(len(masks)), experts]
    _require(bool(chosen.all()), "the expert chose an illegal action, or one in a finished game")


def _check_bad_actions(sample: _Sample) -> None:
    game, state = sample.game, sample.state(0)
    step = jax.jit(game.step)
    key = jax.random.key(sample.seed)
    invalid = step(state, game.invalid_action, key)
    for action in (-1, game.num_actions + 1, 2**31 - 1, -(2**31)):
        _same_values(f"action {action} is not taken as the invalid action", invalid, step(state, action, key))
    _require(not bool(invalid[1].is_legal), "the invalid action is said to be legal")
    rewards = np.asarray(sample.results.reward)
    _require(bool(np.isfinite(rewards).all()), "a reward is not finite")
    _require(not bool(np.asarray(sample.results.truncated).any()), "a game truncated itself; that is the batch's part")


def _check_endings(sample: _Sample) -> None:
    said, is_over = np.asarray(sample.results.terminated), np.asarray(sample.after.terminated)
    _require(bool((said == is_over).all()), "step's terminated differs from the state's")
    ended = dataclasses.replace(sample.after, terminated=jnp.ones_like(is_over, bool))
    keys = jax.random.split(jax.random.key(sample.seed + 3), sample.size)
    legal = jax.jit(jax.vmap(lambda s, k: sample.game.sample_action(s, k)))(sample.after, keys)
    after, result = jax.jit(jax.vmap(sample.game.step))(ended, legal, keys)
    _same_values("a finished game changed", ended, after)
    _require(not bool(jnp.any(result.reward)), "a finished game gave a reward")
    _require(bool(jnp.all(result.terminated)), "a finished game went on")


def _check_frames(sample: _Sample) -> None:
    game = sample.game
    texts = jax.jit(jax.vmap(game.describe))(sample.states)
    frames = jax.jit(jax.vmap(lambda t: game.render(game.from_text(t))))(texts)
    num_boards, num_frames = (len({row.tobytes() for row in np.asarray(rows)}) for rows in (texts, frames))
    _require(num_boards == num_frames, f"{num_boards} boards have {num_frames} different frames")


def _check_compiles_once(sample: _Sample) -> None:
    count = 0

    def play(state: Any, action: Array, key: Any, level: Any) -> Any:
        nonlocal count
        count += 1
        state, result = sample.game.step(state, action, key)
        return sample.game.render(state), sample.game.describe(state), sample.game.reset(key, level), result

    compiled = jax.jit(play)
    for i in range(3):
        compiled(sample.state(i), sample.actions[i], jax.random.key(i), sample.game.traced_level())
    _require(count == 1, f"step, render, describe and reset were traced {count} times for states of one shape")


def _check_runs_on_accelerators(sample: _Sample) -> None:
    def play(state: Any, action: Array, key_data: Array) -> Any:
        game, key = sample.game, jax.random.wrap_key_data(key_data)
        state, result = game.step(state, action, key)
        return game.render(state), game.describe(state), game.legal_actions(state), game.reset(key), result

    args = (sample.states, sample.actions, jax.random.key_data(jax.random.split(jax.random.key(0), sample.size)))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), args)
    exported = jax.export.export(jax.jit(jax.vmap(play)), platforms=["cpu", "cuda", "tpu"])(*shapes)
    _require("callback" not in exported.mlir_module(), "the game calls back to the host")


_CHECKS: tuple[Callable[[_Sample], None], ...] = (
    _check_determinism,
    _check_jit_is_eager,
    _check_vmap_is_loop,
    _check_board_text,
    _check_perception,
    _check_action_text,
    _check_legal_actions,
    _check_bad_actions,
    _check_endings,
    _check_frames,
    _check_compiles_once,
    _check_runs_on_accelerators,
)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _same_types(message: str, a: Pytree, b: Pytree) -> None:
    def types(tree: Pytree) -> Pytree:
        return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)

    _require(types(a) == types(b), f"{message}: {types(a)} and {types(b)}")


def _same_values(message: str, a: Pytree, b: Pytree) -> None:
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        place = jax.tree_util.keystr(path)
        _require(bool(jnp.array_equal(x, y)), f"{message}{f', at {place}' if place else ''}")
