"""Experiments by name: files that give a config."""

import importlib.util
import traceback
from pathlib import Path

import g1jax
from g1jax.errors import ExperimentError, G1Error, unknown
from g1jax.training.config import Experiment

_INSTALLED = Path(g1jax.__file__).parent / "experiments"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else Path(g1jax.__file__).parents[1] / "experiments"
"""The experiments that ship: beside the package in a clone, inside it where it is installed (see pyproject.toml)."""


def experiment_names() -> list[str]:
    """Those that ship."""
    return sorted(file.stem for file in FOLDER.glob("*.py") if not file.stem.startswith("_"))


def load_experiment(name: str) -> Experiment:
    """The config of an experiment: what `get_config()` returns in the one of this name that ships, or in a file given
    by its path (`mine.py`, `configs/mine.py`). The working directory is searched for no name.

    Raises:
        ExperimentError: there is none of this name, or its file gives no config.
    """
    path = Path(name) if name.endswith(".py") else _find(name)
    ExperimentError.require(path.is_file(), f"no experiment file {path}")
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except G1Error:
        raise
    except Exception as error:  # whatever its author's code raises
        line = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        place = f"{path}, line {line[-1]}" if line else str(path)
        said = str(error) or "no message"
        raise ExperimentError(f"{place}: {type(error).__name__}: {said}") from error
    ExperimentError.require(
        isinstance(config, Experiment), f"{path}: get_config() gives no Experiment but {type(config).__name__}"
    )
    experiment: Experiment = config
    return experiment


def _find(name: str) -> Path:
    names = experiment_names()
    if name in names:
        return FOLDER / f"{name}.py"
    raise ExperimentError(unknown("experiment", name, names))
