"""The folder of a model as a policy: the files of a Qwen2.5-VL checkpoint, and the prompts and the observation that it
was trained with.
"""

import json
from pathlib import Path

from g1jax import vlm
from g1jax.errors import ConfigError, ExperimentError, unknown
from g1jax.files import write_atomically
from g1jax.rl.observation import Observation, about
from g1jax.rl.policy import Policy
from g1jax.rl.prompts import Templates
from g1jax.untrusted import read_object
from g1jax.vlm import Params
from g1jax.vlm.processor_files import save_processor

SHIPPED = {name: Path(__file__).parents[1] / "data" / name for name in ("base", "g1-nano", "g1-nano-sizes")}
"""The small trained models that ship, by name: after the supervised steps, and after RL."""
PROMPTS, OBSERVATION = "prompts.json", "observation.json"


def is_model(name: str) -> bool:
    """Whether this is the name of a model that ships, or a folder with weights."""
    return name in SHIPPED or any(Path(name).glob("*.safetensors"))


def model_folder(name: str) -> Path | None:
    """The folder of a model's weights, by name or path; None for an untrained preset.

    Raises:
        ExperimentError: there is no such model.
    """
    if name in vlm.preset_names():
        return None
    known = [*SHIPPED, *vlm.preset_names()]
    ExperimentError.require(name in SHIPPED or Path(name).is_dir(), unknown("model, and no folder", name, known))
    return SHIPPED.get(name, Path(name))


def save_policy(policy: Policy, params: Params, folder: Path) -> None:
    """Saves a policy's model, tokenizer and prompts in a folder that `load_policy`, transformers and vLLM read.

    Raises:
        FileExistsError: the folder has weights already.
        OSError: it cannot be written.
    """
    vlm.save(policy.config, params, folder)
    policy.tokenizer.save(folder)
    save_processor(policy.config, policy.tokenizer, folder)
    save_prompts(policy, folder)


def save_prompts(policy: Policy, folder: Path) -> None:
    """Writes the prompts of a model's folder, and the observation if it is not the default."""
    text = json.dumps(dict(policy.templates), indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / PROMPTS, text)
    if shown := about(policy.observation):
        write_atomically(folder / OBSERVATION, json.dumps(shown) + "\n")


def load_policy(name: str) -> tuple[Policy, Params]:
    """The policy of a model by its name or folder, without token budgets (see `players.prepared`), and its weights.

    Raises:
        ConfigError: the folder's files are damaged or do not fit together.
        ExperimentError: there is no such model, or it is untrained.
    """
    folder = model_folder(name)
    ExperimentError.require(folder is not None, f"{name} is an untrained preset")
    assert folder is not None
    config, params = vlm.load(folder)
    tokenizer = vlm.Tokenizer.load(folder)
    return Policy(config, tokenizer, templates=prompts_of(folder), observation=observation_of(folder)), params


def prompts_of(folder: Path) -> Templates:
    """The prompts that a model's folder names; none without a prompts.json.

    Raises:
        ConfigError: the file is damaged.
    """
    file = folder / PROMPTS
    prompts = read_object(file, error=ConfigError) if file.is_file() else {}
    ConfigError.require(all(isinstance(text, str) for text in prompts.values()), f"{file}: a prompt is not a string")
    return tuple(sorted(prompts.items()))


def observation_of(folder: Path) -> Observation:
    """The observation that a model's folder names; the default without an observation.json.

    Raises:
        ConfigError: the file is damaged.
    """
    file = folder / OBSERVATION
    shown = read_object(file, error=ConfigError).get("observation") if file.is_file() else []
    is_list = isinstance(shown, list) and all(isinstance(name, str) for name in shown)
    ConfigError.require(is_list, f"{file}: observation is not a list of strings")
    return Observation.of(shown or ())
