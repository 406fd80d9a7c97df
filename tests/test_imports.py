"""The import layers: each part of g1jax imports only parts below it, at the top of its modules."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PROGRAMS = {"train", "examples", "experiments", "tests", "benchmarks", "scripts"}
# From the bottom; parts of one layer do not import each other.
LAYERS = (
    {"typing", "terminal"},
    {"errors"},
    {"files", "untrusted", "settings", "keys"},
    {"untrusted_images"},
    {"envs", "vlm", "endpoint"},
    {"teachers", "rl"},
    {"adapters", "sft", "evaluation"},
    {"training"},
    {"analysis"},
    {"programs"},
)
BASE = set().union(*LAYERS[:4])
OF_ENVS = {"jax", "jaxtyping", "numpy", "PIL", "g1jax"}
MODULES = sorted((REPOSITORY / "g1jax").rglob("*.py"))


def imports_of(source: str, module: str) -> Iterator[tuple[str, int, bool]]:
    """The imports of a module with relative ones made absolute: name, line, and whether it is not at the top level."""
    package = module.split(".")[:-1]
    tree = ast.parse(source)
    top_level = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, id(node) not in top_level) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, node.module] if node.module else base)
            yield from ((f"{start}.{alias.name}", node.lineno, id(node) not in top_level) for alias in node.names)


def name_of(path: Path) -> str:
    """`g1jax.envs.core`; for a package `g1jax.envs.__init__`."""
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


def part_of(module: str) -> str:
    """The part of g1jax a module is in: `envs`, `typing`, …; empty for g1jax itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] not in ("__init__", "__version__") else ""


def layer_of(part: str) -> int:
    """The layer's index from the bottom; -1 for g1jax itself, which has only its version."""
    return next((i for i, layer in enumerate(LAYERS) if part in layer), -1)


def violations(module: str, source: str) -> list[str]:
    """The forbidden imports of a module."""
    part, found = part_of(module), []
    for imported, line, is_hidden in imports_of(source, module):
        root, other = imported.split(".")[0], part_of(imported)
        is_wrong = root in PROGRAMS
        if root == "g1jax":
            is_below = layer_of(other) < layer_of(part) or other == part or (other == "" and part != "")
            is_wrong |= is_hidden or not is_below
        if part in {"envs", *BASE}:
            is_wrong |= root not in OF_ENVS and root not in sys.stdlib_module_names
        if is_wrong:
            found.append(f"{module}:{line} imports {imported}")
    return found


def test_every_part_has_a_layer() -> None:
    parts = {part_of(name_of(path)) for path in MODULES} - {""}
    assert parts == set().union(*LAYERS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_import_only_from_below(path: Path) -> None:
    assert violations(name_of(path), path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("g1jax.typing", "from g1jax.envs import core"),
        ("g1jax.typing", "import g1jax.vlm"),
        ("g1jax.terminal", "from g1jax.errors import G1Error"),
        ("g1jax.untrusted", "from g1jax.envs import text"),
        ("g1jax.files", "from g1jax.untrusted import excerpt"),
        ("g1jax.untrusted", "import ml_dtypes"),
        ("g1jax.envs.core", "from g1jax import vlm"),
        ("g1jax.envs.core", "from g1jax.rl.losses import grpo"),
        ("g1jax.envs.core", "import g1jax.training"),
        ("g1jax.envs.core", "from ..vlm import model"),
        ("g1jax.envs.__init__", "from ..rl import losses"),
        ("g1jax.envs.core", "import chex"),
        ("g1jax.envs.core", "def f():\n    import flax.nnx"),
        ("g1jax.vlm.model", "from g1jax.envs.text import encode"),
        ("g1jax.vlm.model", "import g1jax.rl.rollout"),
        ("g1jax.rl.rollout", "from g1jax import training"),
        ("g1jax.rl.policy", "from g1jax.teachers import teach"),
        ("g1jax.adapters.gymnasium.env", "from g1jax.evaluation import players"),
        ("g1jax.evaluation.players", "from g1jax.sft import facts"),
        ("g1jax.evaluation.report", "import g1jax.training.setup"),
        ("g1jax.training.loop", "from g1jax.analysis import pages"),
        ("g1jax.training.loop", "def f():\n    from g1jax import vlm"),
        ("g1jax.training.loop", "if TYPE_CHECKING:\n    from g1jax.vlm import Params"),
        ("g1jax.teachers.core", "from g1jax.rl.policy import Policy"),
        ("g1jax.rl.rollout", "from tests.envs import helpers"),
        ("g1jax.evaluation.tables", "import train.main"),
        ("g1jax.evaluation.tables", "from experiments import g0_swap"),
        ("g1jax.__init__", "from g1jax.envs import make"),
    ],
)
def test_imports_from_above_are_detected(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("g1jax.envs.core", "import os, jax.numpy\nfrom PIL import Image\nimport numpy as np\nimport g1jax"),
        ("g1jax.envs.core", "from . import text\nfrom .level import Level\nfrom ..typing import Array"),
        ("g1jax.envs.core", "from g1jax.envs import text\nfrom g1jax.typing import Array"),
        ("g1jax.vlm.model", "import flax\nfrom g1jax.typing import Array"),
        ("g1jax.untrusted_images", "import numpy as np\nfrom PIL import Image\nfrom g1jax.errors import G1Error"),
        ("g1jax.vlm.model", "from g1jax import untrusted\nfrom g1jax.errors import G1Error"),
        ("g1jax.rl.rollout", "from g1jax import envs\nfrom g1jax.vlm import model"),
        ("g1jax.adapters.gymnasium.env", "import gymnasium\nfrom g1jax.envs import Game"),
        ("g1jax.evaluation.tables", "from g1jax.rl import rollout\nimport g1jax.envs"),
    ],
)
def test_imports_from_below_are_allowed(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_all_of_g1jax_was_read() -> None:
    names = {name_of(path) for path in MODULES}
    assert {"g1jax.__init__", "g1jax.typing", "g1jax.envs.core", "g1jax.programs.train"} <= names
