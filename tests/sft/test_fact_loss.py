"""The facts' loss: its value, that it trains the vision tower, and that no exported policy has the heads."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from g1jax import envs, vlm
from g1jax.rl.policy import Policy
from g1jax.sft.fact_loss import HEADS, Facts, facts_loss, facts_of, init_heads
from g1jax.training import ExperimentError, run
from g1jax.training.run_folder import read_metrics
from g1jax.training.saved_run import open_run
from g1jax.training.setup import make_setup
from g1jax.vlm.model import param_paths
from tests.training import tiny

ONE_PATCH = dataclasses.replace(
    tiny.CONFIG, vision=dataclasses.replace(tiny.CONFIG.vision, patch_size=28, merge_size=1)
)
GAMES = (envs.make("game_2048", rows=2, cols=2), envs.make("shisen_sho", rows=2, cols=2))


def states_of(game: envs.Game[Any], count: int) -> Any:
    return jax.vmap(game.reset)(jax.random.split(jax.random.key(0), count))


def test_the_loss_is_the_cross_entropy_of_every_fact_and_pair() -> None:
    policy, game = Policy(ONE_PATCH, tiny.TOKENIZER), GAMES[1]
    facts = facts_of(game, states_of(game, 3))
    heads = init_heads(policy, GAMES, jax.random.key(1))[game.id]
    visual_tokens = jax.random.normal(jax.random.key(2), (3, 4, 32))
    loss, metrics = facts_loss(heads, visual_tokens, facts)

    def entropy(logits: np.ndarray, truth: Any) -> float:
        likely = 1 / (1 + np.exp(-logits))
        return float(-np.log(np.where(np.asarray(truth), likely, 1 - likely)).mean())

    kernels = {name: np.asarray(head["kernel"], np.float64) for name, head in heads.items()}
    tokens = np.asarray(visual_tokens, np.float64)
    pairs = np.einsum("bid,bjd->bij", tokens @ kernels["first"], tokens @ kernels["second"]) / 8 - 3
    assert facts.pairs is not None
    assert facts.pairs.any()
    wanted = entropy(tokens @ kernels["cells"] - 2, facts.cells) + entropy(pairs, facts.pairs)
    np.testing.assert_allclose(float(loss), wanted, rtol=1e-5)
    assert set(metrics) == {"facts_loss", "facts_right", "best_pair_legal"}


def test_heads_that_know_everything_are_right() -> None:
    game = GAMES[1]
    facts = facts_of(game, states_of(game, 3))
    assert facts.pairs is not None
    size = game.rows * game.cols
    visual_tokens = jnp.concatenate(
        [jnp.where(facts.cells, 20.0, 0.0), jnp.tile(jnp.eye(size)[None], (3, 1, 1))], axis=2
    )
    cells = jnp.eye(visual_tokens.shape[2])[:, : facts.cells.shape[2]]
    first = jnp.zeros((visual_tokens.shape[2], size)).at[-size:].set(jnp.where(facts.pairs[0], 100.0, 0.0))
    second = jnp.zeros((visual_tokens.shape[2], size)).at[-size:].set(jnp.eye(size))
    heads = {"cells": {"kernel": cells}, "first": {"kernel": first}, "second": {"kernel": second}}
    same = Facts(facts.cells, jnp.tile(facts.pairs[:1], (3, 1, 1)))
    loss, metrics = facts_loss(heads, visual_tokens, same)
    assert float(metrics["facts_right"]) == float(metrics["best_pair_legal"]) == 1
    assert float(loss) < 0.2


def test_facts_are_learned_by_the_tower_alone() -> None:
    policy, game = Policy(ONE_PATCH, tiny.TOKENIZER), GAMES[1]
    states = states_of(game, 32)
    frames, facts = jax.vmap(game.render)(states), facts_of(game, states)
    params = {**vlm.init(ONE_PATCH, jax.random.key(0)), HEADS: init_heads(policy, GAMES, jax.random.key(1))}

    def loss(params: Any) -> jax.Array:
        visual_tokens = vlm.see(ONE_PATCH, {key: params[key] for key in ("model", "visual")}, frames)
        return facts_loss(params[HEADS][game.id], visual_tokens, facts)[0]

    compiled = jax.jit(jax.value_and_grad(loss))
    before, gradients = compiled(params)
    sizes = {key: float(optax.tree.norm(tree)) for key, tree in gradients.items()}
    assert sizes["visual"] > 1e-3
    assert sizes[HEADS] > 1e-3
    assert sizes["model"] == 0
    stepped = jax.tree.map(lambda param, gradient: param - 0.05 * gradient, params, gradients)
    assert float(compiled(stepped)[0]) < float(before)


@pytest.mark.slow
def test_rl_and_exports_have_no_heads(tmp_path: Path) -> None:
    model = tmp_path / "model"
    vlm.save(ONE_PATCH, vlm.init(ONE_PATCH, jax.random.key(0)), model)
    tiny.TOKENIZER.save(model)
    experiment = tiny.make_experiment(
        str(model), tmp_path / "run", games=(GAMES[0].id,), cold_start__steps=2, cold_start__facts_weight=3.0,
        rl__iterations=1, evaluation__episodes=0, log__checkpoint_every=1,
    )  # fmt: skip
    folder = run(experiment)
    for line in read_metrics(folder):
        assert (f"{GAMES[0].id}/facts_right" in line) == (line["phase"] == "cold_start")
    config = make_setup(experiment).policy.config
    for step in (2, 3):
        assert param_paths(open_run(folder).params(step)) == param_paths(vlm.param_shapes(config))


def test_facts_need_a_visual_token_a_cell(model: str, tmp_path: Path) -> None:
    experiment = tiny.make_experiment(model, tmp_path / "run", cold_start__facts_weight=1.0)
    levels = {**tiny.LEVELS, "game_2048": {**tiny.LEVELS["game_2048"], "cell_size": 56}}
    with pytest.raises(ExperimentError, match="game_2048 is 4 × 4 visual tokens and its board 2 × 2 cells"):
        make_setup(dataclasses.replace(experiment, levels=levels))
    assert not (tmp_path / "run").exists()
