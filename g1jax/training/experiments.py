"""Experiments by name: files that give a config."""

import difflib
import importlib.util
from pathlib import Path

from g1jax.training.config import Experiment, ExperimentError, require

FOLDERS = (Path("experiments"), Path(__file__).parents[2] / "experiments")


def experiment_names() -> list[str]:
    """Those in ./experiments and in the source tree."""
    return sorted({file.stem for folder in FOLDERS for file in folder.glob("*.py") if not file.stem.startswith("_")})


def load_experiment(name: str) -> Experiment:
    """The config of an experiment: what `get_config()` in `experiments/<name>.py`, or in a file given by path, returns.

    Raises:
        ExperimentError: there is none of this name, or its file gives no config.
    """
    path = Path(name) if name.endswith(".py") else _find(name)
    require(path.is_file(), f"no experiment file {path}")
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except AttributeError as error:
        raise ExperimentError(f"{path}: {error}") from error
    require(isinstance(config, Experiment), f"{path}: get_config() gives no Experiment but {type(config).__name__}")
    experiment: Experiment = config
    return experiment


def _find(name: str) -> Path:
    for folder in FOLDERS:
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    names = experiment_names()
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ExperimentError(f"unknown experiment {name!r}{hint} There are: {', '.join(names)}")
