"""Who imports whom: typing, errors, foreign <- envs, vlm <- rl <- the rest of g1jax <- train, experiments."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PROGRAMS = {"train", "experiments", "tests", "benchmarks", "scripts"}
# Below everything; `envs` may import them, so they need what it needs.
BASE = {"typing", "terminal", "errors", "foreign", "foreign_images", "files", "settings"}
OF_ENVS = {"jax", "numpy", "PIL", "g1jax"}
MODULES = sorted((REPOSITORY / "g1jax").rglob("*.py"))

# What each part of g1jax may import of g1jax; a part that is not listed may import everything.
ALLOWED = {
    "": set(),
    "typing": set(),
    "terminal": set(),
    "errors": {"terminal"},
    "foreign": {"errors", "terminal"},
    "foreign_images": {"errors", "foreign", "terminal"},
    "files": {"errors"},
    "settings": {"errors"},
    "envs": {*BASE, "envs"},
    "vlm": {*BASE, "vlm"},
    "rl": {*BASE, "envs", "vlm", "rl"},
}


def imports_of(source: str, module: str) -> Iterator[tuple[str, int]]:
    """The modules that a module's source imports, with the line, relative ones made absolute."""
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, node.module] if node.module else base)
            yield from ((f"{start}.{alias.name}", node.lineno) for alias in node.names)


def name_of(path: Path) -> str:
    """`g1jax.envs.core`; of a package `g1jax.envs.__init__`."""
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


def part_of(module: str) -> str:
    """The part of g1jax a module is in: `envs`, `typing`, …; empty for g1jax itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] not in ("__init__", "__version__") else ""


def violations(module: str, source: str) -> list[str]:
    """What a module imports and must not."""
    part, found = part_of(module), []
    for imported, line in imports_of(source, module):
        root = imported.split(".")[0]
        is_wrong = root in PROGRAMS
        if root == "g1jax" and part in ALLOWED:
            is_wrong |= part_of(imported) not in ALLOWED[part] | {""}
        if part in {"envs", *BASE}:
            is_wrong |= root not in OF_ENVS and root not in sys.stdlib_module_names
        if is_wrong:
            found.append(f"{module}:{line} imports {imported}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_import_only_what_is_below_them(path: Path) -> None:
    assert violations(name_of(path), path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("g1jax.typing", "from g1jax.envs import core"),
        ("g1jax.typing", "import g1jax.vlm"),
        ("g1jax.errors", "from g1jax.typing import Array"),
        ("g1jax.foreign", "from g1jax.envs import text"),
        ("g1jax.foreign", "import ml_dtypes"),
        ("g1jax.envs.core", "from g1jax import vlm"),
        ("g1jax.envs.core", "from g1jax.rl.losses import grpo"),
        ("g1jax.envs.core", "import g1jax.report"),
        ("g1jax.envs.core", "from ..vlm import model"),
        ("g1jax.envs.__init__", "from ..rl import losses"),
        ("g1jax.envs.core", "import chex"),
        ("g1jax.envs.core", "def f():\n    import flax.nnx"),
        ("g1jax.vlm.model", "from g1jax.envs.text import encode"),
        ("g1jax.vlm.model", "import g1jax.rl.rollout"),
        ("g1jax.rl.rollout", "from g1jax import report"),
        ("g1jax.rl.rollout", "from tests.envs import helpers"),
        ("g1jax.report.table", "import train.main"),
        ("g1jax.report.table", "from experiments import g0_swap"),
        ("g1jax.__init__", "from g1jax.envs import make"),
    ],
)
def test_imports_from_above_are_noticed(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("g1jax.envs.core", "import os, jax.numpy\nfrom PIL import Image\nimport numpy as np\nimport g1jax"),
        ("g1jax.envs.core", "from . import text\nfrom .level import Level\nfrom ..typing import Array"),
        ("g1jax.envs.core", "from g1jax.envs import text\nfrom g1jax.typing import Array"),
        ("g1jax.vlm.model", "import flax\nfrom g1jax.typing import Array"),
        ("g1jax.foreign_images", "import numpy as np\nfrom PIL import Image\nfrom g1jax.errors import G1Error"),
        ("g1jax.vlm.model", "from g1jax import foreign\nfrom g1jax.errors import G1Error"),
        ("g1jax.rl.rollout", "from g1jax import envs\nfrom g1jax.vlm import model"),
        ("g1jax.report.table", "from g1jax.rl import rollout\nimport g1jax.envs"),
    ],
)
def test_imports_from_below_are_allowed(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_all_of_g1jax_was_read() -> None:
    names = {name_of(path) for path in MODULES}
    assert {"g1jax.__init__", "g1jax.typing", "g1jax.envs.core", "g1jax.envs.vector"} <= names
