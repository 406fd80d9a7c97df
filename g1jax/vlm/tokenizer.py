"""Text to tokens and back: the games' own tokenizer, which is included, or any byte-level one of Hugging Face.

The games' tokenizer has the special tokens of the presets and needs about one token per board cell; see
`scripts/train_tokenizer.py`.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Int32

from g1jax.errors import ConfigError
from g1jax.terminal import one_line
from g1jax.vlm.config import Config
from g1jax.vlm.tokenizer_files import CONFIG_FILE, FILE, chat_template, load_file, load_hf

if TYPE_CHECKING:
    import tokenizers

GAMES = "games"
_DATA = Path(__file__).parent / "data"
_GAP = "\ue000"  # private use: in no text of ours, and in no chat template

Chat = Callable[[str, bool], str]
"""The user turn and the start of the assistant turn, from the user's text and whether an image precedes it."""


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text to tokens and back, with a chat template.

    >>> tokenizer = Tokenizer.load("games")
    >>> tokenizer.encode("Red circle | Blue star")
    [819, 688]
    >>> tokenizer.decode([819, 688])
    'Red circle | Blue star'
    """

    backend: "tokenizers.Tokenizer"
    chat: Chat
    hf: Any = None
    """The tokenizer of transformers, if it was loaded with it."""

    def __eq__(self, other: object) -> bool:
        """Equal if vocabularies and chat templates are equal."""
        return isinstance(other, Tokenizer) and self._fingerprint == other._fingerprint

    def __hash__(self) -> int:
        return hash(self._fingerprint)

    @functools.cached_property
    def _fingerprint(self) -> bytes:
        parts = self.backend.to_str(), self.chat("?", True), self.chat("?", False)
        return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()

    @staticmethod
    def load(source: str | Path = GAMES) -> "Tokenizer":
        """Loads a tokenizer.

        Args:
            source: `games`, the included one; a `tokenizer.json`, or a folder with one, with the included one's chat
                template; or a folder whose `tokenizer_config.json` has another template, which needs transformers.

        Raises:
            ConfigError: it does not exist or is damaged, or transformers is needed and not installed.
        """
        path = _DATA / FILE if source == GAMES else Path(source)
        ConfigError.require(
            path.exists(), f"no tokenizer at {path}: expected '{GAMES}', a {FILE}, or a folder with one"
        )
        if (path / CONFIG_FILE).is_file() and chat_template(path) != chat_template(_DATA):
            hf = load_hf(path)
            return Tokenizer(hf.backend_tokenizer, _template_chat(hf, path), hf)
        return Tokenizer(load_file(path / FILE if path.is_dir() else path), games_chat)

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer to a folder, for `load` and for transformers' AutoTokenizer."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.hf is not None:
            self.hf.save_pretrained(folder)
            return
        (folder / CONFIG_FILE).write_text((_DATA / CONFIG_FILE).read_text("utf-8"), "utf-8")
        (folder / FILE).write_text(self.backend.to_str(pretty=True), "utf-8")  # `save` raises no OSError

    @property
    def template(self) -> str:
        """The chat template, in Jinja."""
        return str(chat_template(_DATA) if self.hf is None else self.hf.chat_template)

    # Text and tokens

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without added ones; names of special tokens become these tokens."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], places: Sequence[str] = ()) -> list[list[int]]:
        """The tokens of each text, without special tokens, so that training texts cannot end a turn or hold an image.

        Raises:
            ConfigError: a text has the name of a special token; `places` are the origins of the texts, for the message.
        """
        rows = [encoding.ids for encoding in self.backend.encode_batch(list(texts), add_special_tokens=False)]
        special = self._special_tokens
        for i, row in enumerate(rows):
            found = special.keys() & row
            if found:
                place = places[i] if places else "a training text"
                raise ConfigError(f"{place}: the special token {special[min(found)]!r} in a text: remove it")
        return rows

    def decode(self, tokens: Sequence[int] | np.ndarray, *, keep_special: bool = False) -> str:
        """The text of tokens; invalid UTF-8 becomes the replacement character."""
        return self.backend.decode([int(token) for token in tokens], skip_special_tokens=not keep_special)

    def prompt(self, text: str, num_visual_tokens: int, response_start: str = "") -> list[int]:
        """The user turn (image, then text) and the start of the assistant turn, followed by `response_start`.

        Raises:
            ConfigError: the text has a special token, or the chat template does not have exactly one image token.
        """
        return self._with_images(self._chat(text, num_visual_tokens), num_visual_tokens) + self.encode(response_start)

    def prompt_around(self, text: str, num_visual_tokens: int) -> tuple[list[int], list[int]]:
        """The parts of a prompt before and after a gap at the end of the user's text, for text that differs by row.

        >>> tokenizer = Tokenizer.load("games")
        >>> [tokenizer.decode(part, keep_special=True) for part in tokenizer.prompt_around("Hi ", 0)]
        ['<|im_start|>user\\nHi ', '<|im_end|>\\n<|im_start|>assistant\\n']

        Raises:
            ConfigError: as `prompt`; or the chat template does not have the text as it is.
        """
        before, gap, after = self._chat(text + _GAP, num_visual_tokens).rpartition(_GAP)
        ConfigError.require(gap != "", "the chat template changes the text of a prompt")
        return self._with_images(before, num_visual_tokens), self.encode(after)

    def _chat(self, text: str, num_visual_tokens: int) -> str:
        """A prompt as text, with one image token for an image."""
        ConfigError.require(num_visual_tokens >= 0, f"num_visual_tokens={num_visual_tokens}: 0 (no image) or more")
        self.encode_batch([text], ["the prompt"])
        return self.chat(text, num_visual_tokens > 0)

    def _with_images(self, text: str, num_visual_tokens: int) -> list[int]:
        turn = self.encode(text)
        found, expected = turn.count(self.image_token), int(num_visual_tokens > 0)
        ConfigError.require(
            found == expected, f"a prompt with {found} image tokens, not {expected}: check the chat template"
        )
        if found:
            index = turn.index(self.image_token)
            turn[index : index + 1] = [self.image_token] * num_visual_tokens
        return turn

    def pad_batch(
        self, rows: Sequence[Sequence[int]], side: Literal["left", "right"] = "left", length: int | None = None
    ) -> tuple[Int32[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]:
        """Sequences of tokens as one array and its mask, False for padding.

        S is `length`, by default that of the longest row; a fixed length avoids recompilation.

        Raises:
            ConfigError: a row is longer than `length`.
        """
        longest = max(map(len, rows), default=0)
        length = longest if length is None else length
        ConfigError.require(longest <= length, f"a sequence of {longest} tokens does not fit in {length}")
        tokens = np.full((len(rows), length), self.pad_token, np.int32)
        mask = np.zeros((len(rows), length), bool)
        for i, row in enumerate(rows):
            start = length - len(row) if side == "left" else 0
            tokens[i, start : start + len(row)] = row
            mask[i, start : start + len(row)] = True
        return tokens, mask

    # Vocabulary

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def _special_tokens(self) -> dict[int, str]:
        """Names of the special tokens, by id: those marked as special, and those named `<|…|>`."""
        added = self.backend.get_added_tokens_decoder()
        return {
            token: item.content
            for token, item in added.items()
            if item.special or (item.content.startswith("<|") and item.content.endswith("|>"))
        }

    def token(self, name: str) -> int:
        """The id of the token with this name.

        Raises:
            ConfigError: it does not exist.
        """
        token = self.backend.token_to_id(name)
        if token is None:
            raise ConfigError(f"the tokenizer has no token {name!r}")
        return token

    @property
    def image_token(self) -> int:
        """The placeholder of a visual token."""
        return self.token("<|image_pad|>")

    @property
    def end_token(self) -> int:
        """The end of a turn: the last token of a complete response."""
        return self.token("<|im_end|>")

    @property
    def pad_token(self) -> int:
        """Padding."""
        return self.token("<|endoftext|>")

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Tokens that end generation."""
        return self.end_token, self.pad_token


def games_chat(text: str, has_image: bool) -> str:
    """The chat template of the games' tokenizer; equals the one in its `tokenizer_config.json`."""
    image = "<|vision_start|><|image_pad|><|vision_end|>" if has_image else ""
    return f"<|im_start|>user\n{image}{text}<|im_end|>\n<|im_start|>assistant\n"


def check_tokenizer(tokenizer: Tokenizer, config: Config) -> None:
    """Checks that a tokenizer fits a model. The model may have more rows than the tokenizer has tokens, as Qwen's do.

    Raises:
        ConfigError: a special token that the model needs is missing or has another id, or there are too many tokens.
    """
    size, limit = tokenizer.vocab_size, config.text.vocab_size
    ConfigError.require(
        size <= limit,
        f"the tokenizer has {size} tokens, the model {limit}: set preset(…, vocab_size={size})",
    )
    for name, key in (
        ("<|image_pad|>", "image_token_id"),
        ("<|vision_start|>", "vision_start_token_id"),
        ("<|vision_end|>", "vision_end_token_id"),
    ):
        token, expected = tokenizer.token(name), getattr(config, key)
        ConfigError.require(
            token == expected, f"{name} is token {token} of the tokenizer, but {key}={expected} of the model"
        )


# Loading


def _template_chat(hf: Any, folder: Path) -> Chat:
    ConfigError.require(bool(hf.chat_template), f"{folder}: the tokenizer has no chat template")

    def chat(text: str, has_image: bool) -> str:
        content = [{"type": "image"}] if has_image else []
        content.append({"type": "text", "text": text})
        turn = [{"role": "user", "content": content}]
        try:
            return str(hf.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template is a program and can raise anything
            raise ConfigError(f"{folder}: its chat template fails: {one_line(str(error), 200)}") from None

    return chat
