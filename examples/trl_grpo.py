"""TRL's `GRPOTrainer` on the games: our states as its dataset, our rewards as its `reward_funcs`.

pip install -e ".[trl]"
python examples/trl_grpo.py --game=game_2048                                      # g1-nano, which ships, on a CPU
python examples/trl_grpo.py --game=swap --model=Qwen/Qwen2.5-VL-3B-Instruct --max-tokens=1024

A row is a state: its picture, the prompt and its number. One compiled program parses, plays and rewards a whole batch
of completions. `--model` is any checkpoint of the Qwen2.5-VL architecture.
"""

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import torch
import tyro
from datasets import Dataset
from jaxtyping import Int32, UInt8
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, ProcessorMixin
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from trl import GRPOConfig, GRPOTrainer

from g1jax import envs, rl
from g1jax.envs import Game, text
from g1jax.envs.batch import EPISODE_STEPS, Batch
from g1jax.training.saved_model import PROMPTS, SHIPPED, prompts_of
from g1jax.typing import Array, Key, Pytree

RewardFunc = Callable[..., list[float]]


@dataclass(frozen=True)
class Settings:
    """The settings of a run."""

    game: Literal["game_2048", "shisen_sho", "shisen_sho_cifar10", "swap"] = "game_2048"
    preset: str | None = None  # such as easy+noisy
    model: str = "g1-nano"  # or a folder, or a name on the Hugging Face Hub
    out: str = "runs/trl"
    seed: int = 0
    states: int = 256
    random_moves: int = 20  # a state is up to so many random moves from a fresh board
    steps: int = 20
    states_per_step: int = 4
    responses: int = 8  # of each state
    max_tokens: int = 512  # of a response
    lr: float = 1e-5
    temperature: float = 1.0


class Processor(ProcessorMixin):  # type: ignore[misc]
    """Qwen2.5-VL's processor without videos, for which transformers' own needs torchvision."""

    return_mm_token_type_ids = True

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token = "<|image_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def replace_image_token(self, image_inputs: Any, image_idx: int, **_: Any) -> str:
        patches = int(image_inputs["image_grid_thw"][image_idx].prod())
        return self.image_token * (patches // self.image_processor.merge_size**2)


def make_processor(folder: str, config: Any) -> Processor:
    """The processor of a checkpoint; frames are never resized."""
    vision = config.vision_config
    images = Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        size={"shortest_edge": 1, "longest_edge": 2**30},
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    return Processor(images, tokenizer, tokenizer.chat_template)


def draw_states(game: Game[Any], count: int, random_moves: int, key: Key) -> Pytree:
    """Random states, leaves [count, …]."""
    batch = Batch(game, count, max_steps=EPISODE_STEPS)
    reset_key, walk_key, length_key = jax.random.split(key, 3)
    lengths = jax.random.randint(length_key, (count,), 0, random_moves + 1)
    return jax.jit(lambda: batch.random_walk(batch.reset(reset_key), walk_key, lengths, legal=True).states)()


def make_dataset(game: Game[Any], states: Pytree, prompt: str) -> Dataset:
    """A row for each state: `prompt`, `image`, and its number `state`."""
    frames = np.asarray(jax.jit(jax.vmap(game.render))(states))
    rows = [
        {"prompt": [{"role": "user", "content": prompt}], "image": Image.fromarray(frame), "state": i}
        for i, frame in enumerate(frames)
    ]
    return Dataset.from_list(rows)


@functools.partial(jax.jit, static_argnums=0)
def score(game: Game[Any], responses: UInt8[Array, "B N"], states: Pytree, numbers: Int32[Array, "B"]) -> rl.Reward:
    """The rewards of responses to states: each is parsed, and its move played. A state has its own random numbers."""
    actions = jax.vmap(game.parse)(responses)
    _, results = jax.vmap(game.step)(states, actions, jax.vmap(jax.random.key)(numbers))
    return jax.vmap(functools.partial(rl.reward, game))(responses, states, results)


def make_reward_funcs(game: Game[Any], states: Pytree) -> list[RewardFunc]:
    """`GRPOTrainer`'s functions of a batch of completions, for the parts of the reward: game, format and perception."""

    @functools.lru_cache(maxsize=1)  # the parts of one batch are computed together
    def score_batch(responses: tuple[str, ...], rows: tuple[int, ...]) -> rl.Reward:
        length = max(len(text.encode(response)) for response in responses)
        encoded = np.stack([text.encode(response, length) for response in responses])
        numbers = np.array(rows, np.int32)
        chosen = jax.tree.map(lambda leaf: leaf[numbers], states)
        return jax.device_get(score(game, encoded, chosen, numbers))

    def part(name: str) -> RewardFunc:
        def reward(completions: list[Any], state: list[int], **_: Any) -> list[float]:
            responses = tuple(completion[0]["content"] for completion in completions)
            found: list[float] = getattr(score_batch(responses, tuple(state)), name).tolist()
            return found

        reward.__name__ = name
        return reward

    return [part("game"), part("format"), part("perception")]


def folder_of(model: str) -> Path:
    """The folder of a model that ships, or the path or name itself."""
    return SHIPPED.get(model, Path(model))


def make_trainer(settings: Settings) -> GRPOTrainer:
    """The trainer, ready to train."""
    game = envs.make(settings.game, settings.preset)
    folder = folder_of(settings.model)
    prompt = dict(prompts_of(folder)).get(game.id, game.prompt)  # a small model knows short prompts only
    states = draw_states(game, settings.states, settings.random_moves, jax.random.key(settings.seed))
    model = AutoModelForImageTextToText.from_pretrained(str(folder))
    return GRPOTrainer(
        model=model,
        processing_class=make_processor(str(folder), model.config),
        reward_funcs=make_reward_funcs(game, states),
        train_dataset=make_dataset(game, states, prompt),
        args=GRPOConfig(
            output_dir=settings.out,
            seed=settings.seed,
            max_steps=settings.steps,
            per_device_train_batch_size=settings.states_per_step * settings.responses,
            num_generations=settings.responses,
            max_completion_length=settings.max_tokens,
            learning_rate=settings.lr,
            temperature=settings.temperature,
            logging_steps=1,
            use_cpu=not torch.cuda.is_available(),
            bf16=torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
        ),
    )


def main(settings: Settings) -> None:
    """Trains, and writes the model to `settings.out`; `g1jax evaluate --player=runs/trl` plays it."""
    trainer = make_trainer(settings)
    trainer.train()
    trainer.save_model(settings.out)
    if (prompts := folder_of(settings.model) / PROMPTS).is_file():
        shutil.copy(prompts, settings.out)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
