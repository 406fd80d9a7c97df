"""The files beside a model's weights and tokenizer that transformers' AutoProcessor, `generate` and vLLM read."""

import json
from pathlib import Path
from typing import Any

from g1jax.files import write_atomically
from g1jax.vlm.config import Config
from g1jax.vlm.preprocess import IMAGE_MEAN, IMAGE_STD
from g1jax.vlm.resize import MAX_TOKENS
from g1jax.vlm.tokenizer import Tokenizer

PROCESSOR = "preprocessor_config.json"
TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"


def save_processor(config: Config, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes how images and messages become prompts, and how responses are sampled and end.

    An image that is made of whole visual tokens is not resized; others are, to the nearest such size, as in a run.
    Sampling is plain: temperature 1, all tokens.
    """
    vision = config.vision
    _write(
        folder / PROCESSOR,
        {
            "processor_class": "Qwen2_5_VLProcessor",
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": vision.patch_size,
            "merge_size": vision.merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "min_pixels": vision.token_size**2,
            "max_pixels": MAX_TOKENS * vision.token_size**2,
            "image_mean": IMAGE_MEAN,
            "image_std": IMAGE_STD,
        },
    )
    write_atomically(folder / TEMPLATE, tokenizer.template)
    _write(
        folder / GENERATION,
        {
            "eos_token_id": list(tokenizer.stop_tokens),
            "pad_token_id": tokenizer.pad_token,
            "do_sample": True,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
        },
    )


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2) + "\n")
