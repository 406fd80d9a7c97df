"""Keys and passwords in untrusted text are redacted in every encoding, and nothing else is."""

import base64
import html
import json
import urllib.parse
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g1jax.endpoint.redact import REDACTED, Redactor, redactor_for

KEY = "sk-Proj_9~a/b+c=d&e'f\"g<h>i\\j%k"
USER, PASSWORD = "me", "pa:ss"
URL = f"https://{USER}:{urllib.parse.quote(PASSWORD, safe='')}@host/v1"

Encode = Callable[[str], str]
ENCODINGS: dict[str, Encode] = {
    "verbatim": str,
    "repr": repr,
    "repr of bytes": lambda text: repr(text.encode()),
    "json": json.dumps,
    "json in json": lambda text: json.dumps(json.dumps({"error": text})),
    "json in json in json": lambda text: json.dumps(json.dumps(json.dumps(text))),
    "slashes escaped": lambda text: text.replace("/", "\\/"),
    "all escaped": lambda text: "".join(f"\\u{ord(char):04X}" for char in text),
    "url": urllib.parse.quote,
    "url, all": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "url, twice": lambda text: urllib.parse.quote(urllib.parse.quote(text, safe="")),
    "html": html.escape,
    "html, twice": lambda text: html.escape(html.escape(text)),
    "html, decimal": lambda text: "".join(f"&#{ord(char)};" for char in text),
    "html, hexadecimal": lambda text: "".join(f"&#x{ord(char):X};" for char in text),
    "html in json": lambda text: json.dumps(html.escape(text)),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64, url-safe": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "base64, in lines": lambda text: base64.encodebytes(b"-" * 48 + text.encode()).decode(),
    "base64, after 1": lambda text: base64.b64encode(b"x" + text.encode() + b"x").decode(),
    "base64, after 2": lambda text: base64.b64encode(b"xx" + text.encode() + b"xx").decode(),
    "base64 in json": lambda text: json.dumps(base64.encodebytes(text.encode()).decode().replace("/", "\\/")),
    "base64 in url": lambda text: urllib.parse.quote(base64.b64encode(text.encode()).decode(), safe=""),
    "hexadecimal": lambda text: text.encode().hex(),
    "hexadecimal, apart": lambda text: text.encode().hex(":").upper(),
}


def pieces(encoded: str) -> set[str]:
    return {encoded[i : i + 6] for i in range(len(encoded) - 5)}


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("secret", [KEY, f"{USER}:{PASSWORD}"], ids=["key", "basic"])
def test_a_secret_is_redacted_in_every_encoding(name: str, secret: str) -> None:
    encoded = ENCODINGS[name](secret)
    shown = redactor_for(KEY, URL)(f"Before. {encoded} After.")
    assert shown.startswith("Before. ")
    assert shown.endswith(" After.")
    assert REDACTED in shown
    around = pieces(ENCODINGS[name]("")) | pieces(base64.b64encode(b"-" * 48).decode())
    assert not pieces(encoded) & pieces(shown) - around, shown


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
def test_the_beginning_of_a_key_that_was_cut_is_redacted(encode: Encode) -> None:
    shown = redactor_for(KEY, "https://host/v1")(f"Before. {KEY[:16]}… After. {encode(KEY)[: len(encode(KEY)) // 2]}")
    assert shown.startswith(f"Before. {REDACTED}")
    assert KEY[:13] not in shown


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(codec="ascii", exclude_categories=("Cc", "Zs")), min_size=8, max_size=40),
    st.sampled_from(sorted(ENCODINGS)),
    st.text(max_size=10),
    st.text(max_size=10),
)
def test_any_key_is_redacted(key: str, name: str, before: str, after: str) -> None:
    encoded = ENCODINGS[name](key)
    shown = Redactor([key])(f"{before} {encoded} {after}")
    assert REDACTED in shown
    assert encoded not in shown
    assert key not in shown


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters() | st.sampled_from("\\%&;u04xn#")))
def test_other_text_is_unchanged(text: str) -> None:
    assert redactor_for(KEY, URL)(text) == text


def test_short_secrets_are_redacted_as_whole_words() -> None:
    redact = redactor_for("EMPTY", "http://me:word@host/v1?token=abc12&n=1")
    assert redact("words, sword, EMPTY, me") == "words, sword, EMPTY, me"
    assert (
        redact('a "word"\\nword, abc12, <answer>1</answer>')
        == f'a "{REDACTED}"\\n{REDACTED}, {REDACTED}, <answer>1</answer>'
    )
    assert redact("me:word bWU6d29yZA==") == f"{REDACTED} {REDACTED}"
    digits = redactor_for("", "http://me:1234@host/v1")
    assert digits("<answer>1234</answer> me:1234 bWU6MTIzNA==") == f"<answer>1234</answer> {REDACTED} {REDACTED}"
    assert redactor_for("abc123", "http://host/v1")("abc123 abc1234 Bearer abc123") == f"{REDACTED} abc1234 {REDACTED}"
    assert redactor_for("none", "http://host/v1")("Bearer none, none") == "Bearer none, none"


def test_other_secrets_of_an_endpoint() -> None:
    redact = redactor_for("", "https://a-token-as-user@host/v1?key=query-secret", "X-Auth: header-secret\nX-B: c")
    assert redact("a-token-as-user query-secret header-secret c") == f"{REDACTED} {REDACTED} {REDACTED} c"


def test_time_is_bounded_by_the_length_of_the_text() -> None:
    """Texts on which patterns that are tried at every position take hours."""
    redact = redactor_for("a" * 20, URL)
    for text in ("\\", "%25", "&amp;", "a", "A", "a" * 11 + " ", "\\\\u0061"):
        redact(text * (100_000 // len(text)))
