"""`check_game`: conformance checks for every game, built-in or your own.

from g1jax.envs.testing import check_game
check_game(MyGame(MyGame.Level()))
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int32, UInt8

from g1jax.envs import text
from g1jax.envs.core import Game, StepResult
from g1jax.typing import Array, Pytree

_ACTIONS_AT_ONCE = 1024
_OUT_OF_RANGE = (-1, 2**31 - 1, -(2**31))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Probe:
    """All outputs of a game for one state, computed at once so that few programs are compiled."""

    after: Pytree  # of a step
    result: StepResult
    frame: UInt8[Array, "H W 3"]
    text: UInt8[Array, "L"]
    legal: Bool[Array, "_"]
    expert: Int32[Array, ""]
    fresh: Pytree  # of a reset
    restored_text: UInt8[Array, "L"]  # of the state restored from the text
    restored_legal: Bool[Array, "_"]
    restored_frame: UInt8[Array, "H W 3"]
    invalid: Pytree  # a step with the invalid action
    out_of_range: Pytree  # steps with actions out of range
    ended: Pytree  # `after` marked as terminated
    frozen: Pytree  # a step from `ended`


@dataclasses.dataclass(frozen=True)
class _Sample:
    """States from play, in which half of the moves are random actions and half random legal ones, and their probes."""

    game: Game[Any]
    states: Pytree  # leaves [n, …]
    actions: Int32[Array, "n"]  # taken in each
    keys: Array  # key[n]
    seen: _Probe  # leaves [n, …]
    probe_all: Any
    """The compiled function that gave `seen`, of states, actions and the keys' data."""

    @property
    def size(self) -> int:
        return int(self.actions.shape[0])

    def state(self, i: int) -> Pytree:
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[i]), self.states)


def check_game(game: Game[Any], *, num_games: int = 16, num_steps: int = 40, seed: int = 0) -> None:
    """Checks a game against the contract: shapes, purity, text, actions, endings, pixels, compilation.

    Plays `num_games` games for `num_steps` moves and checks the states.

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
        return game.step(state, action, step_key)[0], (state, action)

    def play(key: Any) -> Any:
        reset_key, move_key = jax.random.split(key)
        return jax.lax.scan(move, game.reset(reset_key), jax.random.split(move_key, num_steps))[1]

    def probe(state: Any, action: Array, key_data: Array) -> _Probe:
        return _probe(game, state, action, jax.random.wrap_key_data(key_data))

    # On the host, where a part of an array is taken without compiling a program for it.
    played = jax.device_get(jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(seed), num_games)))
    states, actions = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), played)
    keys = jax.random.split(jax.random.key(seed + 1), num_games * num_steps)
    probe_all = jax.jit(jax.vmap(probe))
    seen = jax.device_get(probe_all(states, actions, jax.random.key_data(keys)))
    return _Sample(game, states, actions, keys, seen, probe_all)


def _probe(game: Game[Any], state: Any, action: Array, key: Any) -> _Probe:
    after, result = game.step(state, action, key)
    board_text = game.describe(state)
    restored = game.from_text(board_text)
    ended = dataclasses.replace(after, terminated=jnp.ones_like(after.terminated))
    return _Probe(
        after=after,
        result=result,
        frame=game.render(state),
        text=board_text,
        legal=game.legal_actions(state),
        expert=game.expert(state, key),
        fresh=game.reset(key, game.traced_level()),
        restored_text=game.describe(restored),
        restored_legal=game.legal_actions(restored),
        restored_frame=game.render(restored),
        invalid=game.step(state, game.invalid_action, key),
        out_of_range=jax.vmap(game.step, (None, 0, None))(state, jnp.array(_OUT_OF_RANGE, jnp.int32), key),
        ended=ended,
        frozen=game.step(ended, game.sample_action(after, key), key),
    )


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


def _check_one_by_one(sample: _Sample) -> None:
    """Determinism, vmap = loop, and one compilation: recomputes some states one by one."""
    traces = 0

    def probe(state: Any, action: Array, key: Any) -> _Probe:
        nonlocal traces
        traces += 1
        return _probe(sample.game, state, action, key)

    compiled = jax.jit(probe)
    for i in np.linspace(0, sample.size - 1, 8).astype(int):
        one = compiled(sample.state(i), sample.actions[i], sample.keys[i])
        batched = jax.tree.map(lambda leaf, i=i: leaf[i], sample.seen)
        _same_values("vmap differs from single calls, or the game is not deterministic", one, batched)
    _require(traces == 1, f"the game was traced {traces} times for states of one shape")


def _check_jit_is_eager(sample: _Sample) -> None:
    i = int(np.argmax(np.asarray(sample.seen.result.is_legal)))  # a legal move, if any, changes most
    state, game, seen = sample.state(i), sample.game, jax.tree.map(lambda leaf: leaf[i], sample.seen)
    eager = (
        *game.step(state, jnp.asarray(sample.actions[i]), sample.keys[i]),
        game.render(state),
        game.describe(state),
    )
    _same_values("jit differs from eager execution", eager, (seen.after, seen.result, seen.frame, seen.text))


def _check_board_text(sample: _Sample) -> None:
    game, seen = sample.game, sample.seen
    _same_values("from_text(describe(state)) describes another board", seen.text, seen.restored_text)
    _same_values("a state set from its text has other legal actions", seen.legal, seen.restored_legal)
    first = text.decode(seen.text[0])
    _require(text.decode(game.describe(game.from_text(first))) == first, "from_text of a string gives another board")


def _check_perception(sample: _Sample) -> None:
    game, state = sample.game, sample.state(0)
    board = text.decode(game.describe(state))
    right = f"<perception>\n{board}\n</perception><answer></answer>"
    _require(bool(game.perception_exact(right, state)), "the true board text is not scored as exact")
    _require(float(game.perception_cells(right, state)) == 1.0, "the true board text does not score every cell")
    _require(not bool(game.perception_exact(board, state)), "a board text outside of its tag is scored")


def _check_action_text(sample: _Sample) -> None:
    game = sample.game
    round_trip = jax.jit(jax.vmap(lambda action: game.parse(game.write_action(action))))
    for start in range(0, game.num_actions + 1, _ACTIONS_AT_ONCE):
        actions = jnp.arange(start, min(start + _ACTIONS_AT_ONCE, game.num_actions + 1), dtype=jnp.int32)
        padded = jnp.pad(actions, (0, _ACTIONS_AT_ONCE - actions.shape[0]))
        _same_values("parse(write_action(a)) is not a", actions, round_trip(padded)[: actions.shape[0]])
    for action in (0, game.num_actions - 1, game.invalid_action):
        _require(int(game.parse(game.format_action(action))) == action, f"parse(format_action({action})) differs")
    for unreadable in ("", "<answer>", "<answer>nonsense</answer>", "<answer></answer>"):
        _require(int(game.parse(unreadable)) == game.invalid_action, f"{unreadable!r} is not the invalid action")


def _check_legal_actions(sample: _Sample) -> None:
    masks, is_over = np.asarray(sample.seen.legal), np.asarray(sample.states.terminated)
    _require(bool(masks[~is_over].any(axis=1).all()), "a running game has no legal action")
    _require(not masks[is_over].any(), "a finished game has legal actions")
    rows = np.arange(sample.size)
    known = np.pad(masks, ((0, 0), (0, 1)))[rows, np.asarray(sample.actions)]
    _require(
        bool((np.asarray(sample.seen.result.is_legal) == known).all()), "step's is_legal differs from legal_actions"
    )
    allowed = np.concatenate([masks, ~masks.any(axis=1, keepdims=True)], axis=1)
    chosen = allowed[rows, np.asarray(sample.seen.expert)]
    _require(bool(chosen.all()), "the expert chose an illegal action, or one in a finished game")
    worth = np.asarray(jax.jit(jax.vmap(sample.game.worth))(sample.states, sample.actions, sample.seen.result))
    is_legal = np.asarray(sample.seen.result.is_legal)
    _require(worth.dtype == np.float32, f"worth is {worth.dtype}, not float32")
    _require(bool((abs(worth) <= 1).all()), "an action's worth is not between -1 and 1")
    _require(bool((worth[~is_legal] == -1).all()), "an illegal action's worth is not -1")


def _check_facts(sample: _Sample) -> None:
    game, names = sample.game, sample.game.fact_names
    facts = jax.jit(jax.vmap(game.facts))(sample.states)
    wanted = (len(sample.actions), game.rows, game.cols, len(names))
    _require(
        facts.shape == wanted and facts.dtype == bool,
        f"facts: {facts.dtype}{list(facts.shape)}, not bool{list(wanted)}",
    )
    _require(len(set(names)) == len(names), f"fact_names: {names} has duplicates")


def _check_bad_actions(sample: _Sample) -> None:
    seen = sample.seen
    for i, action in enumerate(_OUT_OF_RANGE):
        taken = jax.tree.map(lambda leaf, i=i: leaf[:, i], seen.out_of_range)
        _same_values(f"action {action} is not treated as the invalid action", seen.invalid, taken)
    _require(not bool(jnp.any(seen.invalid[1].is_legal)), "the invalid action is legal")
    _require(bool(jnp.all(jnp.isfinite(seen.result.reward))), "a reward is not finite")
    _require(not bool(jnp.any(seen.result.truncated)), "a game truncated itself; only batches truncate")


def _check_endings(sample: _Sample) -> None:
    seen = sample.seen
    _same_values("step's terminated differs from the state's", seen.after.terminated, seen.result.terminated)
    after, result = seen.frozen
    _same_values("a finished game changed", seen.ended, after)
    _require(not bool(jnp.any(result.reward)), "a finished game gave a reward")
    _require(bool(jnp.all(result.terminated)), "a finished game is no longer terminated")


def _check_frames(sample: _Sample) -> None:
    boards, frames = np.asarray(sample.seen.text), np.asarray(sample.seen.restored_frame)
    num_boards, num_frames = (len({row.tobytes() for row in rows}) for rows in (boards, frames))
    _require(num_boards == num_frames, f"{num_boards} boards have {num_frames} different frames")


def _check_runs_on_accelerators(sample: _Sample) -> None:
    args = (sample.states, sample.actions, jax.random.key_data(sample.keys))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), args)
    _require("callback" not in str(sample.probe_all.trace(*shapes).jaxpr), "the game calls back to the host")
    jax.export.export(sample.probe_all, platforms=["cpu", "cuda", "tpu"])(*shapes)


_CHECKS: tuple[Callable[[_Sample], None], ...] = (
    _check_one_by_one,
    _check_jit_is_eager,
    _check_board_text,
    _check_perception,
    _check_action_text,
    _check_legal_actions,
    _check_facts,
    _check_bad_actions,
    _check_endings,
    _check_frames,
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
        _require(np.array_equal(np.asarray(x), np.asarray(y)), f"{message}{f', at {place}' if place else ''}")
