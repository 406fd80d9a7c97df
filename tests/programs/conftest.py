"""For the tests of command lines."""

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def one_device() -> None:
    """Initializes JAX with one device, before a command line requests one per core."""
    jax.devices()
