"""Builds g1jax/vlm/data/tokenizer.json: a byte-level BPE trained on the games' own text, the same bytes every time.

    python scripts/train_tokenizer.py

The corpus has prompts, and responses of each game's teacher to boards of random play, at all levels whose text differs.
Such boards have few high tiles and few moves in the last rows, so every cell and every place of the paper's levels is
also oversampled, often enough to become one token.
"""

import argparse
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from g1jax import envs
from g1jax.envs import appearance, images, shapes, text
from g1jax.teachers import teach
from g1jax.vlm import SPECIAL_TOKENS

FOLDER = Path(__file__).parents[1] / "g1jax" / "vlm" / "data"
VOCAB_SIZE = 1152
TAGS = tuple(f"<{end}{name}>" for name in ("perception", "think", "answer") for end in ("", "/"))

# Pre-tokenization into pieces: a cell with the preceding separator, a place on the board, else as in GPT-2, with the
# preceding space. A tile's name is two words.
_TILE = rf"\p{{L}}+ (?:{'|'.join(appearance.SHAPES)})\b"
PIECES = "|".join(
    [
        rf"(?: \| |\n)(?:-(?!\S)|\p{{N}}+|{_TILE}|\p{{L}}+)",
        _TILE,
        r" ?\(\p{N}+, \p{N}+\)",
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    ]
)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- else -%}{{- part.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)

REPEATS = 2000  # of every cell and place of the paper's levels
OTHER_REPEATS = 150  # of the cells of other levels
ROWS, COLS = 10, 10  # of the largest boards whose places are tokens
TEACHER_PIECES = (  # oversampled, however rare they are in the teachers' texts
    *("\nTake", " row", " up", " right", " down", " left", "up", "\nright", "\ndown", "\nleft", " -"),
    *(f"{before}{number}" for number in range(10) for before in ("\n", " ")),
)
PROMPT_REPEATS = 150
BOARDS, STEPS, EVERY = 32, 60, 3  # of random play; every third board is kept
RESPONSES = 600  # of each game; repeated for games with fewer boards


def main() -> None:
    """Trains and writes the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train(corpus(), args.vocab_size)
    tokenizer.save(str(args.folder / "tokenizer.json"))
    config = json.dumps(tokenizer_config(), indent=2, ensure_ascii=False)
    (args.folder / "tokenizer_config.json").write_text(config + "\n", "utf-8")
    print(f"{args.folder}: {tokenizer.get_vocab_size()} tokens")


def train(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """The tokenizer trained on these texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in (*SPECIAL_TOKENS, *TAGS)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # The trainer marks all of these as special, and decoding skips special tokens; but tags are part of a response.
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in TAGS])
    return tokenizer


def tokenizer_config() -> dict[str, Any]:
    """The settings for transformers."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "chat_template": CHAT_TEMPLATE,
    }


# The corpus


def corpus() -> Iterator[str]:
    """All texts, in a fixed order."""
    yield from oversampled_texts()
    yield from ["user\n<|im_end|>\n<|im_start|>assistant\n"] * REPEATS
    for game in readable_games():
        texts = [game.prompt] * PROMPT_REPEATS + responses(game, jax.random.key(0))
        yield from texts
        if game.id == "shisen_sho_cifar10":
            yield from map(with_pictures, texts)


def oversampled_texts() -> Iterator[str]:
    """Every cell at the start, after another and in a new row; every place with and without a space; other pieces."""
    tiles = shapes.tile_names(6, 6)
    numbers = ["-", *(str(2**e) for e in range(1, 12))]
    cells = [*tiles, *numbers, *images.CIFAR10_CLASSES, *images.DIGIT_CLASSES]
    others = [name for name in shapes.tile_names(len(appearance.COLORS), 6) if name not in tiles]
    for names, times in ((cells, REPEATS), (others, OTHER_REPEATS)):
        for name in names:
            yield from [f"{name} | {name}\n{name}"] * times
    for r in range(ROWS):
        for c in range(COLS):
            yield from [f"({r}, {c}) ({r}, {c})"] * REPEATS
    yield from TEACHER_PIECES * REPEATS


def readable_games() -> Iterator[Any]:
    """One game for every distinct prompt, set of cells or number of actions among the presets of all games."""
    seen = set()
    for game_id in envs.game_ids():
        keys = {"images": "digits"} if game_id == "shisen_sho_cifar10" else {}
        for preset in envs.presets(game_id):
            game = envs.make(game_id, preset, **keys)
            text_key = (game.prompt, tuple(game.cell_names()), game.num_actions)
            if text_key not in seen:
                seen.add(text_key)
                yield game


def responses(game: Any, key: jax.Array) -> list[str]:
    """The teacher's responses to boards of random play."""

    def advance(state: Any, key: jax.Array) -> tuple[Any, Any]:
        action_key, step_key = jax.random.split(key)
        after, _ = game.step(state, game.sample_action(state, action_key), step_key)
        return after, state

    @jax.jit
    @jax.vmap
    def play(key: jax.Array) -> Any:
        reset_key, key = jax.random.split(key)
        _, states = jax.lax.scan(advance, game.reset(reset_key), jax.random.split(key, STEPS))
        return jax.tree.map(lambda x: x[::EVERY], states)

    @jax.jit
    @jax.vmap
    def respond(state: Any, key: jax.Array) -> tuple[jax.Array, ...]:
        action, rationale = teach(game, state, key)
        return game.describe(state), rationale, game.write_action(action), state.terminated

    states = jax.tree.map(lambda x: jnp.reshape(x, (-1, *x.shape[2:])), play(jax.random.split(key, BOARDS)))
    keys = jax.random.split(key, len(states.terminated))
    parts = [np.asarray(part) for part in respond(states, keys)]
    kept = [
        f"<perception>{text.decode(board)}</perception><think>{text.decode(rationale)}</think>{text.decode(answer)}"
        for board, rationale, answer, is_over in zip(*parts, strict=True)
        if not is_over
    ]
    return list(itertools.islice(itertools.cycle(kept), RESPONSES))


def with_pictures(digits_text: str) -> str:
    """Converts a prompt or response from digits to CIFAR-10's classes, so that the archive is not needed."""
    digits, pictures = images.DIGIT_CLASSES, images.CIFAR10_CLASSES
    if not digits_text.startswith("<"):  # in a prompt `one` is also a word; the classes are a list
        return digits_text.replace(", ".join(digits), ", ".join(pictures))
    classes = dict(zip(digits, pictures, strict=True))
    return re.sub(rf"\b({'|'.join(classes)})\b", lambda match: classes[match[1]], digits_text)


if __name__ == "__main__":
    main()
