"""A model behind an OpenAI-compatible endpoint: one question, asked until it is answered or given up.

The key comes from the environment and goes nowhere but into the client: it is struck from all that comes back.
"""

import asyncio
import base64
import io
import os
import random
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from PIL import Image

from g1jax import settings
from g1jax.evaluation.protocol import EvaluationError
from g1jax.settings import Range
from g1jax.typing import HostImages

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"
_OPENAI = "https://api.openai.com/v1"
_LONGEST_WAIT = 60.0
_SHORTEST_SECRET = 8  # shorter keys are placeholders, such as `none` or `EMPTY`


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An endpoint and how it is asked."""

    model: str = ""
    base_url: str = ""
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
    """A run stops after so many calls, retries included. 0: no such cap."""
    max_total_tokens: Annotated[int, Range(0, 10**12)] = 0
    """A run stops after so many tokens, of prompts and responses. 0: no such cap."""
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
        parts = urlsplit(self.url)
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


class Client:
    """Asks an endpoint, within the caps of one run."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Raises EvaluationError: no model named, no key, or no `openai` package."""
        if not endpoint.model:
            raise EvaluationError("name the endpoint's model")
        if urlsplit(endpoint.url).scheme not in ("http", "https"):
            raise EvaluationError(f"the endpoint's URL must begin with http:// or https://: {endpoint.public_url}")
        key = os.environ.get(KEY_VARIABLE, "")
        if not key and endpoint.url == _OPENAI:
            raise EvaluationError(f"set {KEY_VARIABLE}, or name another endpoint by its base URL")
        try:
            import openai
        except ImportError:
            raise EvaluationError("endpoints need a package: pip install openai") from None
        self.endpoint = endpoint
        self.num_calls = self.num_tokens = 0
        self._openai = openai
        secrets = (key, urlsplit(endpoint.url).password or "", urlsplit(endpoint.url).query)
        self._secrets = [secret for secret in secrets if len(secret) >= _SHORTEST_SECRET]
        # Retries are ours: the client's own would not be logged, and it does not retry what is no JSON.
        self._client = openai.AsyncOpenAI(
            api_key=key or "none", base_url=endpoint.url, timeout=endpoint.timeout, max_retries=0
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
            if capped := self._capped():
                raise GivenUpError(capped, stops_all=True)
            start = time.monotonic()
            try:
                return await self._try(prompt, png), number, time.monotonic() - start
            except _Failure as failure:
                reason = self.strike(str(failure))
                tell(number, reason)
                if failure.is_final or number == self.endpoint.max_tries or is_stopped():
                    after = "" if failure.is_final or number == 1 else f" (after {number} tries)"
                    raise GivenUpError(f"{reason}{after}", stops_all=failure.stops_all) from None
                wait = min(self.endpoint.backoff * 2 ** (number - 1), _LONGEST_WAIT) * random.uniform(0.75, 1.25)
                await asyncio.sleep(max(wait, min(failure.wait, _LONGEST_WAIT)))
        raise AssertionError("unreachable")

    def strike(self, told: str) -> str:
        """A text of the endpoint's without the key, or what is secret in its URL."""
        for secret in self._secrets:
            told = told.replace(secret, "[key]")
        return told

    def _capped(self) -> str:
        """Why no further call may be made, or nothing."""
        for key, spent in (("max_calls", self.num_calls), ("max_total_tokens", self.num_tokens)):
            cap = getattr(self.endpoint, key)
            if cap and spent >= cap:
                return f"{key}={cap} is spent"
        return ""

    async def _try(self, prompt: str, png: bytes) -> Reply:
        openai, endpoint = self._openai, self.endpoint
        self.num_calls += 1
        try:
            # The client's time-out is for each read: a server that drips would hold it for ever.
            completion = await asyncio.wait_for(self._call(prompt, png), endpoint.timeout)
            reply = self._read(completion)
        except openai.APIStatusError as error:
            raise _status_failure(error, endpoint) from None
        except (openai.APITimeoutError, TimeoutError):
            raise _Failure(f"no answer within {endpoint.timeout:g} s") from None
        except openai.APIConnectionError as error:
            cause = f": {error.__cause__}" if error.__cause__ else ""
            raise _Failure(f"no connection to {endpoint.public_url}{cause}"[:300]) from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError) as error:
            raise _Failure(f"not a chat completion ({type(error).__name__})") from None
        self.num_tokens += max(reply.prompt_tokens, 0) + max(reply.completion_tokens, 0)
        return reply

    async def _call(self, prompt: str, png: bytes) -> Any:
        endpoint = self.endpoint
        limit = "max_completion_tokens" if endpoint.url.startswith(_OPENAI) else "max_tokens"
        options: dict[str, Any] = {limit: endpoint.max_tokens}
        if endpoint.temperature is not None:
            options["temperature"] = endpoint.temperature
        url = "data:image/png;base64," + base64.b64encode(png).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
        return await self._client.chat.completions.create(
            model=endpoint.model,
            messages=[{"role": "user", "content": content}],
            **options,
        )

    def _read(self, completion: Any) -> Reply:
        """What is of use in a completion; any error of a wrong shape, which the client does not check, is let out."""
        choice = completion.choices[0]
        content = choice.message.content
        if not isinstance(content, str | None):
            raise TypeError("content")
        reasoning = getattr(choice.message, "reasoning_content", None) or getattr(choice.message, "reasoning", None)
        usage = completion.usage
        counts = [getattr(usage, key, None) for key in ("prompt_tokens", "completion_tokens")]
        prompt_tokens, completion_tokens = (count if isinstance(count, int) else -1 for count in counts)
        reasoning = reasoning if isinstance(reasoning, str) else ""
        response, reasoning, reason = map(self.strike, (content or "", reasoning, str(choice.finish_reason)))
        return Reply(response, reasoning, reason, prompt_tokens, completion_tokens)


def _status_failure(error: Any, endpoint: Endpoint) -> _Failure:
    """What an HTTP status means for the question and for all others."""
    status = error.status_code
    told = f"{status}: {' '.join(str(error.message).split())}"[:300]
    if status in (401, 403):
        return _Failure(
            f"{endpoint.public_url} refuses the key in {KEY_VARIABLE} ({status})", is_final=True, stops_all=True
        )
    if status == 404:
        return _Failure(f"no model {endpoint.model!r} at {endpoint.public_url} (404)", is_final=True, stops_all=True)
    if getattr(error, "code", None) == "insufficient_quota":
        return _Failure(told, is_final=True, stops_all=True)
    try:
        wait = float(error.response.headers.get("retry-after", 0))
    except ValueError:  # a date
        wait = 0.0
    return _Failure(told, is_final=status < 500 and status not in (408, 409, 429), wait=wait)


def as_png(frame: HostImages, side: int) -> bytes:
    """A frame, uint8[H, W, 3], enlarged by a whole factor until its shorter side has `side` pixels, as PNG."""
    factor = -(-side // min(frame.shape[:2]))
    large = np.repeat(np.repeat(frame, factor, axis=0), factor, axis=1)
    out = io.BytesIO()
    Image.fromarray(large).save(out, "PNG")
    return out.getvalue()
