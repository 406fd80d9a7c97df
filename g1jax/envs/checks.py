"""Checks of shapes and types of inputs to environments, before anything is traced or compiled."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from g1jax.errors import InputError
from g1jax.typing import Array, ArrayLike

_LARGEST = 2**31 - 1


def as_int32(what: str, values: ArrayLike | int, *shapes: tuple[int | None, ...]) -> Array:
    """Integers of any width as int32, of one of these shapes (None: any length).

    Values beyond int32 become -1 or its largest value, neither of which is an action of any game; they never wrap.

    Raises:
        InputError: the values are not integers, or have another shape.
    """
    numbers = values if isinstance(values, jax.Array) else np.asarray(values)
    wanted = " or ".join(f"int32[{', '.join('K' if n is None else str(n) for n in shape)}]" for shape in shapes)
    fits = any(
        len(shape) == numbers.ndim and all(n in (None, m) for n, m in zip(shape, numbers.shape, strict=True))
        for shape in shapes
    )
    is_integer = jnp.issubdtype(numbers.dtype, jnp.integer)
    InputError.require(fits and is_integer, f"{what}: {_spell(numbers)}; give integers, {wanted}")
    if numbers.dtype.itemsize >= 4 and numbers.dtype != np.int32:
        lowest = -1 if jnp.issubdtype(numbers.dtype, jnp.signedinteger) else 0
        numbers = numbers.clip(numbers.dtype.type(lowest), numbers.dtype.type(_LARGEST))
    return jnp.asarray(numbers.astype(np.int32))


def check_bytes(what: str, texts: ArrayLike, *shape: int | None) -> None:
    """Checks bytes of a shape (None: any length).

    Raises:
        InputError: the values are not uint8, or have another shape.
    """
    fits = len(shape) == texts.ndim and all(n in (None, m) for n, m in zip(shape, texts.shape, strict=True))
    wanted = ", ".join("N" if n is None else str(n) for n in shape)
    InputError.require(fits and texts.dtype == np.uint8, f"{what}: {_spell(texts)}; give bytes, uint8[{wanted}]")


def check_key(key: Any) -> None:
    """Checks that a key is one typed key, `jax.random.key(seed)`, or one of the old style, `jax.random.PRNGKey(seed)`.

    Raises:
        InputError: it is not.
    """
    is_array = isinstance(key, jax.Array | np.ndarray)
    is_typed = is_array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    is_one = (is_typed and key.ndim == 0) or (is_array and key.dtype == np.uint32 and key.ndim == 1)
    given = _spell(key) if is_array else type(key).__name__
    InputError.require(is_one, f"key: {given}; give one random key, such as jax.random.key(0)")


def check_seed(seed: Any) -> None:
    """Checks that a number is an unsigned 32-bit integer; arrays are not checked.

    Raises:
        InputError: it is not.
    """
    if not isinstance(seed, jax.Array | np.ndarray):
        InputError.require(is_whole(seed) and 0 <= seed < 2**32, f"seed={seed!r}: a whole number, 0 to 2^32 - 1")


def is_whole(value: Any) -> bool:
    """Whether a value is an integer of Python or NumPy, and not a bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _spell(values: ArrayLike) -> str:
    return f"{values.dtype}[{', '.join(map(str, values.shape))}]"
