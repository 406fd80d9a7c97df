"""The mask of a response's perception, for tokenizers that split tags, spaces and characters in any way."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from g1jax import envs, vlm
from g1jax.envs import text
from g1jax.rl.policy import Policy
from g1jax.sft.batch import tokenize, tokens_of
from g1jax.teachers.budget import sample_responses
from tests.training import tiny

GAME = envs.make("game_2048")
QWEN_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
RESPONSE = "<perception>{0} | 2\n- | {0}</perception><think>{0} -</think><answer>3</answer>"
KINDS = ("games", "qwen", "long", "trimmed")


def make_backend(kind: str) -> Tokenizer:
    """`qwen`: its pre-tokenizer and normalizer. `long`: merges across tags. `trimmed`: offsets without spaces."""
    backend = Tokenizer(models.BPE())
    bytewise = functools.partial(pre_tokenizers.ByteLevel, use_regex=False)
    if kind == "qwen":
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(QWEN_PIECES), "isolated"), bytewise(add_prefix_space=False)]
        )
    else:
        backend.pre_tokenizer = bytewise(add_prefix_space=kind == "trimmed")
        backend.post_processor = processors.ByteLevel(trim_offsets=kind == "trimmed")
    backend.decoder = decoders.ByteLevel()
    size = 700 if kind == "long" else 330
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([RESPONSE.format(name) for name in ("4", "Red circle", "漢", "é", "🙂")] * 9, trainer)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return backend


@functools.cache
def policy_of(kind: str) -> Policy:
    if kind == "games":
        return Policy(tiny.CONFIG, tiny.TOKENIZER, budget=400)
    return Policy(
        config_of(tokenizer := vlm.Tokenizer(make_backend(kind), vlm.tokenizer.games_chat)), tokenizer, budget=400
    )


def config_of(tokenizer: vlm.Tokenizer) -> vlm.Config:
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    ids = dict(zip(("image", "video", "vision_start", "vision_end"), names, strict=True))
    changes: dict[str, Any] = {f"{key}_token_id": tokenizer.token(f"<|{name}|>") for key, name in ids.items()}
    wide = dataclasses.replace(tiny.CONFIG.text, vocab_size=tokenizer.vocab_size)
    return dataclasses.replace(tiny.CONFIG, text=wide, **changes)


def assert_covers(policy: Policy, response: bytes, tokens: np.ndarray, is_perception: np.ndarray) -> None:
    """The tokens marked are those with a byte of the first `<perception>…`, and no others."""
    lengths = np.array([len(policy.token_texts[token]) for token in tokens])
    ends = np.cumsum(lengths)
    start = response.index(b"<perception>")
    end = response.index(b"</perception>", start)
    np.testing.assert_array_equal(is_perception, (ends > start) & (ends - lengths < end))
    marked = b"".join(policy.token_texts[token] for token in tokens[is_perception])
    assert response[start:end] in marked


def bytes_of(policy: Policy, tokens: Sequence[int]) -> bytes:
    return b"".join(policy.token_texts[token] for token in tokens)


texts = st.text(st.sampled_from("2- |\n<>/perction 漢é🙂e\u0301Rd"), max_size=24).filter(
    lambda s: "perception>" not in s
)


@settings(max_examples=60)
@given(kind=st.sampled_from(KINDS), before=st.sampled_from(["", "", "So: "]), board=texts, why=texts)
def test_the_perception_is_found_by_what_the_tokens_say(kind: str, before: str, board: str, why: str) -> None:
    policy = policy_of(kind)
    response = f"{before}<perception>{board}</perception><think>{why}</think><answer>3</answer>"
    (tokens,), (mask,), (is_perception,) = tokenize(policy, GAME, [response])
    assert_covers(policy, bytes_of(policy, tokens[mask]), tokens, is_perception)
    if kind == "games" and not before:
        np.testing.assert_array_equal(is_perception, by_tag(policy, tokens, mask))


def by_tag(policy: Policy, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """For a tokenizer with tags as single tokens: everything before the closing tag."""
    found: np.ndarray = (np.cumsum(tokens == policy.tokenizer.token("</perception>")) == 0) & mask
    return found


@pytest.mark.parametrize("game_id", envs.game_ids())
def test_the_games_demonstrations_are_marked_as_by_their_tags_and_read_whole(game_id: str) -> None:
    """With the smallest budget that fits them."""
    game = envs.make(game_id, **({"images": "digits"} if game_id == "shisen_sho_cifar10" else {}))
    responses = sample_responses(game)
    budget = max(len(tokens) + 1 for tokens in tiny.TOKENIZER.encode_batch(responses))
    policy = Policy(tiny.CONFIG, tiny.TOKENIZER, budget=budget)
    tokens, mask, is_perception = tokenize(policy, game, responses)
    for row in range(len(tokens)):
        np.testing.assert_array_equal(is_perception[row], by_tag(policy, tokens[row], mask[row]))
    read = jax.jit(vlm.to_bytes, static_argnums=3)(policy.table(), tokens, mask, policy.max_bytes(game))
    assert [text.decode(row) for row in np.asarray(read)] == responses


@pytest.mark.parametrize("kind", ["games", "qwen", "trimmed"])
def test_the_perception_of_any_tokenizer_decodes_to_the_board(kind: str) -> None:
    policy = policy_of(kind)
    for response in (RESPONSE.format(name) for name in ("Red circle", "漢字", "🙂")):
        (tokens,), _, (is_perception,) = tokenize(policy, GAME, [response])
        marked = policy.tokenizer.decode(tokens[is_perception])
        assert response.split("</perception>")[0].removeprefix("<perception>") in marked
        assert "<think" not in marked


def test_without_tags_no_token_is_perception() -> None:
    for response in ("", "2 | -", "<perception>2", "2</perception>", "</perception>2<perception>"):
        assert tokens_of("perception", [response.encode()]) == (0, 0)


# How much of a response is read


@pytest.mark.parametrize("kind", KINDS)
def test_any_response_within_its_tokens_is_read_whole(kind: str) -> None:
    """Also one of the longest tokens alone, before its answer."""
    policy = policy_of(kind)
    policy = dataclasses.replace(policy, budget=40)
    answer = policy.tokenizer.encode("<answer>3</answer>")
    longest = int(np.argmax([len(piece) for piece in policy.token_texts]))
    line = [longest] * (40 - len(answer)) + answer
    read = vlm.to_bytes(policy.table(), jnp.array([line]), jnp.ones((1, 40), bool), policy.max_bytes(GAME))[0]
    assert bytes(read).rstrip(b"\0") == bytes_of(policy, line)
    assert int(GAME.parse(read)) == 3
