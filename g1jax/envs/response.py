"""The grammar of a response: perception, reasoning and answer, each within its tags. It is defined only here."""

PERCEPTION, THINK, ANSWER = "perception", "think", "answer"
TAGS = tuple(tag for name in (PERCEPTION, THINK, ANSWER) for tag in (f"<{name}>", f"</{name}>"))
"""All six, in the order that the prompt requires."""


def tagged(name: str, content: str) -> str:
    """Content within its tags.

    >>> tagged("answer", "3")
    '<answer>3</answer>'
    """
    return f"<{name}>{content}</{name}>"


def compose(board: str, rationale: str, answer: str) -> str:
    """A response from a board text, a rationale, and an answer that already has its tags."""
    return tagged(PERCEPTION, board) + tagged(THINK, rationale) + answer


def has_tags_in_order(response: str) -> bool:
    """Whether a response has all tags, each after the previous one."""
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
