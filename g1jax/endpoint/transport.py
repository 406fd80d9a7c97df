"""HTTP as far as it is needed of a server that is not trusted: one body, bounded, from the place that was asked.

The OpenAI client reads bodies whole, in any encoding, and follows redirects with the question in hand. Here a body is
read up to a size, also when compressed; a redirect is not followed; and nothing else of the response, such as the
character set that it claims, reaches the client.
"""

import zlib
from typing import Any

from g1jax.errors import G1Error
from g1jax.foreign import ForeignError, parse_json

MAX_BODY = 4 * 2**20
"""Bytes of an answer. The longest responses of today's models, 128k tokens, are an eighth of it."""
MAX_DEPTH = 32

_KEPT = ("retry-after", "location")


class BodyError(G1Error):
    """An answer that is not read to its end."""


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
                body = b""  # the client would look for a message in it
            headers = {name: response.headers[name] for name in _KEPT if name in response.headers}
            headers["content-type"] = "application/json"
            return type(response)(response.status_code, headers=headers, content=body, request=response.request)

    return BoundedClient(timeout=timeout, follow_redirects=False, headers={"accept-encoding": "identity"})


async def _read(response: Any) -> bytes:
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "deflate", ""):
        raise BodyError("an answer in an encoding that was not asked for")
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32) if encoding in ("gzip", "deflate") else None
    body = bytearray()
    async for chunk in response.aiter_raw():
        try:
            body += chunk if unpack is None else unpack.decompress(chunk, MAX_BODY + 1 - len(body))
        except zlib.error:
            raise BodyError(f"an answer that is not the {encoding} it says it is") from None
        if len(body) > MAX_BODY or (unpack is not None and unpack.unconsumed_tail):
            raise BodyError(f"an answer of more than {MAX_BODY // 2**20} MiB")
    return bytes(body)


def _is_json(body: bytes) -> bool:
    try:
        read_body(body)
    except ForeignError:
        return False
    return True


def read_body(body: bytes) -> Any:
    """The JSON of a body.

    Raises:
        ForeignError: it is none, or is nested too deep.
    """
    return parse_json(body, "the answer", max_bytes=MAX_BODY, max_depth=MAX_DEPTH, lenient=True)
