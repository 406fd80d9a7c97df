"""The paper's own run: Qwen2.5-VL-7B on eight accelerators; put the weights in models/Qwen2.5-VL-7B-Instruct."""

import dataclasses

from g1jax.training import recipes
from g1jax.training.config import Experiment, Mesh


def get_config() -> Experiment:
    experiment = recipes.paper("qwen2_5_vl_7b", model="models/Qwen2.5-VL-7B-Instruct")
    return dataclasses.replace(experiment, mesh=Mesh(data=0, fsdp=8))
