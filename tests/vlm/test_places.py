"""The position embeddings of visual tokens: values, gradients, files and the largest image."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import vlm
from g1jax.vlm import weights
from tests.vlm.shapes import TINY, make_batch, make_params

PLACED = dataclasses.replace(TINY, vision=dataclasses.replace(TINY.vision, num_places=5))


def test_a_token_gets_its_row_and_its_column() -> None:
    params, frames = make_params(PLACED), make_batch(image=(3, 4))[2]
    places = params["visual"]["places"]
    assert places["rows"].shape == places["columns"].shape == (5, 16)
    with_places = vlm.bind(PLACED, params).encode_images(frames)
    bare = {**params, "visual": {name: part for name, part in params["visual"].items() if name != "places"}}
    added = np.asarray(with_places - vlm.bind(TINY, bare).encode_images(frames)).reshape(len(frames), 3, 4, 16)
    for row, column in np.ndindex(3, 4):
        expected = places["rows"][row] + places["columns"][column]
        np.testing.assert_allclose(added[:, row, column], np.tile(expected, (len(frames), 1)), atol=1e-5)
    assert len({added[0, row, column].round(4).tobytes() for row, column in np.ndindex(3, 4)}) == 12


def test_gradients_reach_the_used_embeddings() -> None:
    params, (tokens, mask, frames) = make_params(PLACED), make_batch(image=(2, 3))

    @jax.jit
    def gradient(params: vlm.Params) -> vlm.Params:
        return jax.grad(lambda p: jnp.sum(vlm.apply(PLACED, p, tokens, mask, frames)[:, -1] ** 2))(params)

    places = gradient(params)["visual"]["places"]
    for name, used in (("rows", 2), ("columns", 3)):
        is_used = np.abs(places[name]).max(axis=1) > 0
        assert is_used.tolist() == [i < used for i in range(5)]


def test_a_folder_keeps_the_embeddings(tmp_path: Path) -> None:
    params = make_params(PLACED)
    weights.save(PLACED, params, tmp_path)
    config, found = weights.load(tmp_path)
    assert config == PLACED
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_a_larger_image_is_refused() -> None:
    frames = make_batch(image=(2, 6))[2]
    with pytest.raises(vlm.ConfigError, match="2 × 6 visual tokens, and the model has embeddings for 5 rows"):
        vlm.bind(PLACED, make_params(PLACED)).encode_images(frames)
    with pytest.raises(vlm.ConfigError, match="num_places=-1"):
        dataclasses.replace(TINY.vision, num_places=-1)
