"""Images: the shipped digits, and sound CIFAR-10 in its official formats."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from g1jax.envs import images
from tests.envs.cifar10_files import (
    BATCHES,
    Files,
    batch,
    binary_files,
    first_images,
    py2_batch,
    py2_meta,
    python_files,
    write_archive,
    write_folder,
)

pytestmark = pytest.mark.usefixtures("without_cifar10")


# ---- The digits ------------------------------------------------------------------------------------------------------


def test_digits_are_ten_classes_of_different_images() -> None:
    digits = images.load_images("digits", 174)
    assert digits.name == "digits"
    assert digits.class_names[0] == "zero"
    assert digits.class_names[9] == "nine"
    assert digits.images.shape == (10, 174, 10, 10, 3)
    assert digits.images.dtype == np.uint8
    assert len(np.unique(digits.images.reshape(1740, -1), axis=0)) == 1740


def test_digits_are_black_on_white() -> None:
    digits = images.load_images("digits", 20).images
    assert (digits[:, :, 0] == 255).all()
    assert (digits.min(axis=(2, 3, 4)) < 20).all()
    assert (images.resize(digits, 28).min(axis=(2, 3, 4)) < 20).all()


def test_fewer_images_are_the_first_of_more() -> None:
    few, many = images.load_images("digits", 4), images.load_images("digits", 9)
    np.testing.assert_array_equal(few.images, many.images[:, :4])


def test_images_cannot_be_written_to() -> None:
    digits = images.load_images("digits", 4)
    with pytest.raises(ValueError, match="read-only"):
        digits.images[0, 0] = 0


@pytest.mark.parametrize(("per_class", "message"), [(175, "174 images of each class"), (0, "at least 1")])
def test_impossible_numbers_of_digits_are_refused(per_class: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        images.load_images("digits", per_class)


# ---- Resizing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 28, 32, 80])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_resize_keeps_leading_axes_and_each_image_apart(leading: tuple[int, ...], size: int) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (*leading, 1, 1, 3), np.uint8)
    plain = np.broadcast_to(colors, (*leading, 32, 32, 3))
    resized = images.resize(plain, size)
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, np.broadcast_to(colors, (*leading, size, size, 3)))


def test_resize_to_the_same_size_changes_nothing() -> None:
    pixels = first_images(2)
    np.testing.assert_array_equal(images.resize(pixels, 32), pixels)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 1), np.uint8)])
def test_resize_refuses_other_arrays(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="resize needs uint8"):
        images.resize(pixels, 8)


# ---- CIFAR-10, sound -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_class", [1, 3, 12])
@pytest.mark.parametrize("write", [write_folder, write_archive])
@pytest.mark.parametrize("files", [python_files, binary_files])
def test_every_official_form_gives_the_same_images(
    files: Callable[[], Files], write: Callable[[Path, Files], Path], per_class: int, tmp_path: Path
) -> None:
    loaded = images.load_images(str(write(tmp_path, files())), per_class)
    assert loaded.name == "cifar10"
    assert loaded.class_names == images.CIFAR10_CLASSES
    np.testing.assert_array_equal(loaded.images, first_images(per_class))
    assert not loaded.images.flags.writeable


def test_arrays_repickled_by_numpy_2_are_read(tmp_path: Path) -> None:
    files = {name: py2_batch(*batch(n), core="numpy._core.multiarray") for n, name in enumerate(BATCHES)}
    np.testing.assert_array_equal(images.load_images(str(write_folder(tmp_path, files)), 3).images, first_images(3))


def test_no_more_batches_are_read_than_needed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, python_files() | {"data_batch_3": b"damaged"})
    assert images.load_images(str(folder), 4).images.shape[1] == 4
    with pytest.raises(ValueError, match="data_batch_3 is damaged"):
        images.load_images(str(folder), 5)


def test_too_few_images_names_the_class(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="12 images of class 'airplane'; 13 were requested"):
        images.load_images(str(write_folder(tmp_path, binary_files())), 13)


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    files = python_files()
    del files["data_batch_2"]
    for path in (write_folder(tmp_path, files), write_archive(tmp_path, files)):
        with pytest.raises(ValueError, match="has no data_batch_2"):
            images.load_images(str(path), 3)


@pytest.mark.parametrize("write", [write_folder, write_archive])
def test_class_names_come_from_the_meta_file(write: Callable[[Path, Files], Path], tmp_path: Path) -> None:
    names = ("plane", *images.CIFAR10_CLASSES[1:])
    python = python_files() | {"batches.meta": py2_meta(names)}
    binary = binary_files() | {"batches.meta.txt": "\r\n".join(names).encode()}
    for files in (python, binary):
        assert images.load_images(str(write(tmp_path, files)), 1).class_names == names


def test_without_a_meta_file_the_official_names_are_used(tmp_path: Path) -> None:
    files = python_files()
    del files["batches.meta"]
    for path in (write_folder(tmp_path, files), write_archive(tmp_path, files)):
        assert images.load_images(str(path), 1).class_names == images.CIFAR10_CLASSES


def test_only_expected_members_are_read_and_none_is_extracted(tmp_path: Path) -> None:
    files = {"../../escaped": b"out", "data_batch_11": b"other"} | python_files()
    path = write_archive(tmp_path / "a" / "b", files, prefix="./")
    np.testing.assert_array_equal(images.load_images(str(path), 3).images, first_images(3))
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == [path]


# ---- CIFAR-10, search paths ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["home/.cache/g1jax", "home/data"])
@pytest.mark.parametrize("source", ["auto", "cifar10"])
def test_the_usual_places_are_searched(source: str, place: str, tmp_path: Path) -> None:
    write_archive(tmp_path / place, binary_files())
    assert images.load_images(source, 1).name == "cifar10"


@pytest.mark.parametrize("home", ["home", None])
def test_nothing_is_found_by_accident_in_the_working_directory(
    home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a home folder, `~` is not a folder named `~` either."""
    if home is None:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    for place in ("data", "~/data", ".cache/g1jax"):
        write_archive(tmp_path / "here" / place, binary_files())
    assert images.load_images("auto", 1).name == "digits"


@pytest.mark.parametrize("source", ["auto", "cifar10"])
def test_the_variable_names_an_archive_a_folder_or_its_parent(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "mine", python_files())
    for place in (folder, folder.parent, write_archive(tmp_path, binary_files())):
        monkeypatch.setenv(images.CIFAR10_VARIABLE, str(place))
        np.testing.assert_array_equal(images.load_images(source, 2).images, first_images(2))


def test_auto_without_cifar10_gives_digits() -> None:
    assert images.load_images("auto", 4).name == "digits"


def test_not_found_says_where_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advice = ".*" + re.escape(images.CIFAR10_PAGE) + ".*G1JAX_CIFAR10"
    with pytest.raises(FileNotFoundError, match=r"~/\.cache/g1jax, ~/data \(.*cifar-10-python\.tar\.gz" + advice):
        images.load_images("cifar10", 4)
    with pytest.raises(FileNotFoundError, match=r"No CIFAR-10 at 'no/such\.tar\.gz'" + advice):
        images.load_images("no/such.tar.gz", 4)
    monkeypatch.setenv(images.CIFAR10_VARIABLE, str(tmp_path / "gone"))
    for source in ("auto", "cifar10"):
        with pytest.raises(FileNotFoundError, match="gone" + advice):
            images.load_images(source, 4)
