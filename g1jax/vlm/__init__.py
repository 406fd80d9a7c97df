"""The policy: a vision-language model of the Qwen2.5-VL architecture, from under 1M to billions of parameters."""

from g1jax.errors import ConfigError, WeightsError
from g1jax.vlm import lora, master_weights, sharding
from g1jax.vlm.accumulation import accumulated_grad
from g1jax.vlm.config import SPECIAL_TOKENS, Config, TextConfig, VisionConfig, preset, preset_names
from g1jax.vlm.config_hf import from_hf, to_hf
from g1jax.vlm.generation import Response, as_computed, generate, generate_from
from g1jax.vlm.model import (
    VLM,
    Frames,
    ParamPath,
    Params,
    Prefilled,
    alternating,
    apply,
    bind,
    check_prompts,
    count_params,
    init,
    left_pad,
    num_visual_tokens,
    param_paths,
    param_shapes,
    see,
)
from g1jax.vlm.preprocess import grid_of, patches, pixel_values
from g1jax.vlm.sampling import GREEDY, PLAIN, Sampling, log_distribution, sample
from g1jax.vlm.scoring import Score, prefill, score, score_responses
from g1jax.vlm.sharding import make_mesh
from g1jax.vlm.stacking import stack_layers, unstack_layers
from g1jax.vlm.token_table import TokenBytes, to_bytes, token_bytes, token_texts
from g1jax.vlm.tokenizer import Tokenizer, check_tokenizer
from g1jax.vlm.weights import load, load_config, load_params, save

__all__ = [
    "GREEDY",
    "PLAIN",
    "SPECIAL_TOKENS",
    "VLM",
    "Config",
    "ConfigError",
    "Frames",
    "ParamPath",
    "Params",
    "Prefilled",
    "Response",
    "Sampling",
    "Score",
    "TextConfig",
    "TokenBytes",
    "Tokenizer",
    "VisionConfig",
    "WeightsError",
    "accumulated_grad",
    "alternating",
    "apply",
    "as_computed",
    "bind",
    "check_prompts",
    "check_tokenizer",
    "count_params",
    "from_hf",
    "generate",
    "generate_from",
    "grid_of",
    "init",
    "left_pad",
    "load",
    "load_config",
    "load_params",
    "log_distribution",
    "lora",
    "make_mesh",
    "master_weights",
    "num_visual_tokens",
    "param_paths",
    "param_shapes",
    "patches",
    "pixel_values",
    "prefill",
    "preset",
    "preset_names",
    "sample",
    "save",
    "score",
    "score_responses",
    "see",
    "sharding",
    "stack_layers",
    "to_bytes",
    "to_hf",
    "token_bytes",
    "token_texts",
    "unstack_layers",
]
