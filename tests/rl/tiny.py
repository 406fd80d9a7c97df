"""A policy and games so small that tests of training take seconds, and synthetic rollouts to learn from."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from g1jax import envs, vlm
from g1jax.envs.core import Game
from g1jax.rl.policy import Policy, Responses
from g1jax.rl.rewards import Reward
from g1jax.rl.rollout import Rollout

TOKENIZER = vlm.Tokenizer.load("games")
CONFIG = vlm.Config(
    vision=vlm.VisionConfig(
        depth=1, hidden_size=16, intermediate_size=32, num_heads=2, full_attention_blocks=(0,), temporal_patch_size=1
    ),
    text=vlm.TextConfig(
        vocab_size=TOKENIZER.vocab_size, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2,
        num_kv_heads=2, positions="sequence", rope_theta=10_000.0, max_length=256,
    ),
)  # fmt: skip
GAMES: tuple[Game[Any], ...] = (
    envs.make("game_2048", rows=2, cols=2),
    envs.make("shisen_sho", rows=2, cols=2),
)
LENGTHS = {"game_2048": 12, "shisen_sho": 16}
TEMPLATES = (("game_2048", "2048"), ("shisen_sho", "Pairs"))
POLICY = Policy(CONFIG, TOKENIZER, budgets=tuple((game, LENGTHS[game.id]) for game in GAMES), templates=TEMPLATES)


def make_params(seed: int = 0, factor: float = 5.0) -> vlm.Params:
    """Random params, large enough that image and text matter."""

    def grow(path: Any, leaf: jax.Array) -> jax.Array:
        return leaf * factor if path[-1].key in ("kernel", "embedding") else leaf

    params: vlm.Params = jax.tree.map_with_path(grow, vlm.init(CONFIG, jax.random.key(seed)))
    return params


def make_rollouts(params: vlm.Params, num_states: int, num_samples: int, seed: int = 0) -> tuple[Rollout, ...]:
    """Synthetic responses of several lengths and rewards, with logprobs close to the policy's; some rows have ended."""
    rng = np.random.default_rng(seed)
    rows, made = num_states * num_samples, []
    for game in GAMES:
        length = LENGTHS[game.id]
        states = jax.vmap(game.reset)(jax.random.split(jax.random.key(seed), num_states))
        frames = jax.vmap(game.render)(states)
        mask = jnp.asarray(np.arange(length)[None] < rng.integers(1, length + 1, (rows, 1)))
        tokens = jnp.asarray(rng.integers(10, CONFIG.text.vocab_size, (rows, length)).astype(np.int32))
        logprobs = jax.jit(POLICY.score, static_argnums=1)(params, game, frames, tokens, mask).logprobs
        logprobs += jnp.asarray(rng.normal(0, 0.15, (rows, length)).astype(np.float32))
        returns = jnp.asarray(rng.normal(0, 1, rows).astype(np.float32))
        ones = jnp.ones(rows, bool)
        responses = Responses(tokens, mask, jnp.where(mask, logprobs, 0.0), jnp.zeros((rows, 8), jnp.uint8))
        running = jnp.asarray(rng.random(rows) < 0.7)
        made.append(
            Rollout(
                frames, responses, Reward(returns, returns, returns, returns, ones, ones), returns, ones, ones, running
            )
        )
    return tuple(made)
