"""A model behind an OpenAI-compatible endpoint: one question, asked until it is answered or given up.

The key comes from the environment and goes nowhere but into the client: it is redacted in all that comes back, before
anything else is done with it. A server is not trusted: `transport` bounds what is read of an answer, and `Client._read`
says what is believed of it.
"""

import asyncio
import base64
import io
import math
import os
import random
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from PIL import Image

from g1jax import settings
from g1jax.endpoint.redact import redactor_for
from g1jax.endpoint.transport import BodyError, bounded_client, read_body
from g1jax.errors import EvaluationError
from g1jax.foreign import ForeignError
from g1jax.settings import Range
from g1jax.terminal import one_line
from g1jax.typing import HostImages

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"
_OPENAI = "https://api.openai.com/v1"
_LONGEST_WAIT = 60.0
_LONGEST_REASON, _LONGEST_NAME = 300, 60  # characters that are kept
_MOST_TOKENS = 10_000_000  # a server that reports more for one answer is not believed


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An endpoint and how it is asked."""

    model: str = ""
    base_url: Annotated[str, settings.SECRET] = field(default="", repr=False)
    """Empty: $OPENAI_BASE_URL, or OpenAI's own. The key is $OPENAI_API_KEY; local servers need none."""
    temperature: settings.Temperature | None = None
    """None: the endpoint's default."""
    max_tokens: settings.Count = 2048
    """Of a response."""
    image_side: Annotated[int, Range(1, 8192)] = 448
    """Frames are enlarged by a whole factor until their shorter side has so many pixels."""
    concurrency: Annotated[int, Range(1, 10_000)] = 8
    """Questions under way at a time."""
    timeout: Annotated[float, Range(0, 1e6, is_above=True)] = 120.0
    """Seconds for a whole answer."""
    max_tries: Annotated[int, Range(1, 1000)] = 6
    """A question is asked so often before it counts as failed."""
    backoff: Annotated[float, Range(0, 1e4)] = 1.0
    """Seconds before the second try; twice as many before each further one, up to a minute."""
    max_calls: settings.CountOrNone = 0
    """A run stops after so many calls, retries included, of all its games together. 0: no such cap."""
    max_total_tokens: Annotated[int, Range(0, 10**12)] = 0
    """A run stops after so many tokens, of prompts and responses, of all its games together. Where the endpoint does
    not report them, an estimate that is rather too high counts. 0: no such cap."""
    on_failure: Literal["stop", "unreadable"] = "stop"
    """What a failed question does: stop the run, to be gone on with later, or count as an unreadable answer."""

    def __post_init__(self) -> None:
        settings.check(self, EvaluationError)

    @property
    def url(self) -> str:
        """Where it is."""
        return self.base_url or os.environ.get(URL_VARIABLE) or _OPENAI

    @property
    def public_url(self) -> str:
        """Where it is, without a user, a password or a query."""
        try:
            parts = urlsplit(self.url)
        except ValueError:
            return ""
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def setting(self) -> dict[str, Any]:
        """What decides its answers."""
        keys = ("model", "temperature", "max_tokens", "image_side")
        return {"url": self.public_url, **{key: getattr(self, key) for key in keys}}


@dataclass(frozen=True)
class Reply:
    """An answer to a question."""

    response: str
    reasoning: str  # what the endpoint gives apart from the response, if it does
    finish_reason: str
    prompt_tokens: int  # -1 where the endpoint does not say
    completion_tokens: int  # -1 where the endpoint does not say


class _Failure(Exception):
    """A try that gave nothing."""

    def __init__(self, reason: str, *, is_final: bool = False, stops_all: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.is_final, self.stops_all, self.wait = is_final, stops_all, wait


class GivenUpError(Exception):
    """A question without an answer; `stops_all` if no other would have one."""

    def __init__(self, reason: str, *, stops_all: bool) -> None:
        super().__init__(reason)
        self.stops_all = stops_all


@dataclass
class Budget:
    """What the calls of one run may cost, whatever games they are about, and what they have cost so far."""

    max_calls: int = 0
    max_total_tokens: int = 0
    num_calls: int = 0
    num_tokens: int = 0

    @classmethod
    def of(cls, endpoint: Endpoint) -> Self:
        """A fresh one with the endpoint's caps."""
        return cls(endpoint.max_calls, endpoint.max_total_tokens)

    @property
    def problem(self) -> str:
        """Why no further call may be made, or nothing."""
        for key, spent in (("max_calls", self.num_calls), ("max_total_tokens", self.num_tokens)):
            cap = getattr(self, key)
            if cap and spent >= cap:
                return f"{key}={cap} is spent"
        return ""


class Client:
    """Asks an endpoint, within a budget."""

    def __init__(self, endpoint: Endpoint, budget: Budget | None = None) -> None:
        """Raises EvaluationError: no model named, no key or one that cannot be sent, no URL, or no `openai` package."""
        if not endpoint.model:
            raise EvaluationError("name the endpoint's model")
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
        # Retries are ours: the client's own would not be logged, and it does not retry what is no JSON.
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

    async def ask(self, prompt: str, png: bytes, tell: Any, is_stopped: Any) -> tuple[Reply, int, float]:
        """An answer, the tries it took and the seconds of the last one. `tell(number, reason)` hears of failed tries.

        Raises:
            GivenUpError: there was none.
        """
        for number in range(1, self.endpoint.max_tries + 1):
            if problem := self.budget.problem:
                raise GivenUpError(problem, stops_all=True)
            start = time.monotonic()
            try:
                return await self._try(prompt, png), number, time.monotonic() - start
            except _Failure as failure:
                reason = one_line(self.redact(str(failure)), _LONGEST_REASON)
                tell(number, reason)
                if failure.is_final or number == self.endpoint.max_tries or is_stopped():
                    after = "" if failure.is_final or number == 1 else f" (after {number} tries)"
                    raise GivenUpError(f"{reason}{after}", stops_all=failure.stops_all) from None
                wait = min(self.endpoint.backoff * 2 ** (number - 1), _LONGEST_WAIT) * random.uniform(0.75, 1.25)
                await asyncio.sleep(max(wait, failure.wait))
        raise AssertionError("unreachable")

    async def _try(self, prompt: str, png: bytes) -> Reply:
        openai, endpoint = self._openai, self.endpoint
        self.budget.num_calls += 1
        most = _most_tokens(prompt, png), endpoint.max_tokens
        spent = 0
        try:
            # The client's time-out is for each read: a server that drips would hold it for ever.
            body = await asyncio.wait_for(self._call(prompt, png), endpoint.timeout)
            reply = self._read(read_body(body))
            spent = _spent(reply, most)
        except openai.APIStatusError as error:
            raise _status_failure(error, endpoint) from None
        except (openai.APITimeoutError, TimeoutError):
            spent = sum(most)
            raise _Failure(f"no answer within {endpoint.timeout:g} s") from None
        except (openai.APIConnectionError, BodyError) as error:
            cause = error if isinstance(error, BodyError) else error.__cause__
            spent = 0 if "Connect" in type(cause).__name__ else sum(most)
            if isinstance(cause, BodyError):
                raise _Failure(str(cause)) from None
            raise _Failure(f"no connection to {endpoint.public_url}{f': {cause}' if cause else ''}") from None
        except (openai.OpenAIError, ForeignError, TypeError, AttributeError, LookupError) as error:
            spent = sum(most)
            why = f": {error}" if isinstance(error, ForeignError) else f" ({type(error).__name__})"
            raise _Failure(f"not a chat completion{why}") from None
        finally:
            self.budget.num_tokens += spent
        return reply

    async def _call(self, prompt: str, png: bytes) -> bytes:
        endpoint = self.endpoint
        limit = "max_completion_tokens" if endpoint.url.startswith(_OPENAI) else "max_tokens"
        options: dict[str, Any] = {limit: endpoint.max_tokens}
        if endpoint.temperature is not None:
            options["temperature"] = endpoint.temperature
        url = "data:image/png;base64," + base64.b64encode(png).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
        raw = await self._client.chat.completions.with_raw_response.create(
            model=endpoint.model, messages=[{"role": "user", "content": content}], **options
        )
        return bytes(raw.http_response.content)

    def _read(self, completion: Any) -> Reply:
        """What is of use in a completion; an error of any other shape is let out."""
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
            one_line(self.redact(_text(choice.get("finish_reason"))), _LONGEST_NAME),
            num_tokens(counts.get("prompt_tokens")),
            num_tokens(counts.get("completion_tokens")),
        )


def num_tokens(reported: Any) -> int:
    """A number of tokens that a server reports, if it can be one; else -1."""
    is_number = isinstance(reported, int) and not isinstance(reported, bool)
    return reported if is_number and 0 <= reported <= _MOST_TOKENS else -1


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _most_tokens(prompt: str, png: bytes) -> int:
    """What a question may cost at most: a token a byte, and one for each 14 × 14 pixels of the picture."""
    width, height = (int.from_bytes(png[at : at + 4]) for at in (16, 20))
    return len(prompt.encode("utf-8", "surrogatepass")) + -(-width // 14) * -(-height // 14)


def _spent(reply: Reply, most: tuple[int, int]) -> int:
    """What a reply cost: as the server reports, or the most it can have cost where that is missing or cannot be."""
    is_empty = not (reply.response or reply.reasoning)
    prompt = reply.prompt_tokens if reply.prompt_tokens > 0 else most[0]
    is_told = reply.completion_tokens > 0 or (is_empty and reply.completion_tokens == 0)
    return prompt + (reply.completion_tokens if is_told else most[1])


def _check_url(endpoint: Endpoint) -> None:
    """Raises EvaluationError, without a password that may be in it, if the URL cannot be one."""
    wanted = "the endpoint's URL"
    if not endpoint.url.isprintable() or " " in endpoint.url:
        raise EvaluationError(f"{wanted} has white space or control characters in it")
    try:
        parts = urlsplit(endpoint.url)
        is_whole = bool(parts.hostname) and (parts.port or 0) >= 0
    except ValueError:
        raise EvaluationError(f"{wanted} is none: quote what is special in its password, as %40 for @") from None
    if parts.scheme not in ("http", "https") or not is_whole:
        raise EvaluationError(f"{wanted} must begin with http:// or https:// and name a host")


def _key_for(endpoint: Endpoint) -> str:
    """The key, or nothing for servers that need none."""
    key = os.environ.get(KEY_VARIABLE, "")
    if not key and endpoint.url == _OPENAI:
        raise EvaluationError(f"set {KEY_VARIABLE}, or name another endpoint by its base URL")
    if not all("!" <= char <= "~" for char in key):
        raise EvaluationError(
            f"the key in {KEY_VARIABLE} has white space, a control character or a letter that is not ASCII in it, such "
            "as a newline at its end: set it without"
        )
    return key


def _status_failure(error: Any, endpoint: Endpoint) -> _Failure:
    """What an HTTP status means for the question and for all others."""
    status = error.status_code
    if status in (401, 403):
        return _Failure(
            f"{endpoint.public_url} refuses the key in {KEY_VARIABLE} ({status})", is_final=True, stops_all=True
        )
    if status == 404:
        return _Failure(f"no model {endpoint.model!r} at {endpoint.public_url} (404)", is_final=True, stops_all=True)
    if 300 <= status < 400:
        place = error.response.headers.get("location", "nowhere")
        told = f"{status}: {endpoint.public_url} redirects to {place}, where nothing is sent: name the right base_url"
        return _Failure(told, is_final=True, stops_all=True)
    told = f"{status}: {error.message}"
    if getattr(error, "code", None) == "insufficient_quota":
        return _Failure(told, is_final=True, stops_all=True)
    wait = _seconds(error.response.headers.get("retry-after", ""))
    return _Failure(told, is_final=status < 500 and status not in (408, 409, 429), wait=wait)


def _seconds(header: str) -> float:
    """How long a server asks to wait, within bounds; a date is not read."""
    try:
        seconds = float(header)
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_WAIT) if math.isfinite(seconds) else 0.0


def as_png(frame: HostImages, side: int) -> bytes:
    """A frame, uint8[H, W, 3], enlarged by a whole factor until its shorter side has `side` pixels, as PNG."""
    factor = -(-side // min(frame.shape[:2]))
    large = np.repeat(np.repeat(frame, factor, axis=0), factor, axis=1)
    out = io.BytesIO()
    Image.fromarray(large).save(out, "PNG")
    return out.getvalue()
