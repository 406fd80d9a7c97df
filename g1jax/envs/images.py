"""Pictures for the image games: handwritten digits that ship with g1jax, or CIFAR-10 from the user's disk.

    pictures = load_images("auto", per_class=100)     # CIFAR-10 if found, else the digits
    tiles = resize(pictures.images, 28)               # uint8[10, 100, 28, 28, 3]

CIFAR-10 is read in place, from an official archive or its extracted folder, in the Python or the binary version.
Nothing is downloaded or extracted. The Python version consists of pickles, which can run code when loaded, so it is not
unpickled: `read_plain` reads only plain data.
"""

import functools
import hashlib
import io
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from g1jax.envs import plain_tar
from g1jax.envs.plain_pickle import Array, read_plain
from g1jax.errors import G1Error
from g1jax.files import home_folder
from g1jax.terminal import one_line
from g1jax.untrusted import read_bytes

Names = tuple[str, ...]  # of classes, in the order of their labels
Batch = tuple[np.ndarray, np.ndarray]  # pixels uint8[n, 3072], labels uint8[n]

CIFAR10_VARIABLE = "G1JAX_CIFAR10"
CIFAR10_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
CIFAR10_CLASSES: Names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGIT_CLASSES: Names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_DIGITS_FILE = Path(__file__).parent / "data" / "digits.npz"
_PIXELS = 3 * 32 * 32  # bytes of one CIFAR-10 image: the red plane, the green, the blue
_MAX_META_BYTES = 2**16
_MAX_FILE_BYTES = 64 * 2**20  # twice the size of an official batch; nothing larger is read


class ImagesError(G1Error):
    """Images are damaged, of an unknown format, or too few; the message names the file."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images of each class. A value: equal sets have the same fingerprint."""

    name: str
    class_names: tuple[str, ...]
    images: np.ndarray  # uint8[classes, N, h, w, 3], read-only

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageSet) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identifies the images and the names of their classes, wherever they were read from."""
        digest = hashlib.blake2b(repr((self.class_names, self.images.shape)).encode(), digest_size=16)
        digest.update(self.images.tobytes())
        return digest.hexdigest()


def load_images(source: str, per_class: int) -> ImageSet:
    """The first `per_class` images of each class, in file order (CIFAR-10: training batches, then the test batch).

    Args:
        source: "digits" (shipped), "cifar10" (from $G1JAX_CIFAR10 or the usual places), "auto" (CIFAR-10 if found, else
            digits), or the path of an official CIFAR-10 archive or extracted folder, or of what `save_images` wrote.
        per_class: images of each class.

    Raises:
        FileNotFoundError: CIFAR-10 is requested, or named in $G1JAX_CIFAR10, but does not exist.
        ImagesError: the files are damaged or not CIFAR-10, or have too few images.
    """
    ImagesError.require(per_class >= 1, f"per_class must be at least 1, not {per_class}.")
    if source == "digits":
        return _load_digits(per_class)
    if Path(source).suffix == ".npz":
        return _load_saved(Path(source), per_class)
    if source not in ("auto", "cifar10"):
        path = _cifar10_in(Path(source))
        if path is None:
            raise FileNotFoundError(f"No CIFAR-10 at {source!r}. {_ADVICE}")
        return _load_cifar10(path, per_class)
    path = _find_cifar10()
    if path is not None:
        return _load_cifar10(path, per_class)
    if source == "auto":
        return _load_digits(per_class)
    raise FileNotFoundError(f"No CIFAR-10 in {', '.join(_USUAL_PLACES)} ({', '.join(_USUAL_NAMES)}). {_ADVICE}")


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """uint8[..., h, w, 3] -> uint8[..., size, size, 3], by Lanczos resampling, which keeps strokes darkest."""
    if images.dtype != np.uint8 or images.ndim < 3 or images.shape[-1] != 3:
        raise ValueError(f"resize needs uint8[..., h, w, 3], not {images.dtype}{list(images.shape)}.")
    flat = images.reshape(-1, *images.shape[-3:])
    resized = np.empty((len(flat), size, size, 3), np.uint8)
    for target, image in zip(resized, flat, strict=True):
        target[:] = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))
    return resized.reshape(*images.shape[:-3], size, size, 3)


def save_images(pictures: ImageSet, file: Path) -> None:
    """Writes a set to an `.npz` file, which `load_images` reads."""
    with file.open("wb") as out:
        np.savez_compressed(
            out, name=np.array(pictures.name), class_names=np.array(pictures.class_names), images=pictures.images
        )


def _load_saved(file: Path, per_class: int) -> ImageSet:
    if not file.is_file():
        raise FileNotFoundError(f"No pictures at {str(file)!r}.")
    raw = io.BytesIO(read_bytes(file, max_bytes=_MAX_FILE_BYTES, error=ImagesError))
    with _naming(file):
        with zipfile.ZipFile(raw) as archive:
            if sum(part.file_size for part in archive.infolist()) > _MAX_FILE_BYTES:
                raise ImagesError(f"it unpacks to more than {_MAX_FILE_BYTES} bytes")
        with np.load(raw, allow_pickle=False) as saved:
            name, names, pixels = str(saved["name"]), [str(name) for name in saved["class_names"]], saved["images"]
        names = list(_checked_names(names))
        if pixels.dtype != np.uint8 or pixels.ndim != 5 or len(pixels) != len(names) or pixels.shape[-1] != 3:
            raise ImagesError(f"its images are {pixels.dtype}{list(pixels.shape)}")
    if pixels.shape[1] < per_class:
        raise ImagesError(f"{file} has {pixels.shape[1]} images of each class; {per_class} were requested.")
    return _image_set(name, tuple(names), pixels[:, :per_class])


# ---- the shipped digits ----------------------------------------------------------------------------------------------


def _load_digits(per_class: int) -> ImageSet:
    """Black ink on white paper, with a margin of one pixel because the digits touch the edges: 10 by 10 pixels."""
    with np.load(_DIGITS_FILE, allow_pickle=False) as file:
        ink = file["images"]  # uint8[10, N, 8, 8], 0..16
    if per_class > ink.shape[1]:
        raise ImagesError(f"digits has {ink.shape[1]} images of each class, zero to nine; {per_class} were requested.")
    ink = np.pad(ink[:, :per_class], ((0, 0), (0, 0), (1, 1), (1, 1)))
    gray = (255 - np.rint(ink * (255 / 16))).astype(np.uint8)
    return _image_set("digits", DIGIT_CLASSES, np.repeat(gray[..., None], 3, axis=-1))


def _image_set(name: str, class_names: Names, images: np.ndarray) -> ImageSet:
    images = np.ascontiguousarray(images)
    images.setflags(write=False)
    return ImageSet(name, class_names, images)


# ---- CIFAR-10: finding it --------------------------------------------------------------------------------------------

_USUAL_PLACES = ("~/.cache/g1jax", "~/data")
_USUAL_NAMES = ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")
_ADVICE = (
    f"Download the Python or the binary version from {CIFAR10_PAGE} and set {CIFAR10_VARIABLE} to the archive or its "
    "extracted folder; or use the images that ship with g1jax: source 'digits'."
)


def _find_cifar10() -> Path | None:
    """CIFAR-10 at the path in the variable if it is set, else in the first usual place that has it."""
    if variable := os.environ.get(CIFAR10_VARIABLE):
        path = _cifar10_in(Path(variable))
        if path is None:
            raise FileNotFoundError(f"{CIFAR10_VARIABLE} is {variable!r}, but has no CIFAR-10. {_ADVICE}")
        return path
    if home_folder() is None:
        return None
    return next((path for place in _USUAL_PLACES if (path := _cifar10_in(Path(place)))), None)


def _cifar10_in(place: Path) -> Path | None:
    """`place` itself if it is a file or a folder of batches, else the first usual name in it."""
    place = Path(os.path.expanduser(place))  # noqa: PTH111 - Path's own raises where there is no home
    if place.is_file() or any((place / layout.batches[0]).is_file() for layout in _LAYOUTS):
        return place
    return next((place / name for name in _USUAL_NAMES if (place / name).exists()), None)


# ---- CIFAR-10: reading it --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """One of the two official versions: its folder, its files, and their parsers."""

    folder: str
    meta: str
    batches: tuple[str, ...]  # in reading order
    parse_meta: Callable[[bytes], Names]
    parse_batch: Callable[[bytes], Batch]


def _load_cifar10(path: Path, per_class: int) -> ImageSet:
    layout = _layout_of(path)
    first = _read_files(path, layout, (layout.meta, layout.batches[0]))
    names = CIFAR10_CLASSES
    if layout.meta in first:
        with _naming(path / layout.meta):
            names = layout.parse_meta(first[layout.meta])

    def batches() -> Iterator[Batch]:
        for name in layout.batches:
            files = first if name in first else _read_files(path, layout, (name,))
            ImagesError.require(name in files, f"{path} has no {name}: it is damaged or incomplete. {_ADVICE}")
            with _naming(path / name):
                batch = layout.parse_batch(files[name])
            yield batch

    pixels = _first_of_each_class(path, batches(), names, per_class)  # uint8[10, N, 3072]
    images = pixels.reshape(len(names), per_class, 3, 32, 32).transpose(0, 1, 3, 4, 2)
    return _image_set("cifar10", names, images)


def _first_of_each_class(path: Path, batches: Iterable[Batch], names: Sequence[str], per_class: int) -> np.ndarray:
    """uint8[classes, per_class, 3072], from as few batches as possible."""
    chosen: list[list[np.ndarray]] = [[] for _ in names]
    missing = [per_class for _ in names]
    for pixels, labels in batches:
        for label in range(len(names)):
            rows = np.flatnonzero(labels == label)[: missing[label]]
            chosen[label].append(pixels[rows])
            missing[label] -= len(rows)
        if not any(missing):
            return np.stack([np.concatenate(parts) for parts in chosen])
    fewest = int(np.argmax(missing))
    raise ImagesError(
        f"{path}: CIFAR-10 has {per_class - missing[fewest]} images of class {names[fewest]!r}; "
        f"{per_class} were requested."
    )


def _layout_of(path: Path) -> _Layout:
    """Recognizes a folder by its first batch, an archive by its first member in one of the two folders."""
    if path.is_dir():
        found = next((layout for layout in _LAYOUTS if (path / layout.batches[0]).is_file()), None)
    else:
        with _open_archive(path) as archive:
            folders = (name.split("/")[0] for name, _ in archive)
            found = next((layout for folder in folders for layout in _LAYOUTS if layout.folder == folder), None)
    if found is None:
        raise ImagesError(f"{path} holds neither of the two versions of CIFAR-10. {_ADVICE}")
    return found


def _read_files(path: Path, layout: _Layout, names: Sequence[str]) -> dict[str, bytes]:
    """The named files that exist. An archive is read once, up to the last one, and never extracted."""
    found: dict[str, bytes] = {}
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                found[name] = read_bytes(path / name, max_bytes=_limit(name), error=ImagesError)
        return found
    wanted = {f"{layout.folder}/{name}": name for name in names}
    with _open_archive(path) as archive:
        for member, read in archive:
            name = wanted.get(member, "")
            if name and name not in found:
                found[name] = read(_limit(name) + 1)
                ImagesError.require(len(found[name]) <= _limit(name), f"{member} has more than {_limit(name)} bytes")
                if len(found) == len(names):
                    break
    return found


def _limit(name: str) -> int:
    """The size limit of a file, in bytes."""
    return _MAX_META_BYTES if "meta" in name else _MAX_FILE_BYTES


@contextmanager
def _open_archive(path: Path) -> Iterator[Iterator[tuple[str, Callable[[int], bytes]]]]:
    """The names of an archive's files, each with its reader; see `plain_tar`."""
    with path.open("rb") as file, _naming(path):
        yield ((name.removeprefix("./"), read) for name, read in plain_tar.members(file))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns every exception from reading a damaged or untrusted file into an ImagesError with its name."""
    try:
        yield
    except Exception as error:
        reason = one_line(str(error), 200) or type(error).__name__
        raise ImagesError(f"{path} is damaged or not a plain CIFAR-10 file: {reason}. {_ADVICE}") from error


def _checked_batch(pixels: np.ndarray, labels: np.ndarray) -> Batch:
    if pixels.shape != (len(labels), _PIXELS):
        raise ImagesError(f"its images have the shape {pixels.shape}, not ({len(labels)} labels, {_PIXELS})")
    if (labels >= len(CIFAR10_CLASSES)).any():
        raise ImagesError(f"it has the label {labels.max()}, and only 0 to 9 exist")
    return pixels, labels


def _checked_names(names: Sequence[str]) -> Names:
    """Checks that the names are ten different plain words, since board texts contain them."""
    are_plain = all(re.fullmatch(r"[A-Za-z][A-Za-z0-9 _-]{0,31}", name) for name in names)
    if not are_plain or len(set(names)) != len(names) or len(names) != len(CIFAR10_CLASSES):
        raise ImagesError("its class names are not ten different plain words")
    return tuple(names)


# ---- The binary version: records of a label byte and 3072 pixel bytes; one name per line -----------------------------


def _parse_binary_batch(data: bytes) -> Batch:
    if len(data) % (1 + _PIXELS):
        raise ImagesError(f"its length, {len(data)} bytes, is not a multiple of {1 + _PIXELS}")
    records = np.frombuffer(data, np.uint8).reshape(-1, 1 + _PIXELS)
    return _checked_batch(records[:, 1:], records[:, 0])


def _parse_binary_meta(data: bytes) -> Names:
    return _checked_names([line.strip() for line in data.decode("ascii", "replace").splitlines() if line.strip()])


# ---- The Python version: dictionaries pickled by Python 2, keys and strings as bytes ---------------------------------


def _unpickle(data: bytes) -> dict[bytes | str, Any]:
    content = read_plain(data)
    if not isinstance(content, dict):
        raise ImagesError("it holds no dictionary")
    return content


def _parse_python_batch(data: bytes) -> Batch:
    content = _unpickle(data)
    pixels, labels = content.get(b"data"), content.get(b"labels")
    if not isinstance(pixels, Array) or pixels.values is None or not isinstance(labels, list):
        raise ImagesError("it lacks the array b'data' or the list b'labels'")
    if not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise ImagesError("its labels are not whole numbers from 0 to 9")
    return _checked_batch(pixels.values, np.array(labels, np.uint8))


def _parse_python_meta(data: bytes) -> Names:
    names = _unpickle(data).get(b"label_names")
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise ImagesError("it lacks the list b'label_names'")
    return _checked_names([name.decode("ascii", "replace") for name in names])


_TRAINING = tuple(f"data_batch_{number}" for number in range(1, 6))
_PYTHON = _Layout(
    "cifar-10-batches-py", "batches.meta", (*_TRAINING, "test_batch"), _parse_python_meta, _parse_python_batch
)
_BINARY = _Layout(
    "cifar-10-batches-bin",
    "batches.meta.txt",
    tuple(f"{name}.bin" for name in _PYTHON.batches),
    _parse_binary_meta,
    _parse_binary_batch,
)
_LAYOUTS = (_PYTHON, _BINARY)
