"""`loop_while` and `fenced` give the same results as plain loops and functions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from g1jax.envs.vmap_loop import fence, fenced, loop_while
from g1jax.typing import Array
from tests.envs import helpers

Loop = Callable[..., Any]


def collatz(loop: Loop, start: Array) -> dict[str, Array]:
    """Steps to 1, the highest number, and the last numbers seen; ends at once if `start` is 1."""

    def body(carry: dict[str, Array]) -> dict[str, Array]:
        number = jnp.where(carry["number"] % 2 == 0, carry["number"] // 2, 3 * carry["number"] + 1)
        return {
            "number": number,
            "count": carry["count"] + 1,
            "highest": jnp.maximum(carry["highest"], number),
            "seen": carry["seen"].at[carry["count"] % 8].set(number.astype(jnp.float32)),
        }

    zero = {"number": start, "count": jnp.int32(0), "highest": start, "seen": jnp.zeros(8)}
    result: dict[str, Array] = loop(lambda carry: carry["number"] > 1, body, zero)
    return result


def starts(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 200, shape).astype(np.int32)


def of(loop: Loop) -> Callable[[Array], Any]:
    return lambda start: collatz(loop, start)


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 1500])
def test_a_batched_loop_equals_single_loops(size: int) -> None:
    numbers = starts(size)
    actual, expected = (jax.jit(jax.vmap(of(loop)))(numbers) for loop in (loop_while, lax.while_loop))
    helpers.assert_trees_equal(actual, expected)
    assert (np.asarray(actual["number"]) == 1).all()
    assert size < 64 or len(np.unique(np.asarray(actual["count"]))) > 10


def test_a_loop_without_a_batch_is_a_loop() -> None:
    for number in (1, 27):
        actual, expected = (jax.jit(of(loop))(jnp.int32(number)) for loop in (loop_while, lax.while_loop))
        helpers.assert_trees_equal(actual, expected)


def test_a_loop_without_active_environments_changes_nothing() -> None:
    actual = jax.jit(jax.vmap(of(loop_while)))(np.ones(100, np.int32))
    assert not np.asarray(actual["count"]).any()
    assert not np.asarray(actual["seen"]).any()


@pytest.mark.parametrize("shape", [(3, 50), (70, 3), (2, 3, 40), (1, 1)], ids=str)
def test_nested_batches_give_the_same(shape: tuple[int, ...]) -> None:
    def nested(loop: Loop) -> Callable[..., Any]:
        function = of(loop)
        for _ in shape:
            function = jax.vmap(function)
        return jax.jit(function)

    numbers = starts(*shape)
    helpers.assert_trees_equal(nested(loop_while)(numbers), nested(lax.while_loop)(numbers))


def halve(loop: Loop, limit: Array, carry: Array) -> Any:
    """A loop with a carry of which parts may be unbatched."""
    return loop(lambda c: jnp.any(c[1] > c[0]), lambda c: (c[0], c[1] // 2, c[2] + 1), (limit, carry, jnp.int32(0)))


@pytest.mark.parametrize("in_axes", [(0, 0), (None, 0), (0, None)], ids=str)
def test_unbatched_parts_are_shared(in_axes: tuple[int | None, int | None]) -> None:
    limit = np.arange(1, 81, dtype=np.int32) if in_axes[0] == 0 else jnp.int32(5)
    carry = starts(80, 6) * 1000 if in_axes[1] == 0 else starts(6) * 1000
    actual, expected = (
        jax.jit(jax.vmap(lambda a, b, loop=loop: halve(loop, a, b), in_axes))(limit, carry)
        for loop in (loop_while, lax.while_loop)
    )
    helpers.assert_trees_equal(actual, expected)


def test_an_inner_batch_under_an_outer_one_may_share_what_it_reads() -> None:
    limits, carries = np.arange(1, 5, dtype=np.int32), starts(70, 3) * 1000
    actual, expected = (
        jax.jit(jax.vmap(jax.vmap(lambda a, b, loop=loop: halve(loop, a, b), (None, 0)), (0, None)))(limits, carries)
        for loop in (loop_while, lax.while_loop)
    )
    helpers.assert_trees_equal(actual, expected)


def test_nested_loops_give_the_same() -> None:
    def outer(loop: Loop, start: Array) -> Any:
        def body(carry: Any) -> Any:
            inner = collatz(loop, carry[0])
            return carry[0] // 3, carry[1] + inner["count"]

        return loop(lambda carry: carry[0] > 1, body, (start, jnp.int32(0)))

    numbers = starts(150)
    actual, expected = (
        jax.jit(jax.vmap(lambda start, loop=loop: outer(loop, start)))(numbers) for loop in (loop_while, lax.while_loop)
    )
    helpers.assert_trees_equal(actual, expected)


# ---- Fences ----------------------------------------------------------------------------------------------------------


def arithmetic(values: dict[str, Array], shift: Array) -> dict[str, Array]:
    return {
        "sum": jnp.cumsum(values["counts"]) + shift,
        "scaled": values["weights"] * 2.5 + shift.astype(jnp.float32),
        "is_odd": values["counts"] % 2 == 1,
        "word": values["counts"].astype(jnp.uint32) << 3,
    }


def example(*lead: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(1)
    counts = rng.integers(-9, 9, (*lead, 12)).astype(np.int32)
    return {"counts": counts, "weights": rng.random((*lead, 12), np.float32)}, rng.integers(0, 9, lead).astype(np.int32)


def test_a_fenced_function_gives_what_the_function_gives() -> None:
    helpers.assert_trees_equal(jax.jit(fenced(arithmetic))(*example()), jax.jit(arithmetic)(*example()))


@pytest.mark.parametrize("in_axes", [(0, 0), (0, None), (None, 0)], ids=str)
def test_a_fenced_function_gives_the_same_in_a_batch(in_axes: tuple[int | None, int | None]) -> None:
    values = example(9)[0] if in_axes[0] == 0 else example()[0]
    shift = example(9)[1] if in_axes[1] == 0 else example()[1]
    actual, expected = (
        jax.jit(jax.vmap(function, in_axes))(values, shift) for function in (fenced(arithmetic), arithmetic)
    )
    helpers.assert_trees_equal(actual, expected)


def test_a_fenced_function_gives_the_same_in_batches_of_batches_and_in_loops() -> None:
    values, shift = example(4, 5)
    actual, expected = (
        jax.jit(jax.vmap(jax.vmap(function, (0, None)), (0, 0)))(values, shift[:, 0])
        for function in (fenced(arithmetic), arithmetic)
    )
    helpers.assert_trees_equal(actual, expected)

    def repeat(function: Callable[..., Any], values: Any, shift: Array) -> Any:
        def body(_: int, values: Any) -> Any:
            out = function(values, shift)
            return {"counts": out["sum"], "weights": out["scaled"]}

        return lax.fori_loop(0, 5, body, values)

    actual, expected = (
        jax.jit(jax.vmap(lambda v, s, function=function: repeat(function, v, s)))(*example(7))
        for function in (fenced(arithmetic), arithmetic)
    )
    helpers.assert_trees_equal(actual, expected)


def test_a_fence_changes_nothing() -> None:
    values, _ = example(6)
    helpers.assert_trees_equal(jax.jit(fence)(values), jax.tree.map(jnp.asarray, values))
    helpers.assert_trees_equal(jax.jit(jax.vmap(fence))(values), jax.tree.map(jnp.asarray, values))
    for number in (0, 1, -1, np.iinfo(np.int32).min):
        assert int(jax.jit(fence)(jnp.int32(number))) == number
