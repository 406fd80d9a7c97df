"""The grammar of a response: what is seen, why which move, the move, each within its tags. It is spelled here alone."""

PERCEPTION, THINK, ANSWER = "perception", "think", "answer"
TAGS = tuple(tag for name in (PERCEPTION, THINK, ANSWER) for tag in (f"<{name}>", f"</{name}>"))
"""All six, in the order the prompt asks for."""


def tagged(name: str, content: str) -> str:
    """
    >>> tagged("answer", "3")
    '<answer>3</answer>'
    """
    return f"<{name}>{content}</{name}>"


def compose(board: str, rationale: str, answer: str) -> str:
    """A whole response: a board's text, the rationale, and an answer that has its tags already."""
    return tagged(PERCEPTION, board) + tagged(THINK, rationale) + answer


def has_tags_in_order(response: str) -> bool:
    """Whether each tag stands somewhere behind the one before it."""
    at = 0
    for tag in TAGS:
        at = response.find(tag, at)
        if at < 0:
            return False
        at += len(tag)
    return True


ANSWER_FORMAT = "\n".join(
    (
        "Reply in three parts, each in its tags.",
        tagged(
            PERCEPTION,
            "the board as you see it: one line per row, cells separated by ' | ', '-' for an empty cell",
        ),
        tagged(THINK, "your reasoning"),
        tagged(ANSWER, "your move"),
    )
)
"""The reply format, for prompts."""
