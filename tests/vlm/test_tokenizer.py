"""The games' tokenizer and one like Qwen's: text to tokens and back, on the host and on the device."""

import functools
import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from g1jax import envs, vlm
from g1jax.envs import images
from g1jax.vlm import ConfigError
from g1jax.vlm.token_table import TokenBytes, byte_characters, bytes_of, to_bytes, token_bytes
from g1jax.vlm.tokenizer import Tokenizer, check_tokenizer
from tests.conftest import REPOSITORY

DATA = REPOSITORY / "g1jax" / "vlm" / "data"
TAGS = ("<perception>", "</perception>", "<think>", "</think>", "<answer>", "</answer>")
GAMES = Tokenizer.load("games")
GAME_KEYS: dict[str, dict[str, Any]] = {"shisen_sho_cifar10": {"images": "digits"}}

# A tokenizer like Qwen2.5-VL's: its pre-tokenizer, its kinds of added tokens, and a chat template that starts with a
# system turn. It is written here, since the original files are not available.

QWEN_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|box_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
QWEN_PLAIN = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<two words é>"]
QWEN_TEMPLATE = """{% set ns = namespace(images=0) %}{% for m in messages %}{% if loop.first and m.role != 'system' -%}
<|im_start|>system
You help.<|im_end|>
{% endif -%}
<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content -%}
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif -%}
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def write_qwen_folder(folder: Path) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    texts = [envs.make("shisen_sho").prompt, "déjà vu: 漢字 和 русский 🙂🙃", "x" + " " * 64 + "\n\n\n"]
    tokenizer.train_from_iterator(texts * 20, trainer)
    # As in Qwen's files, added tokens follow the vocabulary, special ones first.
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in QWEN_SPECIAL])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in QWEN_PLAIN])
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(token): {
            "content": item.content,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": item.special,
        }
        for token, item in tokenizer.get_added_tokens_decoder().items()
    }
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": QWEN_SPECIAL[1:],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "unk_token": None,
        "chat_template": QWEN_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    (folder / "merges.txt").write_text("\n".join(" ".join(merge) for merge in model["merges"]), "utf-8")


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    write_qwen_folder(folder)
    return folder


@pytest.fixture(scope="module")
def qwen(qwen_folder: Path) -> Tokenizer:
    return Tokenizer.load(qwen_folder)


@pytest.fixture(scope="module", params=["games", "qwen"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return GAMES if request.param == "games" else request.getfixturevalue("qwen")


def names_of_games() -> list[str]:
    """The cell names of the games' default levels, numbers up to 2048."""
    shapes = [*envs.make("shisen_sho").cell_names(), *envs.make("swap").cell_names()]
    numbers = [name for name in envs.make("game_2048").cell_names() if name == "-" or int(name) <= 2048]
    names = [*shapes, *numbers, *images.CIFAR10_CLASSES, *images.DIGIT_CLASSES]
    return sorted(set(names))


def is_one_token(text: str) -> bool:
    return len(GAMES.encode(text)) == 1


# The included vocabulary


def test_ids_are_special_tokens_tags_and_bytes_in_this_order() -> None:
    assert [GAMES.token(name) for name in (*vlm.SPECIAL_TOKENS, *TAGS)] == list(range(13))
    words = [GAMES.backend.id_to_token(token) for token in range(13, 269)]
    assert sorted(byte_characters()[str(word)] for word in words) == list(range(256))
    assert GAMES.vocab_size == GAMES.backend.get_vocab_size() <= 1152


def test_every_cell_of_the_default_levels_is_one_token() -> None:
    names = names_of_games()
    assert len(names) == 36 + 12 + 20
    several = [text for name in names for text in (name, f" | {name}", f"\n{name}") if not is_one_token(text)]
    assert several == []


def test_every_place_of_boards_up_to_8_by_8_is_one_token() -> None:
    places = [f"{space}({r}, {c})" for space in ("", " ") for r in range(8) for c in range(8)]
    assert [place for place in places if not is_one_token(place)] == []


@pytest.mark.parametrize("game_id", envs.game_ids())
def test_a_board_is_a_token_a_cell_and_a_move_one_or_two(game_id: str) -> None:
    game = envs.make(game_id, **GAME_KEYS.get(game_id, {}))
    state = jax.jit(game.reset)(jax.random.key(0))
    board = envs.text.decode(jax.jit(game.describe)(state))
    assert len(GAMES.encode(board)) == game.rows * game.cols
    for action in (0, game.num_actions // 3, game.num_actions - 1):
        answer = GAMES.encode(game.format_action(action))
        assert len(answer) == 2 + (1 if game_id == "game_2048" else 2)
        assert GAMES.decode(answer) == game.format_action(action)


@pytest.mark.parametrize("game_id", envs.game_ids())
def test_prompts_are_short(game_id: str) -> None:
    game = envs.make(game_id, **GAME_KEYS.get(game_id, {}))
    tokens = GAMES.encode(game.prompt)
    assert GAMES.decode(tokens) == game.prompt
    assert len(tokens) <= 215


def test_boards_of_other_levels_round_trip_and_are_short() -> None:
    names = envs.make("shisen_sho", colors=16, shapes=6).cell_names()
    board = "\n".join(" | ".join(names[i : i + 12]) for i in range(1, len(names), 12))
    tokens = GAMES.encode(board)
    assert GAMES.decode(tokens) == board
    assert len(tokens) <= 2 * len(names)
    high = "\n".join(" | ".join(str(2**e) for e in range(i, i + 6)) for i in (12, 18, 24))
    assert GAMES.decode(GAMES.encode(high)) == high
    assert len(GAMES.encode(high)) <= 7 * 18
    far = "(10, 12) (9, 9)"
    assert GAMES.decode(GAMES.encode(far)) == far
    assert len(GAMES.encode(far)) <= 10


@pytest.mark.slow
def test_the_script_builds_the_included_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    import train_tokenizer

    monkeypatch.setattr(sys, "argv", ["train_tokenizer.py", "--folder", str(tmp_path)])
    train_tokenizer.main()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes()


# Chat templates


def test_a_prompt_is_image_text_and_the_start_of_the_reply() -> None:
    tokens = GAMES.prompt("Play.", 3)
    text = "<|im_start|>user\n<|vision_start|>" + 3 * "<|image_pad|>" + "<|vision_end|>Play.<|im_end|>\n"
    assert GAMES.decode(tokens, keep_special=True) == text + "<|im_start|>assistant\n"
    assert tokens.count(GAMES.image_token) == 3
    assert len(GAMES.prompt("", 1)) == 11  # user, assistant, three line ends, five special tokens


def test_a_prompt_ends_with_the_start_of_the_response(tokenizer: Tokenizer) -> None:
    start = "<perception>Red circle | -"
    tokens = tokenizer.prompt("Play.", 4, start)
    assert tokens == tokenizer.prompt("Play.", 4) + tokenizer.encode(start)
    # Also where it would merge with the preceding newline.
    assert GAMES.prompt("Play.", 4, "Red circle")[-1:] == GAMES.encode("Red circle")


def test_the_template_for_transformers_is_the_same() -> None:
    hf = transformers.AutoTokenizer.from_pretrained(str(DATA))
    for has_image in (True, False):
        parts = [{"type": "image"}] * has_image + [{"type": "text", "text": "Play <answer>."}]
        turn = [{"role": "user", "content": parts}]
        tokens = hf.apply_chat_template(turn, tokenize=True, add_generation_prompt=True, return_dict=False)
        assert tokens == GAMES.prompt("Play <answer>.", int(has_image))
    assert hf.eos_token_id == GAMES.end_token
    assert hf.pad_token_id == GAMES.pad_token
    assert hf("Red circle | -")["input_ids"] == GAMES.encode("Red circle | -")


def test_a_hugging_face_tokenizer_has_its_own_template(qwen: Tokenizer) -> None:
    tokens = qwen.prompt("Play.", 5)
    image = "<|vision_start|>" + 5 * "<|image_pad|>" + "<|vision_end|>"
    system = "<|im_start|>system\nYou help.<|im_end|>\n"
    text = f"{system}<|im_start|>user\n{image}Play.<|im_end|>\n<|im_start|>assistant\n"
    assert qwen.decode(tokens, keep_special=True) == text
    assert qwen.decode(qwen.prompt("Play.", 0), keep_special=True) == text.replace(image, "")


def test_a_text_with_an_image_token_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"the special token '<\|image_pad\|>' in a text"):
        tokenizer.prompt("See <|image_pad|>.", 4)
    with pytest.raises(ConfigError, match="num_visual_tokens=-1"):
        tokenizer.prompt("See.", -1)


# Text, tokens, bytes


@functools.cache
def table_of(tokenizer: Tokenizer) -> TokenBytes:
    return token_bytes(tokenizer)


def text_of(tokenizer: Tokenizer, lines: Sequence[Sequence[int]], length: int, size: int = 32) -> list[bytes]:
    """`to_bytes` of sequences of at most `size` tokens, each without padding."""
    table = table_of(tokenizer)
    tokens, mask = tokenizer.pad_batch(lines, "right", size)
    texts = jitted(table, jnp.asarray(tokens), jnp.asarray(mask), length)
    lengths = [int(np.asarray(table.lengths)[np.array(line, np.int32)].sum()) for line in lines]
    assert all(not np.any(text[n:]) for text, n in zip(np.asarray(texts), lengths, strict=True))
    return [bytes(text[:n]) for text, n in zip(np.asarray(texts), lengths, strict=True)]


jitted = jax.jit(to_bytes, static_argnums=3)


@settings(max_examples=100)
@given(text=st.text(max_size=60))
def test_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    assume("<|" not in text)  # the name of a special token becomes that token
    expected = text if tokenizer is GAMES else unicodedata.normalize("NFC", text)  # Qwen's normalizer
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == expected
    assert text_of(tokenizer, [tokens], 1024, size=256) == [expected.encode()]


@settings(max_examples=100)
@given(data=st.data())
def test_bytes_of_any_tokens_equal_decode(tokenizer: Tokenizer, data: st.DataObject) -> None:
    token = st.integers(0, tokenizer.vocab_size - 1)
    line = data.draw(st.lists(token, max_size=32))
    (found,) = text_of(tokenizer, [line], 32 * 64)
    assert found.decode("utf-8", "replace") == tokenizer.decode(line)
    if tokenizer.hf is not None:
        assert tokenizer.decode(line) == tokenizer.hf.decode(line, skip_special_tokens=True)


def test_bytes_of_each_token_equal_decode(tokenizer: Tokenizer) -> None:
    tokens = range(tokenizer.vocab_size)
    found = text_of(tokenizer, [[token] for token in tokens], 128, size=1)
    assert [text.decode("utf-8", "replace") for text in found] == [tokenizer.decode([token]) for token in tokens]


def test_special_tokens_are_empty_and_other_added_tokens_are_their_names(qwen: Tokenizer) -> None:
    for name in QWEN_SPECIAL:
        assert text_of(qwen, [[qwen.token(name)]], 64) == [b""]
    for name in QWEN_PLAIN:
        assert text_of(qwen, [[qwen.token(name)]], 64) == [name.encode()]
    for name in TAGS:
        assert text_of(GAMES, [[GAMES.token(name)]], 64) == [name.encode()]


def test_long_tokens_are_whole(qwen: Tokenizer) -> None:
    table = table_of(qwen)
    assert table.bytes.shape == (qwen.vocab_size, int(table.lengths.max()))
    assert int(table.lengths.max()) >= 48  # of spaces
    assert text_of(qwen, [[int(table.lengths.argmax())] * 3], 1024)[0].isspace()


def test_masked_and_unknown_tokens_are_empty() -> None:
    tokens_of = GAMES.encode("Red circle | Blue star")
    tokens = jnp.array([[tokens_of[0], -1, GAMES.vocab_size, 2**31 - 1, tokens_of[1], tokens_of[1]]])
    mask = jnp.array([[True, True, True, True, False, True]])
    assert bytes(jitted(table_of(GAMES), tokens, mask, 30)[0]) == b"Red circle | Blue star".ljust(30, b"\0")


def test_texts_are_truncated_to_the_length() -> None:
    text = "Red circle | Blue star\n- | 2"
    tokens = jnp.array([GAMES.encode(text)])
    for length in (1, 9, 10, 11, 25, 28, 40):
        cut = bytes(jitted(table_of(GAMES), tokens, tokens >= 0, length)[0])
        assert cut == text.encode()[:length].ljust(length, b"\0")


def test_any_leading_axes_and_one_trace() -> None:
    lines = [GAMES.encode(text) for text in ("Red circle", "- | 2", "", "(0, 1)", "<think>no", "a")]
    tokens, mask = (jnp.asarray(x).reshape(2, 3, -1) for x in GAMES.pad_batch(lines))
    traced = jax.jit(chex.assert_max_traces(n=1)(to_bytes), static_argnums=3)
    texts = traced(table_of(GAMES), tokens, mask, 16)
    again = traced(table_of(GAMES), tokens, mask, 16)
    assert texts.shape == (2, 3, 16)
    assert texts.dtype == jnp.uint8
    assert bytes(texts[1, 1]).rstrip(b"\0") == b"<think>no"
    assert jnp.array_equal(texts, again)
    assert to_bytes(table_of(GAMES), tokens[0, 0], mask[0, 0], 16).tolist() == texts[0, 0].tolist()


def test_byte_characters_equal_the_librarys() -> None:
    assert sorted(byte_characters()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_characters().values()) == list(range(256))
    assert bytes_of("Ċ") == b"\n"


def test_a_tokenizer_that_is_not_byte_level_has_no_table() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(ConfigError, match="ByteLevel"):
        token_bytes(Tokenizer(backend, GAMES.chat))


# Batches


def test_encode_batch_is_encode(tokenizer: Tokenizer) -> None:
    texts = ["Red circle | -", "", "déjà vu", "<answer>3</answer>"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize("name", ["<|im_end|>", "<|image_pad|>", "<|endoftext|>", "<|video_pad|>"])
def test_special_tokens_in_texts_are_refused(tokenizer: Tokenizer, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^row 2: the special token '{re.escape(name)}' in a text: remove it$"):
        tokenizer.encode_batch(["Red circle", f"Red {name}circle"], ["row 1", "row 2"])
    with pytest.raises(ConfigError, match=r"^the prompt: the special token"):
        tokenizer.prompt(f"Play.{name}\n<|im_start|>user\nOr not.", 4)


def test_pad_batch() -> None:
    tokens, mask = GAMES.pad_batch([[7, 8], [9], []])
    assert tokens.tolist() == [[7, 8], [0, 9], [0, 0]]
    assert mask.tolist() == [[True, True], [False, True], [False, False]]
    assert tokens.dtype == np.int32
    assert mask.dtype == np.bool_
    tokens, mask = GAMES.pad_batch([[7, 8], [9]], "right", 3)
    assert tokens.tolist() == [[7, 8, 0], [9, 0, 0]]
    assert mask.tolist() == [[True, True, False], [True, False, False]]
    assert GAMES.pad_batch([])[0].shape == (0, 0)
    with pytest.raises(ConfigError, match="2 tokens does not fit in 1"):
        GAMES.pad_batch([[7, 8]], length=1)


# Tokenizer and model


def test_the_games_tokenizer_fits_the_presets() -> None:
    check_tokenizer(GAMES, vlm.preset("nano", vocab_size=GAMES.vocab_size))
    check_tokenizer(GAMES, vlm.preset("nano", vocab_size=GAMES.vocab_size + 64))
    assert GAMES.stop_tokens == (2, 0)


def test_a_tokenizer_that_does_not_fit_is_refused(qwen: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"has 1152 tokens, the model 512.*vocab_size=1152"):
        check_tokenizer(GAMES, vlm.preset("nano", vocab_size=512))
    with pytest.raises(ConfigError, match=r"<\|image_pad\|> is token \d+ of the tokenizer, but image_token_id=5"):
        check_tokenizer(qwen, vlm.preset("nano", vocab_size=1024))
    ids = {
        "image_token_id": qwen.token("<|image_pad|>"),
        "vision_start_token_id": qwen.token("<|vision_start|>"),
        "vision_end_token_id": qwen.token("<|vision_end|>"),
    }
    check_tokenizer(qwen, vlm.preset("nano", vocab_size=1024, **ids))
    with pytest.raises(ConfigError, match="vision_end_token_id=9 of the model"):
        check_tokenizer(qwen, vlm.preset("nano", vocab_size=1024, **{**ids, "vision_end_token_id": 9}))


def test_a_tokenizer_without_special_tokens_is_refused() -> None:
    backend = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    with pytest.raises(ConfigError, match=r"no token '<\|image_pad\|>'"):
        check_tokenizer(Tokenizer(backend, GAMES.chat), vlm.preset("nano"))


# Files


def test_saved_tokenizers_round_trip(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "new")
    again = Tokenizer.load(tmp_path / "new")
    assert again.backend.get_vocab() == tokenizer.backend.get_vocab()
    assert again.prompt("Play: Red circle | -.", 3) == tokenizer.prompt("Play: Red circle | -.", 3)
    assert (again.hf is None) == (tokenizer.hf is None)
    hf = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "new"))
    assert hf("Red circle | -")["input_ids"] == tokenizer.encode("Red circle | -")


def test_a_file_or_its_folder_has_the_games_chat_template(tmp_path: Path) -> None:
    shutil.copy(DATA / "tokenizer.json", tmp_path)
    for source in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        assert Tokenizer.load(source).prompt("Play.", 2) == GAMES.prompt("Play.", 2)


def test_truncation_and_padding_in_a_file_are_turned_off(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(DATA / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    for text in ("a", "Red circle | - | Blue star"):
        assert loaded.encode(text) == GAMES.encode(text)


def test_invalid_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no tokenizer at .*nowhere"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_bytes((DATA / "tokenizer.json").read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"tokenizer\.json: line \d+, column \d+: not JSON"):
        Tokenizer.load(file)
    (tmp_path / "tokenizer_config.json").write_text("{", "utf-8")
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json: column 2: not JSON"):
        Tokenizer.load(tmp_path)
    file.unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "NoSuchTokenizer"}', "utf-8")
    with pytest.raises(ConfigError, match="transformers cannot load the tokenizer"):
        Tokenizer.load(tmp_path)


DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
WRONG_FILES: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": None}, "is not a tokenizer: it has no model"),
    "a high number": ({"model": {"type": "BPE", "vocab": {"a": 2**32 - 1}, "merges": []}}, "ids below 4194304"),
    "a list": ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "does not map texts to ids"),
    "no number": ({"model": {"type": "BPE", "vocab": {"a": "0"}, "merges": []}}, "does not map texts to ids"),
    "no tokens": ({"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}, "without tokens"),
    "a long token": (
        {"model": {"type": "BPE", "vocab": {"a" * 10_000: 0, "b": 2**22 - 1}, "merges": []}},
        "4194304 tokens of up to 10000 characters",
    ),
    "doubling": ({"normalizer": {"type": "Sequence", "normalizers": [DOUBLING] * 40}}, "a normalizer 'Replace'"),
    "a prefix": ({"normalizer": {"type": "Prepend", "prepend": "a" * 9999}}, "prepends 9999 characters"),
    "a pattern": (
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a?" * 9999 + "a" * 9999}, "behavior": "Isolated"}},
        "a pattern of 3.... characters",
    ),
    "a type": ({"pre_tokenizer": {"type": "NoSuch"}}, "is not a tokenizer: "),
    "a merge": ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}, "is not a tokenizer: "),
    "deep": (
        {"normalizer": [[[[[[]]]]]], "decoder": json.loads("[" * 70 + "]" * 70)},
        "nested deeper than 64 levels",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_a_crafted_file_is_refused_in_one_line(wrong: str, tmp_path: Path) -> None:
    changes, message = WRONG_FILES[wrong]
    content = json.loads((DATA / "tokenizer.json").read_text("utf-8"))
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**content, **changes}), "utf-8")
    with pytest.raises(ConfigError, match=message) as fault:
        Tokenizer.load(file)
    assert str(fault.value).startswith(str(file))
    assert str(fault.value).isprintable()


def test_a_rust_panic_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):  # as in pyo3
        pass

    class Panics:
        @staticmethod
        def from_file(path: str) -> None:
            raise PanicException("index out of bounds:\n the len is 0")

    monkeypatch.setattr(tokenizers, "Tokenizer", Panics)
    with pytest.raises(ConfigError, match=r"tokenizer\.json is not a tokenizer: index out of bounds: the len is 0$"):
        Tokenizer.load("games")


def test_a_folder_of_crafted_files_is_refused_before_transformers_reads_it(
    qwen_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *a, **k: pytest.fail("was read"))
    for name in ("special_tokens_map.json", "added_tokens.json", "vocab.json", "chat_template.json"):
        folder = tmp_path / name
        shutil.copytree(qwen_folder, folder)
        (folder / name).write_text('{"a": ' + "[" * 200_000, "utf-8")
        with pytest.raises(ConfigError, match=rf"{re.escape(name)}: line 1, byte 70 of the text: nested deeper"):
            Tokenizer.load(folder)


def test_a_failing_template_is_reported_with_its_folder(qwen_folder: Path, tmp_path: Path) -> None:
    for name, template, message in (
        ("long", "a" * 70_000, "a chat template of more than 65536 characters"),
        ("fails", "{{ messages[7].content }}", "its chat template fails: "),
        ("no template", "{% if %}", "its chat template fails: "),
    ):
        folder = tmp_path / name
        shutil.copytree(qwen_folder, folder)
        config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}), "utf-8")
        with pytest.raises(ConfigError, match=message) as fault:
            Tokenizer.load(folder).prompt("Play.", 1)
        assert str(folder) in str(fault.value)
        assert str(fault.value).isprintable()


def test_a_folder_without_a_chat_template_is_refused(qwen_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(qwen_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    del config["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ConfigError, match="no chat template"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("package", ["transformers", "jinja2"])
def test_a_missing_package_is_named(qwen_folder: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"{package} is not installed: pip install transformers jinja2"):
        Tokenizer.load(qwen_folder)
    Tokenizer.load("games")  # needs neither


def test_a_folder_with_a_vocabulary_and_merges_alone_is_the_same(
    qwen: Tokenizer, qwen_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(qwen_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").unlink()
    other = Tokenizer.load(tmp_path)
    assert other.vocab_size == qwen.vocab_size
    text = "Play <tool_call> déjà vu 漢字: Red circle | -."
    assert other.prompt(text, 3, "<think>") == qwen.prompt(text, 3, "<think>")
    assert jnp.array_equal(token_bytes(other).bytes, table_of(qwen).bytes)
