"""Fixtures for the tests of g1jax.envs."""

from pathlib import Path

import pytest

from g1jax.envs import images


@pytest.fixture
def without_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without CIFAR-10."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.delenv(images.CIFAR10_VARIABLE, raising=False)
