"""scripts/release.py: what a release changes in files."""

import datetime
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY, load_script

DATE = datetime.date(2026, 11, 27)


@pytest.fixture(scope="module")
def release() -> ModuleType:
    return load_script("scripts/release.py")


@pytest.fixture
def files(release: ModuleType) -> dict[str, str]:
    """Those of this repository, with a change to release."""
    read = {name: (REPOSITORY / name).read_text("utf-8") for name in (*release.FILES, release.CHANGELOG)}
    heading, rest = read[release.CHANGELOG].split(release.HEADING)
    return read | {release.CHANGELOG: f"{heading}{release.HEADING}\n\n- A change.\n\n## 0.0.1 (2026-01-01){rest}"}


def test_the_version_is_in_all_places_and_the_changelog_has_a_dated_section(
    release: ModuleType, files: dict[str, str]
) -> None:
    after = release.released(files, "9.0.0", DATE)
    assert 'version = "9.0.0"\n' in after["pyproject.toml"]
    assert '__version__ = "9.0.0"\n' in after["g1jax/__init__.py"]
    assert "## Unreleased\n\n## 9.0.0 (2026-11-27)\n\n- A change.\n" in after["CHANGELOG.md"]
    changed = {name for name in files if files[name] != after[name]}
    assert changed == set(files)


def test_the_next_release_needs_a_change(release: ModuleType, files: dict[str, str]) -> None:
    after = release.released(files, "9.0.0", DATE)
    with pytest.raises(ValueError, match="lists no change"):
        release.released(after, "9.0.1", DATE)


@pytest.mark.parametrize("version", ["0.0.1", "0.1.0", "9", "9.0", "v9.0.0", "9.0.0rc1"])
def test_versions_that_are_no_later_ones(release: ModuleType, files: dict[str, str], version: str) -> None:
    with pytest.raises(ValueError, match="give a version such as"):
        release.released(files, version, DATE)
