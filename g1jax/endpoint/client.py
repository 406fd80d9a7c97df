"""A model behind an OpenAI-compatible endpoint: a question is retried until it is answered or given up.

The key comes from the environment and goes only to the client. It is redacted in every reply and error before any other
use. Servers are not trusted: `transport` bounds the body of a reply, and `Client._parse` validates its fields.
"""

import asyncio
import base64
import io
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from PIL import Image

from g1jax import settings
from g1jax.endpoint.redact import redactor_for
from g1jax.endpoint.transport import BodyError, bounded_client, read_body
from g1jax.errors import EvaluationError
from g1jax.settings import Range
from g1jax.terminal import one_line
from g1jax.typing import HostImages
from g1jax.untrusted import UntrustedError

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"
_OPENAI = "https://api.openai.com/v1"
_MAX_WAIT = 60.0
_MAX_REASON, _MAX_NAME = 300, 60  # characters
_MAX_TOKENS = 10_000_000  # larger token counts for one reply are ignored


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An endpoint, and the settings of requests."""

    model: str = ""
    """The model's name at the endpoint."""
    base_url: Annotated[str, settings.SECRET] = field(default="", repr=False)
    """Empty: $OPENAI_BASE_URL, or OpenAI's own. The key is $OPENAI_API_KEY; local servers need none."""
    temperature: settings.Temperature | None = None
    """None: the endpoint's default."""
    max_tokens: settings.Count = 2048
    """Maximum tokens of a response."""
    image_side: Annotated[int, Range(1, 8192)] = 448
    """Frames are enlarged by an integer factor until their shorter side has at least this many pixels."""
    concurrency: Annotated[int, Range(1, 10_000)] = 8
    """Concurrent questions."""
    timeout: Annotated[float, Range(0, 1e6, is_above=True)] = 120.0
    """Seconds for a complete answer."""
    max_tries: Annotated[int, Range(1, 1000)] = 6
    """Tries before a question counts as failed."""
    backoff: Annotated[float, Range(0, 1e4)] = 1.0
    """Seconds before the second try, doubled for each further one, up to a minute."""
    max_calls: settings.CountOrNone = 0
    """Stops a run after this many calls, including retries, over all its games. 0: no limit."""
    max_total_tokens: Annotated[int, Range(0, 10**12)] = 0
    """Stops a run after this many tokens, of prompts and responses over all its games; an upper bound where the
    endpoint does not report them. 0: no limit."""
    on_failure: Literal["stop", "unreadable"] = "stop"
    """What a failed question does: stop the run, which can be resumed, or count as an unreadable answer."""

    def __post_init__(self) -> None:
        settings.check(self, EvaluationError)

    @property
    def url(self) -> str:
        """The base URL, with defaults applied."""
        return self.base_url or os.environ.get(URL_VARIABLE) or _OPENAI

    @property
    def public_url(self) -> str:
        """The base URL without user, password and query."""
        try:
            parts = urlsplit(self.url)
        except ValueError:
            return ""
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def setting(self) -> dict[str, Any]:
        """The settings that affect its answers."""
        keys = ("model", "temperature", "max_tokens", "image_side")
        return {"url": self.public_url, **{key: getattr(self, key) for key in keys}}


@dataclass(frozen=True)
class Reply:
    """An answer to a question."""

    response: str
    reasoning: str  # returned separately from the response; empty if not
    finish_reason: str
    prompt_tokens: int  # -1 if not reported
    completion_tokens: int  # -1 if not reported


class _Failure(Exception):
    """A failed try."""

    def __init__(self, reason: str, *, is_final: bool = False, stops_all: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.is_final, self.stops_all, self.wait = is_final, stops_all, wait


class GivenUpError(Exception):
    """A question without an answer; `stops_all` if every other question would fail too."""

    def __init__(self, reason: str, *, stops_all: bool) -> None:
        super().__init__(reason)
        self.stops_all = stops_all


@dataclass
class Budget:
    """The caps on the calls of one run, over all its games, and the cost so far."""

    max_calls: int = 0
    max_total_tokens: int = 0
    num_calls: int = 0
    num_tokens: int = 0

    @classmethod
    def of(cls, endpoint: Endpoint) -> Self:
        """An unused budget with the endpoint's caps."""
        return cls(endpoint.max_calls, endpoint.max_total_tokens)

    @property
    def problem(self) -> str:
        """Why no further call is allowed; empty if one is."""
        for key, spent in (("max_calls", self.num_calls), ("max_total_tokens", self.num_tokens)):
            limit = getattr(self, key)
            if limit and spent >= limit:
                return f"{key}={limit} is spent"
        return ""


class Client:
    """Asks an endpoint, within a budget."""

    def __init__(self, endpoint: Endpoint, budget: Budget | None = None) -> None:
        """Raises EvaluationError: no model, a missing or invalid key, an invalid URL, or no `openai` package."""
        EvaluationError.require(endpoint.model != "", "name the endpoint's model")
        _check_url(endpoint)
        key = _key_for(endpoint)
        try:
            import openai
        except ImportError:
            raise EvaluationError("endpoints need a package: pip install openai") from None
        self.endpoint = endpoint
        self.budget = budget or Budget.of(endpoint)
        self.redact = redactor_for(key, endpoint.url, os.environ.get("OPENAI_CUSTOM_HEADERS", ""))
        self._openai = openai
        # We retry ourselves: the client would not log its retries, and does not retry replies that are not JSON.
        self._client = openai.AsyncOpenAI(
            api_key=key or "none",
            base_url=endpoint.url,
            timeout=endpoint.timeout,
            max_retries=0,
            http_client=bounded_client(openai, endpoint.timeout),
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def ask(
        self, prompt: str, png: bytes | None, on_failed_try: Callable[[int, str], None], is_stopped: Callable[[], bool]
    ) -> tuple[Reply, int, float]:
        """The reply, the number of tries and the seconds of the last one; calls `on_failed_try(number, reason)`.

        `png`: the picture before the prompt, if there is one.

        Raises:
            GivenUpError: there is no reply.
        """
        for number in range(1, self.endpoint.max_tries + 1):
            if problem := self.budget.problem:
                raise GivenUpError(problem, stops_all=True)
            start = time.monotonic()
            try:
                return await self._try(prompt, png), number, time.monotonic() - start
            except _Failure as failure:
                reason = one_line(self.redact(str(failure)), _MAX_REASON)
                on_failed_try(number, reason)
                if failure.is_final or number == self.endpoint.max_tries or is_stopped():
                    after = "" if failure.is_final or number == 1 else f" (after {number} tries)"
                    raise GivenUpError(f"{reason}{after}", stops_all=failure.stops_all) from None
                wait = min(self.endpoint.backoff * 2 ** (number - 1), _MAX_WAIT) * random.uniform(0.75, 1.25)
                await asyncio.sleep(max(wait, failure.wait))
        raise AssertionError("unreachable")

    async def _try(self, prompt: str, png: bytes | None) -> Reply:
        openai, endpoint = self._openai, self.endpoint
        self.budget.num_calls += 1
        max_cost = _max_prompt_tokens(prompt, png), endpoint.max_tokens
        cost = 0
        try:
            # The client's timeout is per read: a server that sends a byte at a time would never reach it.
            body = await asyncio.wait_for(self._call(prompt, png), endpoint.timeout)
            reply = self._parse(read_body(body))
            cost = _cost(reply, max_cost)
        except openai.APIStatusError as error:
            raise _status_failure(error, endpoint) from None
        except (openai.APITimeoutError, TimeoutError):
            cost = sum(max_cost)
            raise _Failure(f"no answer within {endpoint.timeout:g} s") from None
        except (openai.APIConnectionError, BodyError) as error:
            cause = error if isinstance(error, BodyError) else error.__cause__
            cost = 0 if "Connect" in type(cause).__name__ else sum(max_cost)
            if isinstance(cause, BodyError):
                raise _Failure(str(cause)) from None
            raise _Failure(f"no connection to {endpoint.public_url}{f': {cause}' if cause else ''}") from None
        except (openai.OpenAIError, UntrustedError, TypeError, AttributeError, LookupError) as error:
            cost = sum(max_cost)
            reason = f": {error}" if isinstance(error, UntrustedError) else f" ({type(error).__name__})"
            raise _Failure(f"not a chat completion{reason}") from None
        finally:
            self.budget.num_tokens += cost
        return reply

    async def _call(self, prompt: str, png: bytes | None) -> bytes:
        endpoint = self.endpoint
        limit_key = "max_completion_tokens" if endpoint.url.startswith(_OPENAI) else "max_tokens"
        options: dict[str, Any] = {limit_key: endpoint.max_tokens}
        if endpoint.temperature is not None:
            options["temperature"] = endpoint.temperature
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        if png is not None:
            url = "data:image/png;base64," + base64.b64encode(png).decode()
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        raw = await self._client.chat.completions.with_raw_response.create(
            model=endpoint.model, messages=[{"role": "user", "content": content}], **options
        )
        return bytes(raw.http_response.content)

    def _parse(self, completion: Any) -> Reply:
        """The reply in a completion; one of another structure raises TypeError, AttributeError or LookupError."""
        choice = completion["choices"][0]
        message = choice["message"]
        content = message.get("content")
        if not isinstance(content, str | None):
            raise TypeError("content")
        response, reasoning = (
            self.redact(_text(text)) for text in (content, message.get("reasoning_content") or message.get("reasoning"))
        )
        usage = completion.get("usage")
        counts = usage if isinstance(usage, dict) else {}
        return Reply(
            response,
            reasoning,
            one_line(self.redact(_text(choice.get("finish_reason"))), _MAX_NAME),
            num_tokens(counts.get("prompt_tokens")),
            num_tokens(counts.get("completion_tokens")),
        )


def num_tokens(reported: Any) -> int:
    """A token count reported by a server if it is plausible, else -1."""
    is_number = isinstance(reported, int) and not isinstance(reported, bool)
    return reported if is_number and 0 <= reported <= _MAX_TOKENS else -1


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _max_prompt_tokens(prompt: str, png: bytes | None) -> int:
    """An upper bound: a token per byte, and one per 14 × 14 pixels of the image."""
    width, height = (0, 0) if png is None else (int.from_bytes(png[at : at + 4]) for at in (16, 20))
    return len(prompt.encode("utf-8", "surrogatepass")) + -(-width // 14) * -(-height // 14)


def _cost(reply: Reply, max_cost: tuple[int, int]) -> int:
    """The tokens of a reply and its prompt: as reported, or the upper bound where that is missing or implausible."""
    is_empty = not (reply.response or reply.reasoning)
    prompt = reply.prompt_tokens if reply.prompt_tokens > 0 else max_cost[0]
    is_reported = reply.completion_tokens > 0 or (is_empty and reply.completion_tokens == 0)
    return prompt + (reply.completion_tokens if is_reported else max_cost[1])


def _check_url(endpoint: Endpoint) -> None:
    """Raises EvaluationError for an invalid URL; the message does not quote it, since it may hold a password."""
    subject = "the endpoint's URL"
    if not endpoint.url.isprintable() or " " in endpoint.url:
        raise EvaluationError(f"{subject} has white space or control characters")
    try:
        parts = urlsplit(endpoint.url)
        has_host = bool(parts.hostname) and (parts.port or 0) >= 0
    except ValueError:
        raise EvaluationError(
            f"{subject} is invalid: percent-encode special characters in its password, such as %40 for @"
        ) from None
    if parts.scheme not in ("http", "https") or not has_host:
        raise EvaluationError(f"{subject} must start with http:// or https:// and name a host")


def _key_for(endpoint: Endpoint) -> str:
    """The key; empty for servers that need none."""
    key = os.environ.get(KEY_VARIABLE, "")
    if not key and endpoint.url == _OPENAI:
        raise EvaluationError(f"set {KEY_VARIABLE}, or name another endpoint by its base URL")
    if not all("!" <= char <= "~" for char in key):
        raise EvaluationError(
            f"the key in {KEY_VARIABLE} has white space, a control character or a non-ASCII character, such as a "
            "trailing newline: remove it"
        )
    return key


def _status_failure(error: Any, endpoint: Endpoint) -> _Failure:
    """The failure that an HTTP status stands for: whether to retry, and whether to stop all questions."""
    status = error.status_code
    if status in (401, 403):
        return _Failure(
            f"{endpoint.public_url} refuses the key in {KEY_VARIABLE} ({status})", is_final=True, stops_all=True
        )
    if status == 404:
        return _Failure(f"no model {endpoint.model!r} at {endpoint.public_url} (404)", is_final=True, stops_all=True)
    if 300 <= status < 400:
        place = error.response.headers.get("location", "nowhere")
        reason = (
            f"{status}: {endpoint.public_url} redirects to {place}; redirects are not followed: correct the base_url"
        )
        return _Failure(reason, is_final=True, stops_all=True)
    reason = f"{status}: {error.message}"
    if getattr(error, "code", None) == "insufficient_quota":
        return _Failure(reason, is_final=True, stops_all=True)
    wait = _seconds(error.response.headers.get("retry-after", ""))
    return _Failure(reason, is_final=status < 500 and status not in (408, 409, 429), wait=wait)


def _seconds(header: str) -> float:
    """The seconds in a Retry-After header, within bounds; 0 for a date."""
    try:
        seconds = float(header)
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), _MAX_WAIT) if math.isfinite(seconds) else 0.0


def as_png(frame: HostImages, side: int) -> bytes:
    """A frame, uint8[H, W, 3], as PNG, enlarged by an integer factor until its shorter side has `side` pixels."""
    factor = -(-side // min(frame.shape[:2]))
    large = np.repeat(np.repeat(frame, factor, axis=0), factor, axis=1)
    out = io.BytesIO()
    Image.fromarray(large).save(out, "PNG")
    return out.getvalue()
