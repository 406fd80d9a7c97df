"""Ours against transformers' torch Qwen2.5-VL: logits, gradients, positions, frames, folders."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs, vlm
from g1jax.rl.policy import Policy
from g1jax.teachers import token_budgets
from g1jax.training.recipes import PROMPTS
from g1jax.training.saved_model import SHIPPED
from g1jax.vlm import lora, weights
from g1jax.vlm.model import param_paths
from g1jax.vlm.rotary import token_positions
from tests.vlm import reference
from tests.vlm.reference import CASES, Batch, Case, torch, transformers

pytestmark = pytest.mark.filterwarnings("default")  # torch and transformers raise warnings

apply = jax.jit(vlm.apply, static_argnums=0)


def set_up(case: Case, folder: Path) -> tuple[Any, vlm.Config, vlm.Params, Batch]:
    model = reference.make_model(case)
    config, params = weights.load(reference.save_folder(model, folder))
    return model, config, params, reference.make_batch(case, config)


def mean_loss(config: vlm.Config, params: vlm.Params, batch: Batch) -> jax.Array:
    logits = vlm.apply(config, params, jnp.asarray(batch.tokens), jnp.asarray(batch.mask), jnp.asarray(batch.frames))
    logprobs = jax.nn.log_softmax(logits[:, :-1])
    taken = jnp.take_along_axis(logprobs, jnp.asarray(batch.tokens)[:, 1:, None], axis=2)[:, :, 0]
    is_scored = jnp.asarray(batch.mask[:, 1:] & batch.mask[:, :-1])
    return -jnp.sum(taken * is_scored.astype(jnp.float32)) / jnp.sum(is_scored.astype(jnp.float32))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_gradients_and_folders_agree(case: Case, tmp_path: Path) -> None:
    model, config, params, batch = set_up(case, tmp_path / "theirs")
    expected = reference.torch_logits(model, config, batch)
    vlm.check_prompts(config, batch.tokens, batch.mask, batch.frames)

    logits = np.asarray(apply(config, params, batch.tokens, batch.mask, batch.frames))
    assert np.std(expected[batch.mask]) > 0.3
    np.testing.assert_allclose(logits[batch.mask], expected[batch.mask], atol=1e-4, rtol=0)

    gradients = jax.jit(jax.grad(lambda params: mean_loss(config, params, batch)))(params)
    wanted = reference.torch_loss_gradients(model, config, batch)
    found = {
        weights.hf_name(path): weights._to_hf_layout(config.vision, path, np.asarray(leaf))
        for path, leaf in zip(param_paths(gradients), jax.tree.leaves(gradients), strict=True)
    }
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        error = np.linalg.norm(found[name] - gradient) / np.linalg.norm(gradient)
        assert error < 1e-3, (name, error)

    weights.save(config, params, tmp_path / "ours", max_shard_bytes=30_000)
    again = reference.load_folder(tmp_path / "ours")
    assert np.array_equal(reference.torch_logits(again, config, batch), expected)


def test_merged_lora_loads_in_transformers(tmp_path: Path) -> None:
    """With the same results as ours with LoRA attached."""
    _, config, params, batch = set_up(CASES[0], tmp_path / "theirs")
    spec = lora.LoRA(rank=2, targets=("model.*_proj", "visual.blocks.*"))
    rng = np.random.default_rng(0)
    own = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(0.1 * rng.standard_normal(leaf.shape), jnp.float32),
        lora.init(config, spec, jax.random.key(0)),
    )
    weights.save(config, lora.merge(params, own, spec), tmp_path / "merged")
    merged = reference.torch_logits(reference.load_folder(tmp_path / "merged"), config, batch)
    attached = np.asarray(apply(config, lora.attach(params, own, spec), batch.tokens, batch.mask, batch.frames))
    np.testing.assert_allclose(attached[batch.mask], merged[batch.mask], atol=1e-4, rtol=0)
    plain = np.asarray(apply(config, params, batch.tokens, batch.mask, batch.frames))
    assert np.abs(plain - attached)[batch.mask].max() > 0.05


def test_remat_changes_nothing(tmp_path: Path) -> None:
    _, config, params, batch = set_up(CASES[0], tmp_path)
    plain = jax.jit(jax.grad(lambda params: mean_loss(config, params, batch)))(params)
    remat = weights.load_config(tmp_path, is_remat=True)
    again = jax.jit(jax.grad(lambda params: mean_loss(remat, params, batch)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4), plain, again)


def test_bfloat16_is_as_accurate_as_torchs(tmp_path: Path) -> None:
    model, config, _, batch = set_up(CASES[0], tmp_path)
    expected = reference.torch_logits(model, config, batch)
    half, params = weights.load(tmp_path, dtype="bfloat16", param_dtype="bfloat16")
    logits = apply(half, params, batch.tokens, batch.mask, batch.frames)
    assert logits.dtype == jnp.float32
    theirs = reference.torch_logits(model.bfloat16(), config, batch)
    error, their_error = (np.abs(np.asarray(x) - expected)[batch.mask].mean() for x in (logits, theirs))
    assert error < 1.3 * their_error


@pytest.mark.parametrize("seed", range(6))
def test_positions_are_get_rope_index(seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = Case(
        name="positions",
        image=tuple(28 * rng.integers(1, 6, 2)),
        texts=tuple(map(tuple, rng.integers(0, 7, (4, 2)).tolist())),
        padding=("left", "right")[seed % 2],
        num_images=int(rng.integers(1, 4)),
    )
    model = reference.make_model(case)
    config = vlm.from_hf(model.config.to_dict())
    batch = reference.make_batch(case, config, seed)
    inputs = reference.torch_inputs(config, batch)
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    expected, delta = model.model.get_rope_index(**{name: inputs[name] for name in names})
    height, width = (jnp.full(4, side // 28, jnp.int32) for side in case.image)
    mask = jnp.asarray(batch.mask)
    positions, following = token_positions(config, jnp.asarray(batch.tokens) == reference.IMAGE, mask, height, width)
    assert np.array_equal(np.moveaxis(np.asarray(positions), 2, 0)[:, batch.mask], expected.numpy()[:, batch.mask])
    assert np.array_equal(following, delta.numpy()[:, 0] + batch.mask.sum(1))


def test_sequence_positions_are_those_without_token_types(tmp_path: Path) -> None:
    """With `sequence` positions, transformers computes the same if it is given no mm_token_type_ids."""
    config = vlm.preset("nano")
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, num_places=0))  # torch has none
    params = vlm.init(config, jax.random.key(0))
    params = jax.tree.map(lambda x: x * 3.0 if x.ndim == 2 else x, params)
    weights.save(config, params, tmp_path)
    assert weights.load_config(tmp_path) == config
    batch = reference.make_batch(Case(name="one row", image=(112, 140)), config)
    inputs = reference.torch_inputs(config, batch)
    del inputs["mm_token_type_ids"]
    with torch.no_grad():
        expected = reference.load_folder(tmp_path)(**inputs).logits.numpy()
    logits = apply(config, params, batch.tokens, batch.mask, batch.frames)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def test_games_of_different_sizes_share_a_batch(tmp_path: Path) -> None:
    _, config, params, _ = set_up(CASES[0], tmp_path)
    sizes = [(56, 84), (112, 56)]
    batches = [
        reference.make_batch(Case(name="group", image=size, texts=((2, 3), (2, 3))), config, seed)
        for seed, size in enumerate(sizes)
    ]
    longest = max(batch.tokens.shape[1] for batch in batches)
    pads = [((0, 0), (longest - batch.tokens.shape[1], 0)) for batch in batches]
    tokens, mask = (
        np.concatenate([np.pad(getattr(b, name), pad) for b, pad in zip(batches, pads, strict=True)])
        for name in ("tokens", "mask")
    )
    frames = tuple(batch.frames for batch in batches)
    vlm.check_prompts(config, tokens, mask, frames)
    together = np.asarray(apply(config, params, tokens, mask, frames))
    apart = [np.asarray(apply(config, params, b.tokens, b.mask, b.frames)) for b in batches]
    for rows, logits in zip((together[:2], together[2:]), apart, strict=True):
        np.testing.assert_allclose(rows[:, -logits.shape[1] :], logits, atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "changes"),
    [((56, 56), {}), ((84, 196), {}), ((112, 56), {"patch_size": 28, "merge_size": 1}), ((60, 80), {"patch_size": 10})],
)
def test_frames_become_the_processors_patches(size: tuple[int, int], changes: dict[str, Any]) -> None:
    config = vlm.VisionConfig(
        depth=1, hidden_size=16, intermediate_size=16, num_heads=4, full_attention_blocks=(), **changes
    )
    frames = np.random.default_rng(0).integers(0, 256, (3, *size, 3)).astype(np.uint8)
    processor = transformers.Qwen2VLImageProcessorPil(
        patch_size=config.patch_size, merge_size=config.merge_size, min_pixels=28 * 28, do_resize=True
    )
    expected = processor(list(frames), return_tensors="np")
    found = np.asarray(jax.jit(vlm.pixel_values, static_argnums=0)(config, frames))
    assert found.shape == expected["pixel_values"].shape
    np.testing.assert_allclose(found, expected["pixel_values"], atol=1e-6, rtol=0)
    assert [tuple(grid) for grid in expected["image_grid_thw"][:, 1:]] == [
        (size[0] // config.patch_size, size[1] // config.patch_size)
    ] * 3


def test_padding_changes_nothing(tmp_path: Path) -> None:
    _, config, params, batch = set_up(CASES[0], tmp_path)
    plain = np.asarray(apply(config, params, batch.tokens, batch.mask, batch.frames))
    for left, right in itertools.product((0, 3), (0, 2)):
        tokens, mask = (np.pad(x, ((0, 0), (left, right))) for x in (batch.tokens, batch.mask))
        padded = np.asarray(apply(config, params, tokens, mask, batch.frames))
        np.testing.assert_allclose(padded[:, left : left + plain.shape[1]], plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "game_id"), [("base", "game_2048"), ("g1-nano", "swap")])
def test_a_model_that_ships_is_a_plain_qwen_and_generates_the_same_tokens_in_transformers(
    name: str, game_id: str
) -> None:
    tokenizer, (config, params) = vlm.Tokenizer.load(SHIPPED[name]), vlm.load(SHIPPED[name])
    model = transformers.AutoModelForImageTextToText.from_pretrained(SHIPPED[name], dtype=torch.float32).eval()
    game = envs.make(game_id)
    greedy = dataclasses.replace(vlm.PLAIN, temperature=0.0)
    policy = Policy(
        config, tokenizer, greedy, budgets=token_budgets(tokenizer, [game]), templates=tuple(PROMPTS.items())
    )
    frame = game.render(game.reset(jax.random.key(1)))[None]
    respond = jax.jit(lambda params, table, frame, key: policy.respond(params, table, game, frame, key))
    ours = respond(params, policy.table(), frame, jax.random.key(0))
    wanted = np.asarray(ours.tokens[0])[np.asarray(ours.mask[0])]

    prompt = torch.tensor(policy.prompt_tokens(game)[None].astype(np.int64))
    rows, columns = (side // config.vision.patch_size for side in game.frame_shape[:2])
    written = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        pixel_values=torch.tensor(np.asarray(vlm.pixel_values(config.vision, np.asarray(frame)))),
        image_grid_thw=torch.tensor([[1, rows, columns]]),
        mm_token_type_ids=(prompt == config.image_token_id).int(),
        max_new_tokens=len(wanted),
        do_sample=False,
        eos_token_id=list(tokenizer.stop_tokens),
        pad_token_id=tokenizer.pad_token,
    )
    np.testing.assert_array_equal(written[0, prompt.shape[1] :].numpy(), wanted)
    assert bool(game.perception_exact(jnp.asarray(ours.bytes[0]), game.reset(jax.random.key(1))))
