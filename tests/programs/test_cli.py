"""The command `g1jax`."""

import importlib
import sys

import pytest

from g1jax.programs import cli


def test_help_names_every_program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["g1jax"])
    for arguments in (["--help"], [], None):
        assert cli.main(arguments) == 0
        out = capsys.readouterr().out
        assert all(f"    {name} " in out for name in cli.PROGRAMS)


def test_an_unknown_program_is_an_error_with_near_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 1
    assert capsys.readouterr().err == (
        "g1jax: unknown program 'trian'; did you mean 'train'? Available: train, evaluate, analyze, dataset, play, "
        "serve\n"
    )


@pytest.mark.parametrize("name", [name for name in cli.PROGRAMS if name != "serve"])
def test_help_of_each_program_has_its_own_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    program = importlib.import_module(f"g1jax.programs.{name}")
    with pytest.raises(SystemExit) as end:
        program.main(["--help"], f"g1jax {name}")
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: g1jax {name} ")
    assert f"\n    g1jax {name} " in out


def test_a_missing_package_of_the_server_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named 'uvicorn' for {name}", name="uvicorn")

    monkeypatch.setattr(importlib, "import_module", fail)
    assert cli.main(["serve"]) == 1
    assert capsys.readouterr().err == "g1jax: the server needs uvicorn: pip install 'g1jax[openenv]'\n"
