"""Writing responses: one prefill, then a token at a time with a cache that grows only if answers are long.

A response of prompt P has up to N tokens. The loop works on a cache of P + 64 places; only if some row is not done by
then, the cache is padded and a second loop goes on, and so forth by factors of four. So a long budget costs nothing
when answers are short: neither memory nor attention to places nobody wrote.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from g1jax.errors import ConfigError
from g1jax.typing import Array, Key
from g1jax.vlm.config import Config
from g1jax.vlm.decoder import Cache
from g1jax.vlm.model import VLM, Frames, Params, bind, check_length, left_pad
from g1jax.vlm.sampling import PLAIN, Sampling, sample, typed_key

FIRST_STAGE = 64  # new tokens that the first cache has room for
STAGE_GROWTH = 4


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Response:
    """What was written to each prompt, or n times to each: the samples of a prompt stand together."""

    response_tokens: Array  # int32[B·n, N], the pad token after the stop token
    response_mask: Array  # bool[B·n, N], the tokens written, the stop token too
    logprobs: Array  # float32[B·n, N], under the distribution sampled from; 0 where nothing was written


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Writing:
    """The decode loop's state."""

    num_written: Array  # int32[]
    last: Array  # int32[B], the token that the model has not read yet
    is_done: Array  # bool[B]
    cache: Cache
    response: Response


def generate(
    config: Config,
    params: Params,
    prompt_tokens: Array,
    prompt_mask: Array,
    frames: Frames,
    key: Key,
    *,
    max_new_tokens: int,
    sampling: Sampling = PLAIN,
    stop_tokens: tuple[int, ...] = (),
    pad_token: int = 0,
    num_samples: int = 1,
) -> Response:
    """Writes `num_samples` responses to each prompt, int32[B, P], bool[B, P], all from one prefill.

    `key` is one for all, or key[B·n], one a response: what is written to a prompt then does not depend on the others of
    its batch. Raw keys, of `jax.random.PRNGKey`, serve as well. Padding may stand anywhere, so a response that begins
    with given words is a prompt with these words appended, row by row:
    `jnp.concatenate([prompt_tokens, start_tokens], axis=1)`, the masks alike. To be jitted, with `config` and
    everything by name static.

    Raises:
        ConfigError: the prompts with so many new tokens are longer than the context, or there is no key for each.
    """
    ConfigError.require(
        max_new_tokens > 0 and num_samples > 0, f"max_new_tokens={max_new_tokens}, num_samples={num_samples}"
    )
    check_length(config, prompt_tokens.shape[1], max_new_tokens)
    key, rows = typed_key(key), prompt_tokens.shape[0] * num_samples
    ConfigError.require(
        key.shape in ((), (rows,)), f"key{list(key.shape)}: one for all, or one for each of {rows} responses"
    )
    model = bind(config, _in_compute_type(config, params))
    prompt_tokens, prompt_mask = left_pad(prompt_tokens, prompt_mask)
    reading = model.read(prompt_tokens, prompt_mask, frames, start=prompt_tokens.shape[1] - 1)
    logits = model.logits(reading.hidden[:, 0])
    logits, next_position, prompt_mask = (
        jnp.repeat(x, num_samples, axis=0) for x in (logits, reading.next_position, prompt_mask)
    )
    cache = jax.tree.map(lambda x: jnp.repeat(x, num_samples, axis=-4), reading.cache)
    writer = _Writer(model, prompt_mask, next_position, key, max_new_tokens, sampling, stop_tokens, pad_token)
    return writer.go_on(writer.begin(logits, cache), FIRST_STAGE)


@dataclass(frozen=True)
class _Writer:
    """What stays the same while responses are written."""

    model: VLM
    prompt_mask: Array  # bool[B, P]
    next_position: Array  # int32[B], the position of the first new token
    key: Key
    max_new_tokens: int
    sampling: Sampling
    stop_tokens: tuple[int, ...]
    pad_token: int

    def begin(self, logits: Array, cache: Cache) -> _Writing:
        """The state with the first token drawn, from the prompt's logits."""
        rows = logits.shape[0]
        empty = Response(
            jnp.full((rows, self.max_new_tokens), self.pad_token, jnp.int32),
            jnp.zeros((rows, self.max_new_tokens), bool),
            jnp.zeros((rows, self.max_new_tokens), jnp.float32),
        )
        no = jnp.zeros(rows, bool)
        return self._write(_Writing(jnp.int32(0), jnp.zeros(rows, jnp.int32), no, cache, empty), logits)

    def go_on(self, writing: _Writing, room: int) -> Response:
        """Writes until all rows are done, in caches with room for more and more new tokens."""
        room = min(room, self.max_new_tokens)
        length = self.prompt_mask.shape[1] + room
        cache = jax.tree.map(lambda x: _pad_to(x, length), writing.cache)
        writing = _Writing(writing.num_written, writing.last, writing.is_done, cache, writing.response)
        writing = lax.while_loop(
            lambda now: (now.num_written < room) & ~jnp.all(now.is_done),
            lambda now: self._write(*self._read(now, length)),
            writing,
        )
        if room == self.max_new_tokens:
            return writing.response
        response: Response = lax.cond(
            jnp.all(writing.is_done),
            lambda now: now.response,
            lambda now: self.go_on(now, room * STAGE_GROWTH),
            writing,
        )
        return response

    def _read(self, now: _Writing, length: int) -> tuple[_Writing, Array]:
        """Reads the last token: the state with its keys and values, and the logits of the next."""
        prompt_length = self.prompt_mask.shape[1]
        slot = prompt_length + now.num_written - 1
        is_written = jnp.arange(length - prompt_length, dtype=jnp.int32) < now.num_written
        is_seen = jnp.concatenate(
            [self.prompt_mask, jnp.broadcast_to(is_written[None], (len(self.prompt_mask), len(is_written)))], axis=1
        )
        position = self.next_position + now.num_written - 1
        positions = jnp.broadcast_to(position[:, None, None], (*position.shape, 1, self._num_axes))
        embeddings = self.model.model.embed_tokens(now.last[:, None])
        hidden, cache = self.model.model(embeddings, positions, is_seen[:, None], now.cache, slot)
        logits = self.model.logits(hidden[:, 0])
        return _Writing(now.num_written, now.last, now.is_done, cache, now.response), logits

    def _write(self, now: _Writing, logits: Array) -> _Writing:
        """Draws a token in every row that is not done."""
        i = now.num_written
        tokens, logprobs = sample(self.sampling, logits, _fold_in(self.key, i))
        tokens = jnp.where(now.is_done, self.pad_token, tokens)
        logprobs = jnp.where(now.is_done, 0.0, logprobs)
        put = lax.dynamic_update_slice_in_dim
        response = Response(
            put(now.response.response_tokens, tokens[:, None], i, axis=1),
            put(now.response.response_mask, ~now.is_done[:, None], i, axis=1),
            put(now.response.logprobs, logprobs[:, None], i, axis=1),
        )
        is_stop = jnp.any(tokens[:, None] == jnp.array(self.stop_tokens, jnp.int32)[None], axis=1)
        return _Writing(i + 1, tokens, now.is_done | is_stop, now.cache, response)

    @property
    def _num_axes(self) -> int:
        return 3 if self.model.config.text.positions == "mrope" else 1


def _fold_in(key: Key, i: Array) -> Key:
    """The key, or each row's key, of a token."""
    return jax.vmap(jax.random.fold_in, (0, None))(key, i) if key.ndim else jax.random.fold_in(key, i)


def _in_compute_type(config: Config, params: Params) -> Params:
    """Params in the type of the computation, so that a loop does not cast them at every turn."""
    dtype = jnp.dtype(config.dtype)
    cast: Params = jax.tree.map(lambda x: x.astype(dtype), params)
    return cast


def _pad_to(x: Array, length: int) -> Array:
    """[..., S, d] -> [..., length, d]."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, length - x.shape[-2]), (0, 0)])
