"""From tokens to bytes on the device: a table of each token's bytes, and the text of token sequences."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int32, UInt8

from g1jax.errors import ConfigError
from g1jax.typing import Array
from g1jax.vlm.tokenizer import Tokenizer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenBytes:
    """The bytes of each token. An argument of jit, not a constant: for a large vocabulary it has 20 MB."""

    bytes: UInt8[Array, "V M"]  # zero-padded
    lengths: Int32[Array, "V"]  # 0 for special tokens


def token_bytes(tokenizer: Tokenizer) -> TokenBytes:
    """The table of a byte-level tokenizer (Qwen's or the games' own); it agrees with the tokenizer's `decode`.

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
    texts = token_texts(tokenizer)
    lengths = np.array([len(text) for text in texts], np.int32)
    width = max(1, int(lengths.max(initial=0)))
    flat = np.frombuffer(b"".join(text.ljust(width, b"\0") for text in texts), np.uint8)
    return TokenBytes(jnp.asarray(flat.reshape(-1, width)), jnp.asarray(lengths))


def token_texts(tokenizer: Tokenizer) -> list[bytes]:
    """The same table on the host: the bytes of each token, by id.

    Raises:
        ConfigError: the tokenizer does not write text byte by byte.
    """
    from tokenizers import decoders

    backend = tokenizer.backend
    ConfigError.require(
        isinstance(backend.decoder, decoders.ByteLevel),
        f"a tokenizer with {backend.decoder!r}: a table of bytes needs a ByteLevel decoder",
    )
    added = backend.get_added_tokens_decoder()
    texts = [b""] * tokenizer.vocab_size
    for name, token in backend.get_vocab(with_added_tokens=True).items():
        texts[token] = b"" if token in added and added[token].special else bytes_of(name)
    return texts


def bytes_of(name: str) -> bytes:
    """The bytes of an entry of a byte-level vocabulary: one per character, or UTF-8 if a character encodes no byte.

    >>> bytes_of("ĠRed"), bytes_of("<a b>")
    (b' Red', b'<a b>')
    """
    values = [_BYTES.get(char) for char in name]
    return bytes([v for v in values if v is not None]) if None not in values else name.encode()


def byte_characters() -> dict[str, int]:
    """The characters that encode bytes in byte-level vocabularies (GPT-2): visible ones encode themselves.

    The other bytes, in order, have the characters from U+0100 on.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_BYTES = byte_characters()


def to_bytes(
    table: TokenBytes, tokens: Int32[Array, "*B S"], mask: Bool[Array, "*B S"], length: int
) -> UInt8[Array, "*B {length}"]:
    """The text of tokens, zero-padded or truncated.

    Tokens outside the mask or the vocabulary are empty (a model may have more rows than its tokenizer has tokens). To
    be jitted with `length` static.
    """
    shape = tokens.shape[:-1]
    rows = tokens.reshape(-1, tokens.shape[-1])
    texts = jax.vmap(lambda row, row_mask: _row_bytes(table, row, row_mask, length))(rows, mask.reshape(rows.shape))
    return texts.reshape(*shape, length)


def _row_bytes(table: TokenBytes, tokens: Array, mask: Array, length: int) -> Array:
    """int32[S], bool[S] -> uint8[length]."""
    vocab_size, width = table.bytes.shape
    is_valid = mask & (tokens >= 0) & (tokens < vocab_size)
    tokens = jnp.where(is_valid, tokens, 0)
    lengths = jnp.where(is_valid, table.lengths[tokens], 0)
    pieces = jnp.where(is_valid[:, None], table.bytes[tokens], jnp.uint8(0))
    starts = jnp.minimum(jnp.cumsum(lengths) - lengths, length)
    # Pieces overlap with the padding of earlier ones, which is zero; so the maximum keeps the pieces.
    dimensions = jax.lax.ScatterDimensionNumbers((1,), (), (0,))
    text = jnp.zeros(length + width, jnp.uint8)
    return jax.lax.scatter_max(text, starts[:, None], pieces, dimensions, mode="promise_in_bounds")[:length]
