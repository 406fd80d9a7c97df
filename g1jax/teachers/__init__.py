"""Teachers: a move and a rationale for a state, for demonstrations."""

from g1jax.teachers.budget import token_budgets
from g1jax.teachers.core import (
    Reply,
    Respond,
    StateBatch,
    Teacher,
    built_in,
    check_uniform,
    register_teacher,
    teach,
    teach_uniform,
)

__all__ = [
    "Reply",
    "Respond",
    "StateBatch",
    "Teacher",
    "built_in",
    "check_uniform",
    "register_teacher",
    "teach",
    "teach_uniform",
    "token_budgets",
]
