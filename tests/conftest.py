"""Test configuration: strict promotion, a persistent compilation cache, and no slow tests by default."""

import gc
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import hypothesis
import jax
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def load_script(path: str) -> ModuleType:
    """A program of this repository as a module: `load_script("scripts/release.py")`."""
    file = REPOSITORY / path
    spec = importlib.util.spec_from_file_location(f"script_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", str(REPOSITORY / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

hypothesis.settings.register_profile(
    "g1jax",
    deadline=None,  # the first example compiles
    max_examples=100 if os.environ.get("CI") else 200,
    derandomize=bool(os.environ.get("CI")),
)
hypothesis.settings.load_profile("g1jax")


def pytest_configure(config: pytest.Config) -> None:
    # Two workers may use the same cache entry at once; the one that cannot read it compiles.
    config.addinivalue_line("filterwarnings", "ignore:Error (reading|writing) persistent compilation cache:UserWarning")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "slow" in config.option.markexpr:
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))


@pytest.fixture(autouse=True, scope="module")
def _no_programs_of_other_files() -> Iterator[None]:
    """Frees compiled programs: a process may have 65,530 memory maps, and a program takes dozens."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the tiny model."""
    from tests.training import tiny  # imports the whole package

    return tiny.save_model(tmp_path_factory.mktemp("model"))
