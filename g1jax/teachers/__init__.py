"""Teachers: a move and a rationale for a state, for demonstrations."""

from g1jax.teachers.budget import token_budgets
from g1jax.teachers.core import (
    Choice,
    Reply,
    Respond,
    StateBatch,
    Teacher,
    built_in,
    check_choice,
    register_teacher,
    teach,
)

__all__ = [
    "Choice",
    "Reply",
    "Respond",
    "StateBatch",
    "Teacher",
    "built_in",
    "check_choice",
    "register_teacher",
    "teach",
    "token_budgets",
]
