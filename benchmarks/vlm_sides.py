"""The two sides of vlm.py: our policy and transformers' torch Qwen2.5-VL, with the same weights and batch."""

import dataclasses
import functools
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from g1jax import vlm
from g1jax.vlm import qwen, weights
from g1jax.vlm.accumulation import accumulated_grad
from g1jax.vlm.sharding import make_mesh, placer, shard_batch

NEW_TOKENS = 64
GRID = 6  # visual tokens along a side of the image
TEXT_BEFORE, TEXT_AFTER = 4, 20


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, its weights, and a batch for generation, scoring and training."""

    config: vlm.Config
    params: vlm.Params
    tokens: jax.Array  # int32[B, P]
    mask: jax.Array  # bool[B, P]
    frames: jax.Array  # uint8[B, H, W, 3]
    response: jax.Array  # int32[B, N]
    advantages: jax.Array  # float32[B]

    @property
    def response_mask(self) -> jax.Array:
        return jnp.ones_like(self.response, bool)


def make_config(name: str, attention: str | None = None) -> vlm.Config:
    changes: dict[str, Any] = {"dtype": "bfloat16", "param_dtype": "bfloat16"} if jax.default_backend() == "gpu" else {}
    changes |= {"attention": attention} if attention else {}
    if name in ("3B", "7B"):
        return qwen.shape_of(name, **changes, is_remat=True, is_scanned=True)  # as in experiments/qwen2_5_vl_7b.py
    config = vlm.preset(name, **changes)
    return dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, num_places=0)
    )  # torch's model has none


def make_case(name: str, batch: int, attention: str | None = None) -> Case:
    config = make_config(name, attention)
    side = GRID * config.vision.token_size
    start, end = config.vision_start_token_id, config.vision_end_token_id
    rng = np.random.default_rng(0)
    before, after = (rng.integers(8, 500, (batch, length)) for length in (TEXT_BEFORE, TEXT_AFTER))
    image = np.tile(np.array([start, *[config.image_token_id] * GRID**2, end]), (batch, 1))
    tokens = np.concatenate([before, image, after], axis=1).astype(np.int32)
    mesh = make_mesh(data=len(jax.devices()))
    shard = functools.partial(shard_batch, mesh)
    return Case(
        config=config,
        params=vlm.init(config, jax.random.key(0), place=placer(config, mesh)),
        tokens=shard(tokens),
        mask=shard(np.ones(tokens.shape, bool)),
        frames=shard(rng.integers(0, 256, (batch, side, side, 3)).astype(np.uint8)),
        response=shard(rng.integers(8, 500, (batch, NEW_TOKENS)).astype(np.int32)),
        advantages=shard(rng.standard_normal(batch).astype(np.float32)),
    )


# Ours

OPTIMIZER = optax.adamw(1e-6, weight_decay=1e-2)


@functools.partial(jax.jit, static_argnums=(0, 6), static_argnames=("stop_tokens",))
def generate(
    config: vlm.Config, params: Any, tokens: Any, mask: Any, frames: Any, key: Any, budget: int,
    stop_tokens: tuple[int, ...] = (),
) -> vlm.Response:  # fmt: skip
    return vlm.generate(config, params, tokens, mask, frames, key, max_new_tokens=budget, stop_tokens=stop_tokens)


score = jax.jit(vlm.score, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def train_step(config: vlm.Config, parts: int, params: Any, state: Any, batch: Any) -> tuple[Any, Any]:
    """A step with gradients accumulated over parts of the batch, which is faster on a CPU."""

    def loss(params: Any, batch: Any) -> tuple[jax.Array, None]:
        *scored, advantages = batch
        return -jnp.mean(vlm.score(config, params, *scored).logprobs * advantages[:, None]), None

    _, gradient = accumulated_grad(loss, parts)(params, batch)
    updates, state = OPTIMIZER.update(gradient, state, params)
    return optax.apply_updates(params, updates), state


def num_parts(case: Case) -> int:
    """The number of parts of a training step: of 8 rows per CPU core, which fit its caches."""
    rows = len(case.tokens) // len(jax.devices())
    return rows // 8 if jax.default_backend() == "cpu" and rows % 8 == 0 else 1


class Ours:
    """Our three programs."""

    def __init__(self, case: Case) -> None:
        self.case, self.num_calls = case, 0
        self.batch = (case.tokens, case.mask, case.response, case.response_mask, case.frames)
        self.trained: tuple[Any, Any] | None = None  # from the first training step on

    def generate(self) -> None:
        case, self.num_calls = self.case, self.num_calls + 1
        key = jax.random.key(self.num_calls)
        response = generate(case.config, case.params, case.tokens, case.mask, case.frames, key, NEW_TOKENS)
        jax.block_until_ready(response)

    def score(self) -> None:
        jax.block_until_ready(score(self.case.config, self.case.params, *self.batch))

    def train(self) -> None:
        case = self.case
        if self.trained is None:
            params = jax.tree.map(jnp.copy, case.params)
            self.trained = params, OPTIMIZER.init(params)
        batch = (*self.batch, case.advantages)
        self.trained = jax.block_until_ready(train_step(case.config, num_parts(case), *self.trained, batch))


# Torch


class Theirs:
    """The same with transformers' model."""

    def __init__(self, torch: Any, case: Case) -> None:
        from transformers import Qwen2_5_VLForConditionalGeneration
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()

        self.torch, self.case = torch, case
        self.device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
        with tempfile.TemporaryDirectory() as folder:
            weights.save(case.config, case.params, f"{folder}/model")
            self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                f"{folder}/model", attn_implementation="sdpa", dtype=getattr(torch, case.config.param_dtype)
            ).to(self.device)
        self.model.generation_config.pad_token_id = 0
        if case.config.vision.depth > 8:
            self.model.gradient_checkpointing_enable()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, weight_decay=1e-2)
        self.prompt = self._inputs(np.asarray(case.tokens))
        self.sequence = self._inputs(np.concatenate([case.tokens, case.response], axis=1))
        self.response = self.sequence["input_ids"][:, -NEW_TOKENS:]
        self.advantages = torch.tensor(np.asarray(case.advantages), device=self.device)

    def _inputs(self, tokens: np.ndarray) -> dict[str, Any]:
        torch, case, side = self.torch, self.case, self.case.config.vision.patch_size
        ids = torch.tensor(tokens, dtype=torch.long)
        rows, columns = (length // side for length in case.frames.shape[1:3])
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.tensor(np.asarray(vlm.pixel_values(case.config.vision, case.frames))),
            "image_grid_thw": torch.tensor([[1, rows, columns]] * len(tokens)),
        }
        if case.config.text.positions == "mrope":  # without it, positions follow the sequence
            inputs["mm_token_type_ids"] = (ids == case.config.image_token_id).int()
        return {name: value.to(self.device) for name, value in inputs.items()}

    def _wait(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def generate(self) -> None:
        with self.torch.inference_mode():
            self.model.generate(
                **self.prompt, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=True, top_k=0,
                top_p=1.0, temperature=1.0, use_cache=True,
            )  # fmt: skip
        self._wait()

    def _scores(self) -> tuple[Any, Any]:
        torch = self.torch
        logits = self.model(**self.sequence, logits_to_keep=NEW_TOKENS + 1, use_cache=False).logits[:, :-1].float()
        logprobs = torch.log_softmax(logits, dim=-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, self.response[..., None])[..., 0], entropy

    def score(self) -> None:
        with self.torch.inference_mode():
            self._scores()
        self._wait()

    def logprobs(self) -> np.ndarray:
        with self.torch.inference_mode():
            return np.asarray(self._scores()[0].cpu())

    def train(self) -> None:
        self.model.train()
        loss = -(self._scores()[0] * self.advantages[:, None]).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._wait()
        self.model.eval()
