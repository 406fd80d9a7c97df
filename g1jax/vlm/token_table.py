"""From tokens to bytes on the device: a table of what every token says, and the text of many tokens at once."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from g1jax.errors import ConfigError
from g1jax.typing import Array
from g1jax.vlm.tokenizer import Tokenizer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenBytes:
    """What every token says. An argument of jit rather than a constant: a large vocabulary's has 20 MB."""

    bytes: Array  # uint8[V, M], zero-padded
    lengths: Array  # int32[V], 0 for special tokens


def token_bytes(tokenizer: Tokenizer) -> TokenBytes:
    """The table of a byte-level tokenizer, Qwen's or the games' own: what its `decode` makes of every token.

    >>> from g1jax import vlm
    >>> tokenizer = vlm.Tokenizer.load("games")
    >>> table = vlm.token_bytes(tokenizer)
    >>> tokens = jnp.array([tokenizer.encode("<answer>(0, 1) (2, 3)</answer>")])
    >>> text = vlm.to_bytes(table, tokens, tokens >= 0, 40)
    >>> bytes(text[0]).rstrip(b"\\0").decode()
    '<answer>(0, 1) (2, 3)</answer>'

    Raises:
        ConfigError: the tokenizer does not write text byte by byte.
    """
    words = token_texts(tokenizer)
    lengths = np.array([len(word) for word in words], np.int32)
    width = max(1, int(lengths.max(initial=0)))
    flat = np.frombuffer(b"".join(word.ljust(width, b"\0") for word in words), np.uint8)
    return TokenBytes(jnp.asarray(flat.reshape(-1, width)), jnp.asarray(lengths))


def token_texts(tokenizer: Tokenizer) -> list[bytes]:
    """The same table on the host: the text of each token, by its number.

    Raises:
        ConfigError: the tokenizer does not write text byte by byte.
    """
    from tokenizers import decoders

    backend = tokenizer.backend
    ConfigError.require(
        isinstance(backend.decoder, decoders.ByteLevel),
        f"a tokenizer with {backend.decoder!r}: only those with a ByteLevel decoder have a table of bytes",
    )
    added = backend.get_added_tokens_decoder()
    words = [b""] * tokenizer.vocab_size
    for word, token in backend.get_vocab(with_added_tokens=True).items():
        words[token] = b"" if token in added and added[token].special else bytes_of(word)
    return words


def bytes_of(word: str) -> bytes:
    """What a word of a byte-level vocabulary says: a byte a character, or itself if any character is no byte's.

    >>> bytes_of("ĠRed"), bytes_of("<a b>")
    (b' Red', b'<a b>')
    """
    values = [_BYTES.get(char) for char in word]
    return bytes([v for v in values if v is not None]) if None not in values else word.encode()


def byte_characters() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies, since GPT-2: visible ones for themselves.

    The others, in order, are the characters from U+0100 on.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_BYTES = byte_characters()


def to_bytes(table: TokenBytes, tokens: Array, mask: Array, length: int) -> Array:
    """The texts of tokens, int32[..., S], bool[..., S] -> uint8[..., length]: zero-padded, cut off if longer.

    Tokens outside of the mask or the vocabulary say nothing (a model may have more rows than its tokenizer has
    tokens). To be jitted, with `length` static.
    """
    shape = tokens.shape[:-1]
    lines = tokens.reshape(-1, tokens.shape[-1])
    texts = jax.vmap(lambda line, line_mask: _write(table, line, line_mask, length))(lines, mask.reshape(lines.shape))
    return texts.reshape(*shape, length)


def _write(table: TokenBytes, tokens: Array, mask: Array, length: int) -> Array:
    """One line: int32[S], bool[S] -> uint8[length]."""
    vocab_size, width = table.bytes.shape
    is_said = mask & (tokens >= 0) & (tokens < vocab_size)
    tokens = jnp.where(is_said, tokens, 0)
    lengths = jnp.where(is_said, table.lengths[tokens], 0)
    words = jnp.where(is_said[:, None], table.bytes[tokens], jnp.uint8(0))
    starts = jnp.minimum(jnp.cumsum(lengths) - lengths, length)
    # Words are laid down with their padding, which is zero and so leaves what lies under it.
    rows = jax.lax.ScatterDimensionNumbers((1,), (), (0,))
    text = jnp.zeros(length + width, jnp.uint8)
    return jax.lax.scatter_max(text, starts[:, None], words, rows, mode="promise_in_bounds")[:length]
