"""Teachers: a move and a rationale for a state, for demonstrations."""

from g1jax.teachers.budget import token_budgets
from g1jax.teachers.core import Reply, Respond, StateBatch, Teacher, built_in, register_teacher, teach

__all__ = ["Reply", "Respond", "StateBatch", "Teacher", "built_in", "register_teacher", "teach", "token_budgets"]
