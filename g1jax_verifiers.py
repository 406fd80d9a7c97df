"""The games under the name by which `verifiers` finds them, `g1jax-verifiers`; see g1jax/adapters/verifiers.py."""

from g1jax.adapters.verifiers import ChatHarness, GameEnv, GameTaskset, load_environment

__all__ = ["ChatHarness", "GameEnv", "GameTaskset", "load_environment"]
