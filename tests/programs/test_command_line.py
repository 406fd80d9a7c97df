"""What the command lines share: non-UTF-8 output, one-line errors, and a process that is left unchanged."""

import io
import json
import logging
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from g1jax.errors import G1Error
from g1jax.programs import analyze, command_line, dataset, evaluate
from g1jax.training.config import Experiment
from g1jax.training.progress import Display
from tests.conftest import REPOSITORY


@dataclass(frozen=True)
class Options:
    count: int = 1
    name: str = ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_that_lacks_letters(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])

    def work(options: Options) -> None:
        print("8×8 …")
        Display().say("π ≥ 0 \udc80")
        raise OSError("no “room”")

    assert command_line.main("program", Options, work, [], "") == 1
    lines = {
        "utf-8": ("8×8 …\nπ ≥ 0 \\udc80\n", "program: no “room”\n"),
        "latin-1": ("8×8 ...\n\\u03c0 >= 0 \\udc80\n", 'program: no "room"\n'),
        "ascii": ("8x8 ...\n\\u03c0 >= 0 \\udc80\n", 'program: no "room"\n'),
    }[encoding]
    for stream, text in zip(streams, lines, strict=True):
        stream.flush()
        assert stream.buffer.getvalue() == text.encode(encoding)
    assert [stream.errors for stream in streams] == ["strict", "strict"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--count=many"], "Error parsing --count: invalid literal for int() with base 10: 'many'"),
        (["--cuont=1"], "unknown option --cuont; did you mean '--count'? (--help lists every setting)"),
        (["--name=\udce9"], r"'--name=\udce9' is not text in this terminal's encoding"),
        (["--count=2"], "a refusal"),
    ],
)
def test_errors_are_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def work(options: Options) -> None:
        assert options.count == 2
        raise G1Error("a\n  refusal")

    assert command_line.main("program", Options, work, arguments, "") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"program: {line}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "default"),
    [(evaluate.Options, None), (analyze.Options, None), (dataset.Options, None), (Experiment, Experiment(name="x"))],
)
def test_every_option_has_a_description(kind: Any, default: Any) -> None:
    rows = [line.strip("│ ") for line in command_line.help_of(kind, default).splitlines() if line.startswith("│ ")]
    help_of_options = re.split(r"\n(?=--)", "\n".join(rows))[1:]
    assert len(help_of_options) > 8
    bare = [text for text in help_of_options if re.match(r"(?:(?!  ).)*(?:\s{2,}|\n)\((default|required)", text)]
    assert bare == []
    assert len(command_line.options_of(kind, default)) >= len(help_of_options)


def test_a_working_directory_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert command_line.main("program", Options, lambda options: None, [], "") == 1
    assert capsys.readouterr().err == "program: the working directory no longer exists: change to another one\n"


def test_an_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    def work(options: Options) -> None:
        raise KeyboardInterrupt

    assert command_line.main("program", Options, work, [], "", interrupted="finished work is kept") == 130
    assert capsys.readouterr().err == "program: finished work is kept\n"


def test_libraries_log_only_errors() -> None:
    absl = logging.getLogger("absl")
    before, absl.level = absl.level, logging.INFO
    try:
        with command_line.own_process():
            assert absl.level == logging.ERROR
        assert absl.level == logging.INFO
    finally:
        absl.setLevel(before)


LIBRARY = """
import json, locale, logging, os, signal, sys, tempfile, warnings
from pathlib import Path
import flax.nnx, jax, matplotlib, numpy, rich.console, tokenizers, transformers  # their own changes do not count
from orbax.checkpoint import v1
from matplotlib import pyplot

matplotlib.use("svg")  # stands for a notebook's
logging.getLogger("absl").setLevel(logging.INFO)


def state():
    loggers = {"": logging.root, **logging.root.manager.loggerDict}
    return {
        "environment": dict(os.environ),
        "search path": list(sys.path),
        "folder": os.getcwd(),
        "warnings": [repr(f) for f in warnings.filters],
        "signals": [repr(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "jax": {key: repr(value) for key, value in jax.config.values.items()},
        "loggers": {
            key: [logger.level, repr(logger.handlers), logger.propagate]
            for key, logger in loggers.items()
            if isinstance(logger, logging.Logger) and (logger.level or logger.handlers or key == "")
        },
        "numpy": [repr(numpy.geterr()), repr(numpy.get_printoptions())],
        "random": [repr(numpy.random.get_state()), repr(__import__("random").getstate())],
        "locale": locale.setlocale(locale.LC_ALL),
        "hooks": [repr(sys.excepthook), repr(sys.unraisablehook), sys.getrecursionlimit()],
        "streams": [sys.stdout.errors, sys.stderr.errors],
        "matplotlib": [matplotlib.get_backend(), repr(dict(matplotlib.rcParams)), pyplot.get_fignums()],
    }


before = state()
import importlib

for file in Path("g1jax").rglob("*.py"):
    name = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
    if not name.startswith(("g1jax.adapters.", "g1jax.programs.serve")):  # which import packages of others
        importlib.import_module(name)
from g1jax.training.run_evaluation import write_curves

folder = Path(tempfile.mkdtemp())
lines = [{"step": step, "phase": "rl", "game_2048/reward": 1.0} for step in (1, 2)]
(folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
assert write_curves(folder).read_bytes().startswith(b"\\x89PNG")
after = state()
print(json.dumps([key for key in before if before[key] != after[key]]))
"""


def test_the_library_does_not_change_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
