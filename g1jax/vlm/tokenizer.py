"""Text to tokens and back: the games' own tokenizer, which ships, or any of Hugging Face's byte-level ones.

The games' tokenizer has the special tokens of the presets and about a token a cell of a board; see
`scripts/train_tokenizer.py`.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from g1jax.errors import ConfigError
from g1jax.terminal import one_line
from g1jax.vlm.config import Config
from g1jax.vlm.tokenizer_files import CONFIG_FILE, FILE, chat_template, load_file, load_hf

if TYPE_CHECKING:
    import tokenizers

GAMES = "games"
_DATA = Path(__file__).parent / "data"

Chat = Callable[[str, bool], str]
"""A user's turn and the head of the reply, from the user's text and whether an image stands before it."""


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text to tokens and back, with the chat form its model is used to.

    >>> tokenizer = Tokenizer.load("games")
    >>> tokenizer.encode("Red circle | Blue star")
    [819, 688]
    >>> tokenizer.decode([819, 688])
    'Red circle | Blue star'
    """

    backend: "tokenizers.Tokenizer"
    chat: Chat
    hf: Any = None
    """The tokenizer of transformers, if it was loaded by it."""

    def __eq__(self, other: object) -> bool:
        """By what it does: the same tokens, in the same chat form."""
        return isinstance(other, Tokenizer) and self._fingerprint == other._fingerprint

    def __hash__(self) -> int:
        return hash(self._fingerprint)

    @functools.cached_property
    def _fingerprint(self) -> bytes:
        parts = self.backend.to_str(), self.chat("?", True), self.chat("?", False)
        return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()

    @staticmethod
    def load(source: str | Path = GAMES) -> "Tokenizer":
        """A tokenizer.

        Args:
            source: `games`, the shipped one; a `tokenizer.json`, or a folder with one, in the shipped one's chat form;
                or a folder whose `tokenizer_config.json` has another form, which transformers loads and applies.

        Raises:
            ConfigError: there is none, it is damaged, or transformers is needed and not installed.
        """
        path = _DATA / FILE if source == GAMES else Path(source)
        ConfigError.require(path.exists(), f"no tokenizer at {path}: give '{GAMES}', a {FILE}, or a folder with one")
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
        self.backend.save(str(folder / FILE))

    # Text and tokens

    def encode(self, text: str) -> list[int]:
        """The tokens of a text and no others; special tokens are known by their names."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], places: Sequence[str] = ()) -> list[list[int]]:
        """The tokens of each text, none of which is special: a text that is taught cannot end a turn or hold an image.

        Raises:
            ConfigError: a text has the name of a special token in it; `places` say where each text comes from.
        """
        lines = [encoding.ids for encoding in self.backend.encode_batch(list(texts), add_special_tokens=False)]
        special = self._special_tokens
        for i, line in enumerate(lines):
            found = special.keys() & line
            if found:
                place = places[i] if places else "a text to learn"
                raise ConfigError(f"{place}: the special token {special[min(found)]!r} in a text: leave it out")
        return lines

    def decode(self, tokens: Sequence[int] | np.ndarray, *, keep_special: bool = False) -> str:
        """The text of tokens; bytes that are not UTF-8 show as the replacement character."""
        return self.backend.decode([int(token) for token in tokens], skip_special_tokens=not keep_special)

    def prompt(self, text: str, num_visual_tokens: int, response_start: str = "") -> list[int]:
        """A user's turn, the image and then the text, and the head of the reply, which may begin with given words.

        Raises:
            ConfigError: the text has a special token in it, or the turn has not the one place for the image that it
                should have.
        """
        ConfigError.require(num_visual_tokens >= 0, f"num_visual_tokens={num_visual_tokens}: 0 (no image) or more")
        self.encode_batch([text], ["the prompt"])
        turn = self.encode(self.chat(text, num_visual_tokens > 0))
        image, found = self.image_token, turn.count(self.image_token)
        wanted = int(num_visual_tokens > 0)
        ConfigError.require(
            found == wanted, f"a prompt with {found} image tokens, not {wanted}: the text or the template is wrong"
        )
        if found:
            place = turn.index(image)
            turn[place : place + 1] = [image] * num_visual_tokens
        return turn + self.encode(response_start)

    def pad_batch(
        self, lines: Sequence[Sequence[int]], side: Literal["left", "right"] = "left", length: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lines of tokens as one array, and which are not padding: int32[B, S], bool[B, S].

        `length` is S, else that of the longest line; fewer lengths, fewer compilations.

        Raises:
            ConfigError: a line is longer than `length`.
        """
        longest = max(map(len, lines), default=0)
        length = longest if length is None else length
        ConfigError.require(longest <= length, f"a line of {longest} tokens does not fit in {length}")
        tokens = np.full((len(lines), length), self.pad_token, np.int32)
        mask = np.zeros((len(lines), length), bool)
        for row, line in enumerate(lines):
            start = length - len(line) if side == "left" else 0
            tokens[row, start : start + len(line)] = line
            mask[row, start : start + len(line)] = True
        return tokens, mask

    # Its vocabulary

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the highest token."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def _special_tokens(self) -> dict[int, str]:
        """The tokens that are no text, with their names: those a file marks, and those whose names look like it."""
        added = self.backend.get_added_tokens_decoder()
        return {
            token: item.content
            for token, item in added.items()
            if item.special or (item.content.startswith("<|") and item.content.endswith("|>"))
        }

    def token(self, name: str) -> int:
        """The token of this name.

        Raises:
            ConfigError: there is none.
        """
        token = self.backend.token_to_id(name)
        if token is None:
            raise ConfigError(f"the tokenizer has no token {name!r}")
        return token

    @property
    def image_token(self) -> int:
        """Stands where a visual token goes."""
        return self.token("<|image_pad|>")

    @property
    def end_token(self) -> int:
        """Ends a turn: the last token of every response."""
        return self.token("<|im_end|>")

    @property
    def pad_token(self) -> int:
        """Fills what is not used."""
        return self.token("<|endoftext|>")

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """After these nothing is written."""
        return self.end_token, self.pad_token


def games_chat(text: str, has_image: bool) -> str:
    """The chat form of the games' tokenizer, the same as the template in its `tokenizer_config.json`."""
    image = "<|vision_start|><|image_pad|><|vision_end|>" if has_image else ""
    return f"<|im_start|>user\n{image}{text}<|im_end|>\n<|im_start|>assistant\n"


def check_tokenizer(tokenizer: Tokenizer, config: Config) -> None:
    """Refuses a tokenizer that does not fit a model. Fewer tokens than the model has rows is well: Qwen's are such.

    Raises:
        ConfigError: a special token the model needs is not there or has another id, or there are too many tokens.
    """
    size, limit = tokenizer.vocab_size, config.text.vocab_size
    ConfigError.require(
        size <= limit,
        f"the tokenizer has {size} tokens, the model {limit}: preset(…, vocab_size={size}) makes room for them",
    )
    for name, key in (
        ("<|image_pad|>", "image_token_id"),
        ("<|vision_start|>", "vision_start_token_id"),
        ("<|vision_end|>", "vision_end_token_id"),
    ):
        token, wanted = tokenizer.token(name), getattr(config, key)
        ConfigError.require(
            token == wanted, f"{name} is token {token} of the tokenizer, but {key}={wanted} of the model"
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
        except Exception as error:  # a template is a program: anything
            raise ConfigError(f"{folder}: its chat template fails: {one_line(str(error), 200)}") from None

    return chat
