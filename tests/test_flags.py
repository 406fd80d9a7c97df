"""The flags of XLA that the tests set."""

import os

from tests import is_known_flag


def test_only_whole_names_are_flags() -> None:
    """A version that dropped a flag may still hold its name within others."""
    assert is_known_flag("xla_backend_optimization_level")
    assert not is_known_flag("backend_optimization_level")
    assert not is_known_flag("xla_backend_optimization")
    assert "xla_backend_optimization_level" in os.environ["XLA_FLAGS"]
