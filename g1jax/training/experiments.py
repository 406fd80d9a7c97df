"""Loads experiments by name: files that define `get_config()`."""

import importlib.util
import traceback
from pathlib import Path

import g1jax
from g1jax.errors import ExperimentError, G1Error, unknown
from g1jax.training.config import Experiment

_INSTALLED = Path(g1jax.__file__).parent / "experiments"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else Path(g1jax.__file__).parents[1] / "experiments"
"""The experiments that ship: next to the package in a clone, inside it in an installed wheel (see pyproject.toml)."""


def experiment_names() -> list[str]:
    """The names of the experiments that ship."""
    return sorted(file.stem for file in FOLDER.glob("*.py") if not file.stem.startswith("_"))


def load_experiment(name: str) -> Experiment:
    """The config of an experiment that ships, by its name, or of a file, by its path (`mine.py`, `configs/mine.py`).

    Names are not searched for in the working directory.

    Raises:
        ExperimentError: no experiment has this name, or its file does not return a config.
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
    except Exception as error:  # the file may raise anything
        line = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        location = f"{path}, line {line[-1]}" if line else str(path)
        raise ExperimentError(f"{location}: {type(error).__name__}: {str(error) or 'no message'}") from error
    if not isinstance(config, Experiment):
        raise ExperimentError(f"{path}: get_config() returns no Experiment but {type(config).__name__}")
    return config


def _find(name: str) -> Path:
    names = experiment_names()
    if name in names:
        return FOLDER / f"{name}.py"
    raise ExperimentError(unknown("experiment", name, names))
