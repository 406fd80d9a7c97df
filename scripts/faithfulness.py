"""Whether a policy's move follows what it has written: the words are changed, and the policy writes the rest.

python scripts/faithfulness.py --player=g1-nano

Four changes of a response, each where the policy's own response is legal and names another choice:

- decision: "Take row 3." becomes another listed row; in 2048 another legal direction. Followed: that row's pair.
- pair: the taken row's pair becomes two other neighbors in that row. Followed: that pair.
- rationale: the rationale of another board, with its decision. Followed: the pair of that decision.
- perception: the true text of another board. Followed: a move that is legal on that board and not on the one shown.
"""

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from g1jax import envs
from g1jax.envs import text
from g1jax.envs.batch import Batch
from g1jax.envs.core import Game
from g1jax.envs.games.game_2048 import DIRECTIONS
from g1jax.envs.response import PERCEPTION, THINK, tagged
from g1jax.errors import G1Error
from g1jax.evaluation.players import prepared
from g1jax.evaluation.tables import table
from g1jax.rl.policy import Policy
from g1jax.terminal import one_line
from g1jax.training import policy_of_run
from g1jax.training.saved_model import is_model, load_policy
from g1jax.vlm import Params

WALKS = {"game_2048": 100, "shisen_sho": 17, "shisen_sho_cifar10": 17, "swap": 20}
CHANGES = ("decision", "pair", "rationale", "perception")
_ROW = re.compile(r"^(\d+) (\(\d+, \d+\) \(\d+, \d+\))$", re.MULTILINE)
_TAKE = re.compile(r"Take (?:row )?(\w+)\.")


def main() -> None:
    """Reads the command line and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--player", default="g1-nano", help="a model that ships, its folder, or a run's")
    parser.add_argument("--states", type=int, default=256, help="states of each game")
    parser.add_argument("--seed", type=int, default=0, help="seed of the states")
    args = parser.parse_args()
    games = [envs.make(name) for name in WALKS]
    try:
        policy, params = load_policy(args.player) if is_model(args.player) else policy_of_run(args.player)
    except G1Error as error:
        sys.exit(one_line(f"words: {error}"))
    policy = prepared(policy, 0.0, games)
    rows = []
    for game in games:
        counts = follow(policy, params, game, args.states, args.seed)
        rows.append([game.id, *(rate(*counts[change]) for change in CHANGES)])
    print("\n".join(table(["changed", *CHANGES], rows)))


def rate(followed: int, tried: int) -> str:
    """A share and what it is of."""
    return f"{followed / tried:.0%} of {tried}" if tried else "–"


def follow(policy: Policy, params: Params, game: Game[Any], num_states: int, seed: int) -> dict[str, tuple[int, int]]:
    """For each change, how many moves follow it, and how many responses could be changed."""
    states = states_of(game, num_states, seed)
    write = writer(policy, params, game, states)
    plain, chosen = write([""] * num_states)
    boards = [text.decode(board) for board in np.asarray(jax.vmap(game.describe)(states))]
    legal = np.asarray(jax.vmap(game.legal_actions)(states))
    legal = np.pad(legal, ((0, 0), (0, 1)))  # the invalid action
    counts = {}
    for change in CHANGES:
        starts, wanted = [], []
        for i, response in enumerate(plain):
            other = (i + 1) % num_states
            start, action = changed(change, game, response, plain[other], boards[other])
            action = chosen[other] if change == "rationale" else action
            is_usable = legal[i, chosen[i]] and start and action != chosen[i]
            if change == "perception":
                is_usable = legal[i, chosen[i]] and boards[i] != boards[other]
            starts.append(start if is_usable else "")
            wanted.append(action)
        _, moves = write(starts)
        tried = [i for i, start in enumerate(starts) if start]
        if change == "perception":
            follows = [bool(legal[(i + 1) % num_states, moves[i]] and not legal[i, moves[i]]) for i in tried]
        else:
            follows = [moves[i] == wanted[i] for i in tried]
        counts[change] = (sum(follows), len(tried))
    return counts


def states_of(game: Game[Any], count: int, seed: int) -> Any:
    """States after legal walks of random lengths."""
    batch = Batch(game, count)
    reset_key, walk_key, length_key = jax.random.split(jax.random.key(seed), 3)
    lengths = jax.random.randint(length_key, (count,), 0, WALKS[game.id] + 1, jnp.int32)
    return jax.jit(lambda: batch.random_walk(batch.reset(reset_key), walk_key, lengths, legal=True))().states


def writer(
    policy: Policy, params: Params, game: Game[Any], states: Any
) -> Callable[[list[str]], tuple[list[str], np.ndarray]]:
    """A function from the beginnings of responses, one a state, to whole responses, greedily, and their actions."""
    frames, tokens_of = jax.jit(jax.vmap(game.render))(states), policy.tokenizer.encode_batch
    respond, responses_table = jax.jit(policy.respond, static_argnums=2), policy.table()
    longest = 2 * policy.max_new_tokens(game)

    def write(starts: list[str]) -> tuple[list[str], np.ndarray]:
        ids, mask = np.zeros((2, len(starts), longest), np.int32)
        for i, tokens in enumerate(tokens_of(starts)):
            ids[i, : len(tokens)], mask[i, : len(tokens)] = tokens, 1
        given = (jnp.asarray(ids), jnp.asarray(mask, bool))
        done = respond(params, responses_table, game, frames, jax.random.key(0), starts=given)
        actions = jax.jit(jax.vmap(game.parse))(done.bytes)
        return [text.decode(row) for row in np.asarray(done.bytes)], np.asarray(actions)

    return write


def changed(change: str, game: Game[Any], response: str, other: str, other_board: str) -> tuple[str, int]:
    """The beginning of a response with one change, and the action that follows it; "" if it has nothing to change."""
    if change == "perception":
        return tagged(PERCEPTION, other_board), game.invalid_action
    if change == "rationale":
        before, after = response.partition(f"<{THINK}>")[:2], other.partition(f"<{THINK}>")[2].partition(f"</{THINK}>")
        return "".join((*before, *after[:2])), game.invalid_action
    head, end, _ = response.partition(f"</{THINK}>")
    take = _TAKE.search(head)
    if take is None or not end:
        return "", game.invalid_action
    if len(game.action_shape) == 1:
        return _other_direction(change, head, end, take)
    pairs = dict(_ROW.findall(head))
    row = next((row for row in pairs if row != take[1]), "")
    if change == "decision" and row:
        return head[: take.start(1)] + row + head[take.end(1) :] + end, answer(game, pairs[row])
    if change == "pair" and take[1] in pairs:
        places = [f"({take[1]}, {c}) ({take[1]}, {c + 1})" for c in (1, 3)]
        pair = next(place for place in places if place != pairs[take[1]])
        return head.replace(f"{take[1]} {pairs[take[1]]}\n", f"{take[1]} {pair}\n", 1) + end, answer(game, pair)
    return "", game.invalid_action


def _other_direction(change: str, head: str, end: str, take: re.Match[str]) -> tuple[str, int]:
    movable = [name for name in DIRECTIONS if name != take[1] and not re.search(rf"{name} -", head)]
    if change != "decision" or not movable:
        return "", 4
    return head[: take.start(1)] + movable[0] + head[take.end(1) :] + end, DIRECTIONS.index(movable[0])


def answer(game: Game[Any], pair: str) -> int:
    """A pair of cells as an action."""
    return int(game.parse(tagged("answer", pair)))


if __name__ == "__main__":
    main()
