"""The checks of shapes and dtypes are active in every package that they name, and only in tests."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from g1jax import rl, vlm
from g1jax.envs import text
from g1jax.rl.returns import is_running
from tests.conftest import REPOSITORY
from tests.shape_checks import CHECKED

LOGITS = jnp.zeros((2, 8))


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (is_running, [jnp.zeros(3, bool)]),
        (is_running, [jnp.zeros((3, 2))]),
        (vlm.left_pad, [jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 4), bool)]),
        (vlm.left_pad, [jnp.zeros((2, 3)), jnp.ones((2, 3), bool)]),
        (text.find_tag, [jnp.zeros((2, 3), jnp.uint8), "answer"]),
        (text.find_tag, [jnp.zeros(3, jnp.int32), "answer"]),
        (vlm.Score, [LOGITS, LOGITS[0]]),
        (rl.TokenWeights, [LOGITS, LOGITS > 0]),
    ],
)
def test_wrong_shapes_and_dtypes_are_errors(function: Callable[..., Any], arguments: list[Any]) -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        function(*arguments)


def test_tracers_are_checked() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        jax.eval_shape(vlm.left_pad, jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 4), bool))


def test_returned_values_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jnp, "cumsum", lambda *_, **__: jnp.zeros((1, 5), jnp.int32))
    with pytest.raises(jaxtyping.TypeCheckError, match="return value"):
        is_running(jnp.zeros((5, 1), bool))


def test_pytrees_of_other_things_than_arrays_can_be_made() -> None:
    """As JAX does for shapes, shardings and axes."""
    shapes = jax.eval_shape(lambda: vlm.Score(LOGITS, LOGITS))
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == vlm.Score((2, 8), (2, 8))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CHECKED)
def test_every_module_exists_and_was_imported_with_checks(name: str) -> None:
    assert type(importlib.import_module(name).__loader__).__name__ == "_JaxtypingLoader"


def test_without_tests_nothing_is_checked() -> None:
    script = (
        "import sys, jax.numpy as jnp; from g1jax.vlm import Score; from g1jax.rl import reward; Score(0, 0); "
        "print('beartype' in sys.modules, hasattr(reward, '__wrapped__'))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
