"""Small CIFAR-10 files in the official formats.

The official Python version was pickled by Python 2 (protocol 2). A Python 3 pickle has other opcodes, so these files
are assembled opcode by opcode as Python 2 wrote them.
"""

import io
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from g1jax.envs import images

PER_BATCH = 20  # two images of each class
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
# The order of members in the official cifar-10-python.tar.gz.
ARCHIVE_ORDER = ("data_batch_4", "readme.html", "test_batch", "data_batch_3", "batches.meta", "data_batch_2")

Files = dict[str, bytes]  # name in the folder -> contents


# ---- Python 2 pickles, protocol 2 ------------------------------------------------------------------------------------


def py2_string(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value


def py2_int(value: int) -> bytes:
    return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)


def py2_list(items: list[bytes]) -> bytes:
    return b"](" + b"".join(items) + b"e"


def py2_dict(items: Mapping[bytes, bytes]) -> bytes:
    """A whole file: PROTO 2, the dictionary, STOP."""
    return b"\x80\x02}(" + b"".join(py2_string(key) + value for key, value in items.items()) + b"u."


def py2_global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def py2_array(array: np.ndarray, core: str = "numpy.core.multiarray", dtype: bytes = b"u1") -> bytes:
    shape = b"(" + b"".join(py2_int(size) for size in array.shape) + b"t"
    rebuilt = (
        py2_global(core, "_reconstruct") + py2_global("numpy", "ndarray") + b"K\0\x85" + py2_string(b"b") + b"\x87R"
    )
    made_dtype = py2_global("numpy", "dtype") + py2_string(dtype) + b"K\0K\1\x87R"
    made_dtype += b"(K\3" + py2_string(b"|") + b"NNN" + py2_int(-1) + py2_int(-1) + b"K\0tb"
    return rebuilt + b"(K\1" + shape + made_dtype + b"\x89" + py2_string(array.tobytes()) + b"tb"


def py2_batch(pixels: np.ndarray, labels: list[int], **array_options: str | bytes) -> bytes:
    return py2_dict(
        {
            b"batch_label": py2_string(b"training batch 1 of 5"),
            b"labels": py2_list([py2_int(label) for label in labels]),
            b"data": py2_array(pixels, **array_options),  # type: ignore[arg-type]
            b"filenames": py2_list([py2_string(b"a_s_%06d.png" % number) for number in range(len(labels))]),
        }
    )


def py2_meta(names: tuple[str, ...]) -> bytes:
    return py2_dict(
        {
            b"num_cases_per_batch": py2_int(10000),
            b"label_names": py2_list([py2_string(name.encode()) for name in names]),
            b"num_vis": py2_int(3072),
        }
    )


# ---- A small CIFAR-10 in both versions -------------------------------------------------------------------------------


def batch(number: int) -> tuple[np.ndarray, list[int]]:
    generator = np.random.default_rng(number)
    pixels = generator.integers(0, 256, (PER_BATCH, 3072), np.uint8)
    return pixels, generator.permutation(np.arange(PER_BATCH) % 10).tolist()


def python_files() -> Files:
    files = {name: py2_batch(*batch(number)) for number, name in enumerate(BATCHES)}
    return files | {"batches.meta": py2_meta(images.CIFAR10_CLASSES), "readme.html": b"<html></html>"}


def binary_files() -> Files:
    files = {"batches.meta.txt": "\n".join((*images.CIFAR10_CLASSES, "", "")).encode()}
    for number, name in enumerate(BATCHES):
        pixels, labels = batch(number)
        files[f"{name}.bin"] = np.column_stack([np.array(labels, np.uint8), pixels]).tobytes()
    return files


def write_folder(place: Path, files: Files) -> Path:
    folder = place / ("cifar-10-batches-bin" if "batches.meta.txt" in files else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    for name, contents in files.items():
        (folder / name).write_bytes(contents)
    return folder


def write_archive(place: Path, files: Files, prefix: str = "") -> Path:
    version = "bin" if "batches.meta.txt" in files else "py"
    path = place / ("cifar-10-binary.tar.gz" if version == "bin" else "cifar-10-python.tar.gz")
    place.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        folder = tarfile.TarInfo(f"{prefix}cifar-10-batches-{version}")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        first = [name for name in ARCHIVE_ORDER if name in files]
        for name in (*first, *(name for name in files if name not in first)):
            member = tarfile.TarInfo(f"{prefix}cifar-10-batches-{version}/{name}")
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    return path


def first_images(per_class: int) -> np.ndarray:
    """What load_images must return: image by image, pixel plane by pixel plane."""
    chosen: list[list[np.ndarray]] = [[] for _ in range(10)]
    for number in range(len(BATCHES)):
        for row, label in zip(*batch(number), strict=True):
            chosen[label].append(np.stack([plane.reshape(32, 32) for plane in np.split(row, 3)], axis=-1))
    return np.array([of_class[:per_class] for of_class in chosen])
