"""Generation against scoring, plain `apply`, and torch's generate."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import vlm
from g1jax.vlm import generation, left_pad, output_layer, stacking

VISION = vlm.VisionConfig(depth=1, hidden_size=16, intermediate_size=24, num_heads=2, full_attention_blocks=(0,))
TEXT = vlm.TextConfig(
    vocab_size=41, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2,
    positions="mrope", mrope_section=(0, 1, 1),
)  # fmt: skip
CONFIG = vlm.Config(vision=VISION, text=TEXT)
IMAGE = CONFIG.image_token_id

STATIC = ("max_new_tokens", "sampling", "stop_tokens", "pad_token", "num_samples")
generate = jax.jit(vlm.generate, static_argnums=0, static_argnames=STATIC)
score = jax.jit(vlm.score, static_argnums=0, static_argnames="sampling")
apply = jax.jit(vlm.apply, static_argnums=0)


def make_params(config: vlm.Config, seed: int = 0) -> vlm.Params:
    """Params large enough that the image and every token matter."""
    params: vlm.Params = jax.tree.map(lambda x: x * 15.0 if x.ndim == 2 else x, vlm.init(config, jax.random.key(seed)))
    return params


def make_prompts(seed: int = 0, rows: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompts of different lengths, with padding on both sides."""
    rng = np.random.default_rng(seed)
    tokens, mask = np.zeros((rows, 16), np.int32), np.zeros((rows, 16), bool)
    for i in range(rows):
        before, after = rng.integers(0, 4, 2) + 1
        line = [*rng.integers(7, 41, before), 3, *[IMAGE] * 6, 4, *rng.integers(7, 41, after)]
        start = rng.integers(0, 16 - len(line) + 1)
        tokens[i, start : start + len(line)], mask[i, start : start + len(line)] = line, True
    frames = rng.integers(0, 256, (rows, 56, 84, 3)).astype(np.uint8)
    return tokens, mask, frames


def test_left_pad() -> None:
    tokens, mask = left_pad(jnp.array([[7, 8, 0, 9, 0], [1, 2, 3, 4, 5]]), jnp.array([[1, 1, 0, 1, 0], [1] * 5]) == 1)
    assert tokens[0, 2:].tolist() == [7, 8, 9]
    assert tokens[1].tolist() == [1, 2, 3, 4, 5]
    assert mask.tolist() == [[False, False, True, True, True], [True] * 5]


@pytest.mark.parametrize("positions", ["mrope", pytest.param("sequence", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "sampling",
    [
        vlm.Sampling(),
        vlm.Sampling(temperature=0.7, top_k=9),
        pytest.param(vlm.Sampling(top_p=0.9), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_sampler_is_the_scorer(positions: Any, sampling: vlm.Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "FIRST_STAGE", 4)  # for several stages
    monkeypatch.setattr(generation, "STAGE_GROWTH", 2)
    monkeypatch.setattr(output_layer, "CHUNK_SIZE", 3000)  # and several chunks
    text = vlm.TextConfig(**{**TEXT.__dict__, "positions": positions})
    config = vlm.Config(vision=VISION, text=text)
    params, (tokens, mask, frames) = make_params(config), make_prompts()
    stop = (11, 12, 13)
    response = generate(
        config, params, tokens, mask, frames, jax.random.key(5),
        max_new_tokens=21, sampling=sampling, stop_tokens=stop, pad_token=2, num_samples=3,
    )  # fmt: skip
    lengths = np.asarray(response.response_mask.sum(axis=1))
    assert len(set(lengths.tolist())) > 3, "rows should stop at different places"
    for row, row_mask, length in zip(response.response_tokens, response.response_mask, lengths, strict=True):
        assert row_mask.tolist() == [True] * length + [False] * (21 - length)
        assert row[length:].tolist() == [2] * (21 - length)
        assert not np.isin(row[: length - 1], stop).any()
        assert length == 21 or int(row[length - 1]) in stop
    repeated = [np.repeat(x, 3, axis=0) for x in (tokens, mask, frames)]
    found = score(
        config, params, repeated[0], repeated[1], response.response_tokens, response.response_mask, repeated[2],
        sampling=sampling,
    )  # fmt: skip
    np.testing.assert_allclose(found.logprobs, response.logprobs, atol=1e-5, rtol=0)
    assert np.std(np.asarray(found.logprobs)[np.asarray(response.response_mask)]) > 0.1
    assert (np.asarray(found.entropy)[~np.asarray(response.response_mask)] == 0).all()


def test_score_is_apply() -> None:
    params, (tokens, mask, frames) = make_params(CONFIG), make_prompts(1)
    rng = np.random.default_rng(0)
    responses = rng.integers(7, 41, (4, 5)).astype(np.int32)
    responses[0, 1] = IMAGE  # in a response, so text
    responses_mask = np.arange(5)[None] < np.array([5, 3, 1, 4])[:, None]
    found = score(CONFIG, params, tokens, mask, responses, responses_mask, frames)
    for row in range(1, 4):
        length = int(responses_mask[row].sum())
        line = np.concatenate([tokens[row][mask[row]], responses[row, :length]])[None]
        logits = apply(CONFIG, params, line, np.ones(line.shape, bool), frames[row : row + 1])
        logprobs = jax.nn.log_softmax(logits[0, -length - 1 : -1])
        expected = np.asarray(logprobs)[np.arange(length), responses[row, :length]]
        np.testing.assert_allclose(found.logprobs[row, :length], expected, atol=1e-5)
        np.testing.assert_allclose(found.entropy[row, :length], -(np.exp(logprobs) * logprobs).sum(1), atol=1e-5)


def test_chunks_have_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    params, (tokens, mask, frames) = make_params(CONFIG), make_prompts(1)
    responses = np.random.default_rng(0).integers(7, 41, (4, 5)).astype(np.int32)
    everywhere = np.ones(responses.shape, bool)

    def loss(params: vlm.Params) -> jax.Array:
        arrays = [jnp.asarray(x) for x in (tokens, mask, responses, everywhere, frames)]
        found = vlm.score(CONFIG, params, arrays[0], arrays[1], arrays[2], arrays[3], arrays[4])
        return jnp.mean(found.logprobs) + 0.1 * jnp.mean(found.entropy)

    whole = jax.jit(jax.grad(loss))(params)
    monkeypatch.setattr(output_layer, "CHUNK_SIZE", 400)
    chunked = jax.jit(jax.grad(lambda params: loss(params)))(params)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(chunked), strict=True):
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(a) + 1e-7


def test_samples_of_one_prefill_follow_the_models_distribution() -> None:
    params, (tokens, mask, frames) = make_params(CONFIG), make_prompts(2, rows=2)
    count = 4000
    response = generate(
        CONFIG, params, tokens, mask, frames, jax.random.key(1), max_new_tokens=1, num_samples=count,
        sampling=vlm.Sampling(temperature=1.5),
    )  # fmt: skip
    padded = left_pad(jnp.asarray(tokens), jnp.asarray(mask))
    logits = apply(CONFIG, params, *padded, frames)[:, -1]
    expected = np.asarray(jax.nn.softmax(logits / 1.5)) * count
    for row in range(2):
        drawn = np.asarray(response.response_tokens[row * count : (row + 1) * count, 0])
        observed = np.bincount(drawn, minlength=41)
        chi_square = ((observed - expected[row]) ** 2 / expected[row]).sum()
        assert chi_square < 40 + 5 * np.sqrt(2 * 40)


def test_a_given_start_is_a_longer_prompt() -> None:
    params, (tokens, mask, frames) = make_params(CONFIG), make_prompts(3)
    whole = generate(CONFIG, params, tokens, mask, frames, jax.random.key(0), max_new_tokens=9, sampling=vlm.GREEDY)
    start, start_mask = np.asarray(whole.response_tokens[:, :4]), np.arange(4)[None] < np.array([4, 2, 3, 0])[:, None]
    longer = [np.concatenate(pair, axis=1) for pair in ((tokens, start), (mask, start_mask))]
    rest = generate(CONFIG, params, *longer, frames, jax.random.key(0), max_new_tokens=5, sampling=vlm.GREEDY)
    for row, given in enumerate((4, 2, 3, 0)):
        assert rest.response_tokens[row].tolist() == whole.response_tokens[row, given : given + 5].tolist()


@pytest.mark.parametrize("name", ["mqa_left_padded", "right_padded_tied", "two_images"])
def test_greedy_tokens_are_torchs(name: str, tmp_path: Path) -> None:
    reference = pytest.importorskip("tests.vlm.reference")
    case = next(case for case in reference.CASES if case.name == name)
    model = reference.make_model(case)
    config, params = vlm.load(reference.save_folder(model, tmp_path))
    batch = reference.make_batch(case, config)
    padded = [np.asarray(x) for x in left_pad(jnp.asarray(batch.tokens), jnp.asarray(batch.mask))]
    inputs = reference.torch_inputs(config, reference.Batch(*padded, batch.frames))
    expected = model.generate(**inputs, max_new_tokens=64, do_sample=False, pad_token_id=0, eos_token_id=None)
    response = generate(
        config, params, batch.tokens, batch.mask, batch.frames, jax.random.key(0),
        max_new_tokens=64, sampling=vlm.GREEDY,
    )  # fmt: skip
    assert np.array_equal(response.response_tokens, expected[:, batch.tokens.shape[1] :].numpy())
    assert len(np.unique(response.response_tokens)) > 8


def test_a_prompt_longer_than_the_context_is_refused_before_any_device_work() -> None:
    """Shapes are enough, so it is only traced."""
    text = vlm.TextConfig(**{**TEXT.__dict__, "max_length": 20})
    config = vlm.Config(vision=VISION, text=text)
    params, (tokens, mask, frames) = vlm.param_shapes(config), map(jnp.asarray, make_prompts())
    responses = jnp.zeros((4, 5), jnp.int32)

    def write(num_new: int) -> None:
        key = jax.random.key(0)
        jax.eval_shape(
            lambda params: vlm.generate(config, params, tokens, mask, frames, key, max_new_tokens=num_new), params
        )

    def read(count: int) -> None:
        given = responses[:, :count], jnp.ones((4, count), bool)
        jax.eval_shape(lambda params: vlm.score(config, params, tokens, mask, *given, frames), params)

    for function in (write, read):
        function(4)
        with pytest.raises(vlm.ConfigError, match="21 tokens is longer than the context, 20: 16 of the prompt and 5"):
            function(5)


def test_raw_keys_equal_typed_ones_and_other_values_are_refused() -> None:
    params, (tokens, mask, frames) = vlm.param_shapes(CONFIG), make_prompts()

    def write(key: Any) -> Any:
        generate = functools.partial(vlm.generate, CONFIG, max_new_tokens=3)
        return jax.eval_shape(generate, params, tokens, mask, frames, key)

    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 41)).astype(np.float32))
    typed, raw = jax.random.key(7), jax.random.PRNGKey(7)
    for a, b in ((typed, raw), (jax.random.split(typed, 4), jax.random.split(raw, 4))):
        assert write(a) == write(b)
        typed_tokens, raw_tokens = (vlm.sample(vlm.PLAIN, logits, key)[0] for key in (a, b))
        np.testing.assert_array_equal(typed_tokens, raw_tokens)
    for key in (np.int32(7), np.zeros(2)):
        with pytest.raises(vlm.ConfigError, match=r"is not a random key: create one with jax\.random\.key"):
            write(key)
    with pytest.raises(vlm.ConfigError, match=r"key\[3\]: expected one for all, or one for each of 4 responses"):
        write(jax.random.split(typed, 3))


@pytest.mark.parametrize(
    "config", [pytest.param(CONFIG, marks=pytest.mark.slow), dataclasses.replace(CONFIG, is_scanned=True)]
)
def test_a_smaller_batch_of_running_rows_writes_the_same(config: vlm.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "FIRST_STAGE", 8)  # for several stages
    params, (tokens, mask, frames) = make_params(CONFIG), make_prompts()
    params = stacking.stack_layers(params) if config.is_scanned else params
    sizes = record_batches(monkeypatch)
    given = params, tokens, mask, frames, jax.random.split(jax.random.key(3), 16)
    write = functools.partial(vlm.generate, config, max_new_tokens=24, stop_tokens=tuple(range(7, 11)), num_samples=4)
    expected, found = (jax.jit(functools.partial(write, compact_every=every))(*given) for every in (0, 3))
    lengths = np.asarray(expected.response_mask).sum(axis=1)
    assert len(set(lengths.tolist())) > 4
    assert lengths.min() < 4 < 12 < lengths.max()
    assert sizes == {16, 8, 4, 2}
    np.testing.assert_array_equal(found.response_tokens, expected.response_tokens)
    np.testing.assert_array_equal(found.response_mask, expected.response_mask)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5, rtol=0)


def record_batches(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The batch sizes that a decoding loop was run with."""
    sizes: set[int] = set()
    forward = generation._Generator._forward

    def recorded(self: Any, state: Any) -> Any:
        jax.debug.callback(lambda: sizes.add(len(state.is_done)))
        return forward(self, state)

    monkeypatch.setattr(generation._Generator, "_forward", recorded)
    return sizes
