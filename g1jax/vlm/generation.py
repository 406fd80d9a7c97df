"""Generation: one prefill, then a token at a time with a KV cache that grows only if responses are long.

With a prompt of P tokens, decoding starts with a cache of P + 64 positions. Only if some row is not done when it is
full, the cache is padded and a second loop continues, and so on by factors of four. So a large token budget costs no
memory or attention while responses are short. With `attention="blockwise"` there is one cache of full length and one
loop: several caches would be held at once, and only what is filled is read.

With `compact_every` the loop pauses after so many tokens, and continues with a smaller batch if enough rows are done.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float32, Int32

from g1jax.errors import ConfigError
from g1jax.typing import Array, ArrayLike, Keys
from g1jax.vlm.attention import CACHE_BLOCK, Filled
from g1jax.vlm.cache import Cache
from g1jax.vlm.config import Config
from g1jax.vlm.model import VLM, Frames, Params, Prefilled, bind, check_length, left_pad
from g1jax.vlm.rotary import text_positions
from g1jax.vlm.row_selection import batch_sizes, put_rows, running_first, take_rows
from g1jax.vlm.sampling import PLAIN, Sampling, sample, typed_key

FIRST_STAGE = 64  # new tokens that fit in the first cache
STAGE_GROWTH = 4
DECODE = "decode"
"""The scope of the loops over tokens in a compiled program."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Response:
    """n responses to each prompt; the samples of a prompt are in adjacent rows."""

    response_tokens: Int32[Array, "*B N"]  # the pad token after the stop token
    response_mask: Bool[Array, "*B N"]  # the generated tokens, including the stop token
    logprobs: Float32[Array, "*B N"]  # under the sampling distribution; 0 outside the mask


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _DecodeState:
    num_tokens: Int32[Array, ""]  # generated so far
    last_tokens: Int32[Array, "B"]  # not in the cache yet
    is_done: Bool[Array, "B"]
    cache: Cache
    response: Response


def generate(
    config: Config,
    params: Params,
    prompt_tokens: Int32[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    frames: Frames | None,
    key: ArrayLike,
    *,
    max_new_tokens: int,
    sampling: Sampling = PLAIN,
    stop_tokens: tuple[int, ...] = (),
    pad_token: int = 0,
    num_samples: int = 1,
    compact_every: int = 0,
) -> Response:
    """Generates `num_samples` responses to each prompt from one prefill. `frames` None: prompts of text alone.

    `key` is a random key for all, or one per response, which makes a response independent of the others in its batch;
    raw `jax.random.PRNGKey` keys are accepted. Padding may be anywhere, so a response that starts with given tokens is
    a prompt with these tokens appended: `jnp.concatenate([prompt_tokens, start_tokens], axis=1)`, the masks alike.
    `compact_every`: tokens between cuts of the batch to its running rows (1/2, 1/4 or 1/8 of it, each compiled); 0: it
    is not cut. A single key is then split into one per response. To be jitted with `config` and all keyword arguments
    static.

    Raises:
        ConfigError: prompt and new tokens exceed the context length, or the keys do not match the responses.
    """
    params = as_computed(config, params)
    prompts = bind(config, params).prefill(*left_pad(prompt_tokens, prompt_mask), frames)
    return generate_from(
        config, params, prompts, key, max_new_tokens=max_new_tokens, sampling=sampling, stop_tokens=stop_tokens,
        pad_token=pad_token, num_samples=num_samples, compact_every=compact_every,
    )  # fmt: skip


def generate_from(
    config: Config,
    params: Params,
    prompts: Prefilled,
    key: ArrayLike,
    *,
    max_new_tokens: int,
    sampling: Sampling = PLAIN,
    stop_tokens: tuple[int, ...] = (),
    pad_token: int = 0,
    num_samples: int = 1,
    compact_every: int = 0,
    limits: Int32[ArrayLike, "n"] | None = None,
) -> Response:
    """As `generate`, from prompts that are prefilled, with params of `as_computed`.

    limits: the most new tokens of each prompt's responses, where they differ; none is above `max_new_tokens`.

    Raises:
        ConfigError: as `generate`.
    """
    ConfigError.require(
        max_new_tokens > 0 and num_samples > 0,
        f"max_new_tokens={max_new_tokens}, num_samples={num_samples}: expected 1 or more",
    )
    check_length(config, prompts.mask.shape[1], max_new_tokens)
    key, rows = typed_key(key), len(prompts.mask) * num_samples
    ConfigError.require(
        key.shape in ((), (rows,)), f"key{list(key.shape)}: expected one for all, or one for each of {rows} responses"
    )
    model = bind(config, params)
    logits = model.logits(prompts.hidden)
    logits, next_position, prompt_mask = (
        jnp.repeat(x, num_samples, axis=0) for x in (logits, prompts.next_position, prompts.mask)
    )
    cache = jax.tree.map(lambda x: jnp.repeat(x, num_samples, axis=-4), prompts.cache)
    if compact_every and not key.ndim:
        key = jax.random.split(key, rows)
    limits = None if limits is None else jnp.repeat(jnp.asarray(limits), num_samples)
    generator = _Generator(
        model, prompt_mask, next_position, key, limits, max_new_tokens, sampling, stop_tokens, pad_token, compact_every
    )
    is_read_in_blocks = config.attention == "blockwise" and max_new_tokens > FIRST_STAGE
    return generator.run(generator.start(logits, cache), max_new_tokens if is_read_in_blocks else FIRST_STAGE)


def as_computed(config: Config, params: Params) -> Params:
    """The params in the type of the model's computations: cast once, not in every step of a loop."""
    dtype = jnp.dtype(config.dtype)
    computed: Params = jax.tree.map(lambda x: x.astype(dtype), params)
    return computed


@dataclass(frozen=True)
class _Generator:
    """What is constant during decoding."""

    model: VLM
    prompt_mask: Bool[Array, "B P"]
    next_position: Int32[Array, "B"]  # the position of the first new token
    key: Keys
    limits: Int32[Array, "B"] | None  # new tokens of each row; None: `max_new_tokens`
    max_new_tokens: int
    sampling: Sampling
    stop_tokens: tuple[int, ...]
    pad_token: int
    compact_every: int

    def start(self, logits: Array, cache: Cache) -> _DecodeState:
        """The state after the first token, which is sampled from the prompt's logits."""
        rows = logits.shape[0]
        empty = Response(
            jnp.full((rows, self.max_new_tokens), self.pad_token, jnp.int32),
            jnp.zeros((rows, self.max_new_tokens), bool),
            jnp.zeros((rows, self.max_new_tokens), jnp.float32),
        )
        is_done = jnp.zeros(rows, bool)
        return self._sample(_DecodeState(jnp.int32(0), jnp.zeros(rows, jnp.int32), is_done, cache, empty), logits)

    def run(self, state: _DecodeState, capacity: int) -> Response:
        """Decodes until all rows are done, with a cache for `capacity` new tokens, and larger ones if needed."""
        capacity = min(capacity, self.max_new_tokens)
        length = self.prompt_mask.shape[1] + capacity
        # GPUs multiply whole groups of 8, and would copy a cache of another length for every token
        length += -length % (CACHE_BLOCK if self.model.config.attention == "blockwise" else 8)
        state = dataclasses.replace(state, cache=jax.tree.map(lambda x: _pad_to(x, length), state.cache))
        with jax.named_scope(DECODE):
            if self.compact_every:
                state = lax.while_loop(
                    lambda state: (state.num_tokens < capacity) & ~jnp.all(state.is_done),
                    lambda state: self._decode_running(state, capacity),
                    state,
                )
            else:
                state = self._decode(state, capacity)
        if capacity == self.max_new_tokens:
            return state.response
        response: Response = lax.cond(
            jnp.all(state.is_done),
            lambda state: state.response,
            lambda state: self.run(state, capacity * STAGE_GROWTH),
            state,
        )
        return response

    def _decode(self, state: _DecodeState, end: Int32[Array, ""] | int) -> _DecodeState:
        """Decodes until there are `end` tokens or all rows are done."""
        return lax.while_loop(
            lambda state: (state.num_tokens < end) & ~jnp.all(state.is_done),
            lambda state: self._sample(*self._forward(state)),
            state,
        )

    def _decode_running(self, state: _DecodeState, capacity: int) -> _DecodeState:
        """Decodes the next `compact_every` tokens in the smallest batch that holds all running rows."""
        sizes = batch_sizes(len(state.is_done))
        end = jnp.minimum(state.num_tokens + self.compact_every, capacity)
        order, needed = running_first(state.is_done)

        def decode(size: int) -> _DecodeState:
            index = order[:, : size // len(order)]
            part = _map_rows(lambda x, axis: take_rows(x, index, axis), state)
            part = self._of_rows(index)._decode(part, end)
            return _map_rows(lambda x, axis, new: put_rows(x, index, new, axis), state, part)

        branches = [functools.partial(decode, size) for size in sizes[:-1]]
        smaller = jnp.sum((needed > jnp.array(sizes[:-1], jnp.int32)).astype(jnp.int32))
        out: _DecodeState = lax.switch(smaller, [*branches, lambda: self._decode(state, end)])
        return out

    def _of_rows(self, index: Int32[Array, "shards b"]) -> "_Generator":
        of_rows = (self.prompt_mask, self.next_position, self.key, self.limits)
        mask, position, key, limits = jax.tree.map(lambda x: take_rows(x, index), of_rows)
        return dataclasses.replace(self, prompt_mask=mask, next_position=position, key=key, limits=limits)

    def _forward(self, state: _DecodeState) -> tuple[_DecodeState, Array]:
        """The state with the last tokens in its cache, and the logits of the next."""
        prompt_length, length = self.prompt_mask.shape[1], jax.tree.leaves(state.cache)[0].shape[-2]
        slot = prompt_length + state.num_tokens - 1
        is_generated = jnp.arange(length - prompt_length, dtype=jnp.int32) < state.num_tokens
        is_visible = jnp.concatenate(
            [self.prompt_mask, jnp.broadcast_to(is_generated[None], (len(self.prompt_mask), len(is_generated)))], axis=1
        )
        positions = text_positions(self.model.config, self.next_position + state.num_tokens - 1, 1)
        embeddings = self.model.model.embed_tokens(state.last_tokens[:, None])
        mask = Filled(is_visible, slot + 1)
        hidden, cache = self.model.model(embeddings, positions, mask, state.cache, slot)
        return dataclasses.replace(state, cache=cache), self.model.logits(hidden[:, 0])

    def _sample(self, state: _DecodeState, logits: Array) -> _DecodeState:
        """Appends a token to every row that is not done."""
        i = state.num_tokens
        key = jax.vmap(jax.random.fold_in, (0, None))(self.key, i) if self.key.ndim else jax.random.fold_in(self.key, i)
        tokens, logprobs = sample(self.sampling, logits, key)
        tokens = jnp.where(state.is_done, self.pad_token, tokens)
        logprobs = jnp.where(state.is_done, 0.0, logprobs)
        put = lax.dynamic_update_slice_in_dim
        response = Response(
            put(state.response.response_tokens, tokens[:, None], i, axis=1),
            put(state.response.response_mask, ~state.is_done[:, None], i, axis=1),
            put(state.response.logprobs, logprobs[:, None], i, axis=1),
        )
        is_stop = jnp.any(tokens[:, None] == jnp.array(self.stop_tokens, jnp.int32)[None], axis=1)
        if self.limits is not None:
            is_stop |= i + 1 >= self.limits
        return _DecodeState(i + 1, tokens, state.is_done | is_stop, state.cache, response)


def _pad_to(x: Array, length: int) -> Array:
    """[..., S, d] -> [..., length, d]."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, length - x.shape[-2]), (0, 0)])


def _map_rows(function: Callable[..., Array], state: _DecodeState, *others: _DecodeState) -> _DecodeState:
    """`function` of every array with rows, the axis of its rows, and the same arrays of other states.

    The number of tokens is that of the last state.
    """
    states = (state, *others)
    rows = [(s.last_tokens, s.is_done, s.response) for s in states]
    last_tokens, is_done, response = jax.tree.map(lambda x, *xs: function(x, 0, *xs), *rows)
    cache = jax.tree.map(lambda x, *xs: function(x, -4, *xs), *(s.cache for s in states))
    return _DecodeState(states[-1].num_tokens, last_tokens, is_done, cache, response)
