"""Short texts about a board, assembled on the device."""

from collections.abc import Sequence

import jax.numpy as jnp

from g1jax.envs.text import NameTable, join
from g1jax.typing import Array


class Phrasebook:
    """Texts about a board of one size, as sequences of pieces: cell names, places ` (r, c)` and fixed phrases."""

    def __init__(self, names: Sequence[str], rows: int, cols: int, phrases: Sequence[str]) -> None:
        places = [f" ({r}, {c})" for r in range(rows) for c in range(cols)]
        self._table = NameTable.of([*names, *places, *phrases, ""])
        self._first_place = len(names)
        first_phrase = len(names) + len(places)
        self._phrases = {phrase: first_phrase + i for i, phrase in enumerate(phrases)}
        self._empty = first_phrase + len(phrases)

    def name(self, kind: Array) -> Array:
        """The piece with the name of a kind of cell."""
        return kind.astype(jnp.int32)

    def name_or(self, kind: Array, phrase: str) -> Array:
        """The piece with the name of a kind; of a phrase for kind 0."""
        return jnp.where(kind == 0, self.phrase(phrase), self.name(kind))

    def place(self, place: Array) -> Array:
        """The piece of a cell, by its place in reading order; the empty piece for -1."""
        return jnp.where(place < 0, self._empty, place.astype(jnp.int32) + self._first_place)

    def phrase_if(self, condition: Array, phrase: str) -> Array:
        """The piece of a phrase where a condition holds; else the empty piece."""
        return jnp.where(condition, self.phrase(phrase), self._empty)

    def phrase(self, phrase: str) -> Array:
        """The piece of a phrase."""
        return jnp.int32(self._phrases[phrase])

    def phrase_of(self, index: Array, phrases: Sequence[str]) -> Array:
        """The piece of the phrase at an index, int32[]."""
        return jnp.asarray([self._phrases[phrase] for phrase in phrases], jnp.int32)[index]

    def write(self, pieces: Sequence[Array | str]) -> Array:
        """The text of some pieces, or phrases as strings: uint8[T], zero-padded; T depends on the number of pieces."""
        stacked = jnp.stack([self.phrase(piece) if isinstance(piece, str) else piece for piece in pieces])
        return join(stacked, self._table, len(pieces) * self._table.names.shape[1])
