"""HTTP for untrusted servers: bodies are bounded, and redirects are not followed.

The OpenAI client reads whole bodies in any encoding, and repeats a question where a redirect leads. Here a body is
limited, also when decompressed, and of the headers only `_KEPT` reach the client: not, say, the declared charset.
"""

import zlib
from typing import Any

from g1jax.errors import G1Error
from g1jax.untrusted import UntrustedError, parse_json

MAX_BODY = 4 * 2**20
"""Bytes of an answer: eight times the longest responses of today's models, 128k tokens."""
MAX_DEPTH = 32

_KEPT = ("retry-after", "location")


class BodyError(G1Error):
    """An answer whose body is too large or cannot be decoded."""


def bounded_client(openai: Any, timeout: float) -> Any:
    """An HTTP client for `openai.AsyncOpenAI`."""

    class BoundedClient(openai.DefaultAsyncHttpxClient):  # type: ignore[misc]
        async def send(self, request: Any, **options: Any) -> Any:
            response = await super().send(request, **{**options, "stream": True, "follow_redirects": False})
            try:
                body = await _read(response)
            finally:
                await response.aclose()
            if response.status_code >= 300 and not _is_json(body):
                body = b""  # the client would parse it for a message
            headers = {name: response.headers[name] for name in _KEPT if name in response.headers}
            headers["content-type"] = "application/json"
            return type(response)(response.status_code, headers=headers, content=body, request=response.request)

    return BoundedClient(timeout=timeout, follow_redirects=False, headers={"accept-encoding": "identity"})


async def _read(response: Any) -> bytes:
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "deflate", ""):
        raise BodyError("an answer in an encoding that was not requested")
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32) if encoding in ("gzip", "deflate") else None
    body = bytearray()
    async for chunk in response.aiter_raw():
        try:
            body += chunk if unpack is None else unpack.decompress(chunk, MAX_BODY + 1 - len(body))
        except zlib.error:
            raise BodyError(f"an answer that is not valid {encoding}") from None
        if len(body) > MAX_BODY or (unpack is not None and unpack.unconsumed_tail):
            raise BodyError(f"an answer of more than {MAX_BODY // 2**20} MiB")
    return bytes(body)


def _is_json(body: bytes) -> bool:
    try:
        read_body(body)
    except UntrustedError:
        return False
    return True


def read_body(body: bytes) -> Any:
    """The JSON of a body.

    Raises:
        UntrustedError: it is not JSON, or nested too deep.
    """
    return parse_json(body, "the answer", max_bytes=MAX_BODY, max_depth=MAX_DEPTH, lenient=True)
