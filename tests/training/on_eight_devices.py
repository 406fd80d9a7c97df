"""Run on 8 fake devices by test_collectives: prints the traffic of small programs that can be counted by hand."""

import dataclasses
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from g1jax.training.collectives import traffic_of

ROWS, COLUMNS = "rows", "columns"  # 2 × 4 devices


def psum(x: jax.Array) -> jax.Array:
    return lax.psum(x, COLUMNS)


def psum_of_all(x: jax.Array) -> jax.Array:
    return lax.psum(x, (ROWS, COLUMNS))


def psums_in_loops(x: jax.Array) -> jax.Array:
    """5 × 3 sums."""

    def repeat(x: jax.Array, times: int) -> jax.Array:
        return lax.scan(lambda x, _: (x + lax.psum(x, COLUMNS), None), x, length=times)[0]

    return lax.scan(lambda x, _: (repeat(x, 3) + jnp.float32(1), None), x, length=5)[0]


def psum_in_a_while_loop(x: jax.Array) -> jax.Array:
    return lax.while_loop(lambda x: x[0] < 100, lambda x: x + lax.psum(x, COLUMNS), x) + lax.psum(x, ROWS)


def psum_in_a_branch(x: jax.Array) -> jax.Array:
    return lax.cond(x[0] > 3, lambda x: lax.psum(x, COLUMNS), lambda x: x[0] + lax.psum(x, ROWS), x)


def all_gather(x: jax.Array) -> jax.Array:
    return lax.all_gather(x, COLUMNS, tiled=True)


def reduce_scatter(x: jax.Array) -> jax.Array:
    return lax.psum_scatter(x, COLUMNS, tiled=True)


def all_to_all(x: jax.Array) -> jax.Array:
    return lax.all_to_all(x, COLUMNS, 0, 0, tiled=True)


def permute(x: jax.Array) -> jax.Array:
    return lax.ppermute(x, COLUMNS, [(0, 1), (1, 2), (2, 3), (3, 0)])


PROGRAMS = (
    psum, psum_of_all, psums_in_loops, psum_in_a_while_loop, psum_in_a_branch, all_gather, reduce_scatter, all_to_all,
    permute,
)  # fmt: skip


def compiled_text(program: Callable[[jax.Array], jax.Array]) -> str:
    """The compiled program; every device has float32[128], which is 512 bytes."""
    mesh = jax.make_mesh((2, 4), (ROWS, COLUMNS), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rows = PartitionSpec((ROWS, COLUMNS))
    mapped = jax.shard_map(program, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    return str(jax.jit(mapped).lower(jax.ShapeDtypeStruct((1024,), jnp.float32)).compile().as_text())


def main() -> None:
    found = {}
    for program in PROGRAMS:
        text = compiled_text(program)
        for trips in (0, 1, 7):
            traffic = traffic_of(text, unknown_trips=trips)
            found[f"{program.__name__} {trips}"] = {
                kind: dataclasses.astuple(part) for kind, part in traffic.items() if part.calls
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
