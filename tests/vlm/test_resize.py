"""Frames that are not made of whole visual tokens are resized as Qwen's own processor resizes them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as qwen

from g1jax import vlm
from g1jax.errors import ConfigError
from g1jax.vlm.config_hf import from_hf, to_hf
from g1jax.vlm.preprocess import grid_of, patches, pixel_values
from g1jax.vlm.resize import MAX_TOKENS, resize, whole_size

SIZES = [
    ((128, 128), (140, 140)),  # higher and wider
    ((460, 400), (448, 392)),  # lower and narrower
    ((640, 840), (644, 840)),  # higher alone
    ((30, 50), (28, 56)),  # lower and wider
    ((50, 30), (56, 28)),  # higher and narrower
    ((13, 200), (28, 196)),
]


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_pixels_are_pillows(before: tuple[int, int], after: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, *before, 3), np.uint8)
    found = np.asarray(jax.jit(resize, static_argnums=(1, 2))(frames, *after))
    size = after[1], after[0]
    expected = np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BICUBIC)) for f in frames])
    difference = abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_a_frame_of_that_size_is_left_alone() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 56, 84, 3), np.uint8)
    np.testing.assert_array_equal(resize(jnp.asarray(frames), 56, 84), frames)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 6000), st.integers(1, 6000), st.sampled_from([14, 28]))
def test_sizes_are_the_processors(height: int, width: int, token: int) -> None:
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ConfigError, match="one at most 200 times the other"):
            whole_size(height, width, token)
        return
    expected = qwen.smart_resize(height, width, token, token**2, MAX_TOKENS * token**2)
    assert whole_size(height, width, token) == expected


def test_an_empty_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="an image of 0×28 pixels"):
        whole_size(0, 28, 28)


def test_patches_are_the_processors() -> None:
    vision = vlm.preset("nano").vision
    assert grid_of(vision, 100, 130) == (4, 5)
    frame = np.random.default_rng(1).integers(0, 256, (100, 130, 3), np.uint8)
    size = {"shortest_edge": vision.token_size**2, "longest_edge": MAX_TOKENS * vision.token_size**2}
    processor = qwen.Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        merge_size=vision.merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        size=size,
    )
    expected = processor(Image.fromarray(frame), return_tensors="np")
    assert expected["image_grid_thw"].tolist() == [[1, 4 * vision.merge_size, 5 * vision.merge_size]]
    found = np.asarray(pixel_values(vision, frame[None]))
    step = 1 / 255 / 0.26  # a gray level
    assert np.abs(found - expected["pixel_values"]).max() < step * 1.05
    assert (np.abs(found - expected["pixel_values"]) > 1e-5).mean() < 1e-3


def test_images_of_a_given_size() -> None:
    config = vlm.preset("nano")
    vision = dataclasses.replace(config.vision, image_size=(840, 640))
    assert grid_of(vision, 128, 128) == grid_of(vision, 460, 400) == (30, 23)
    config = dataclasses.replace(config, vision=dataclasses.replace(vision, image_size=(56, 84)))
    assert from_hf(to_hf(config)).vision == config.vision
    frames = np.random.default_rng(0).integers(0, 256, (2, 28, 42, 3), np.uint8)
    larger = np.asarray(resize(jnp.asarray(frames), 56, 84))
    np.testing.assert_array_equal(patches(config.vision, frames), patches(config.vision, larger))
    with pytest.raises(ConfigError, match="expected a height and a width"):
        dataclasses.replace(vision, image_size=(640,))
